"""Methods: what each tells every token."""

import pytest
import torch

from onpol_cli.core.config import MethodConfig, OpdSignal
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.core.types import Finish, Grade, Outcome, Problem, Rollout
from onpol_cli.methods.base import Context, Sample, Source, group_advantages
from onpol_cli.methods.registry import (
    METHODS,
    build_method,
    check_method,
    needs_hidden,
    scores_by_teacher,
)


class Teacher:
    """A scorer that knows a constant and remembers what it was asked."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.asked: list = []

    def logprobs(self, sequences):
        self.asked += list(sequences)
        return [torch.full((len(c),), self.value) for _, c in sequences]

    def hidden(self, sequences):
        return [torch.full((len(c), 3), self.value) for _, c in sequences]


class ToyTask:
    name = "toy"

    def messages(self, problem):
        return [{"role": "user", "content": problem.statement}]

    def reference(self, problem):
        return "answer"


def sample(reward: float, completion=(5, 6), *, passed=True, excess=0.0, problem="p", meta=None) -> Sample:
    outcome = Outcome.PASSED if passed else Outcome.FAILED
    rollout = Rollout(problem, 0, (1, 2), tuple(completion), (-0.5,) * len(completion), Finish.STOP, "")
    grade = Grade(outcome, reward, excess_levenshtein=excess)
    return Sample(Problem(problem, "do", None, meta=meta or {}), (1, 2), tuple(completion), rollout, grade)


def context(**teachers) -> Context:
    return Context(ToyTask(), lambda messages: (7,) * len(messages[-1]["content"]), teachers or {"": Teacher(-1.0)})


def build(name: str, ctx: Context | None = None, **settings):
    return build_method(MethodConfig(name=name, **settings), ctx or context())


def test_advantage_is_reward_minus_group_mean():
    assert group_advantages([sample(0.1), sample(-0.2), sample(0.1), sample(-0.2)]) == pytest.approx([0.15, -0.15] * 2)


def test_constant_group_has_no_advantage():
    assert group_advantages([sample(0.1)] * 4) == [0.0] * 4


def test_sft_weights_every_token():
    (example,) = build("sft").examples([[sample(0.0)]])
    assert example.ce_weights.tolist() == [1.0, 1.0]
    assert example.pg_mask is None and example.div_mask is None


def test_rl_spreads_the_advantage_over_tokens():
    examples = build("rl", adv_coef=1.0).examples([[sample(0.1), sample(-0.3, (5,))]])
    assert examples[0].advantages.tolist() == pytest.approx([0.2, 0.2])
    assert examples[1].advantages.tolist() == pytest.approx([-0.2])
    assert examples[0].sampler_logprobs.tolist() == [-0.5, -0.5]
    assert examples[0].teacher_logprobs is None and examples[0].teacher_coef == 0


def test_opd_passes_teacher_logprobs_and_no_reward():
    (example, _) = build("opd", teacher_coef=1.0).examples([[sample(0.1), sample(-0.2)]])
    assert example.teacher_logprobs.tolist() == [-1.0, -1.0]
    assert example.teacher_coef == 1.0
    assert example.advantages.tolist() == [0.0, 0.0]


def test_rl_opd_has_both():
    (example, _) = build("rl_opd", adv_coef=2.0, teacher_coef=0.5).examples([[sample(0.1), sample(-0.1)]])
    assert example.advantages.tolist() == pytest.approx([0.2, 0.2])
    assert example.teacher_coef == 0.5


def test_exact_signal_sends_hidden_states_instead_of_a_policy_gradient():
    (example,) = build("opd", teacher_coef=1.0, signal=OpdSignal.reverse).examples([[sample(0.1)]])
    assert example.teacher_hidden.shape == (2, 3)
    assert example.div_mask.tolist() == [1.0, 1.0]
    assert example.pg_mask is None


def test_multi_tutor_routes_by_domain():
    ctx = context(edit=Teacher(-1.0), gen=Teacher(-2.0))
    groups = [[sample(0, meta={"domain": "gen"})], [sample(0, meta={"domain": "edit"})]]
    examples = build("multi_opd", ctx, teacher_coef=1.0).examples(groups)
    assert [e.teacher_logprobs[0].item() for e in examples] == [-2.0, -1.0]


def test_every_teacher_is_called_even_for_no_sample():
    """Processes that share a teacher's shards wait for those whose share lacks its domain."""

    class Counting(Teacher):
        calls = 0

        def logprobs(self, sequences):
            self.calls += 1
            return super().logprobs(sequences)

    edit, gen = Counting(-1.0), Counting(-2.0)
    ctx = context(edit=edit, gen=gen, more=edit)
    build("multi_opd", ctx, teacher_coef=1.0).examples([[sample(0, meta={"domain": "gen"})]])
    assert (edit.calls, gen.calls) == (1, 1)


def test_multi_tutor_without_a_tutor_for_a_domain_is_an_error():
    with pytest.raises(OnpolError, match="No tutor for domain 'toy'"):
        build("multi_opd", context(edit=Teacher(0.0)), teacher_coef=1.0).examples([[sample(0)]])


def test_opsd_teacher_reads_the_reference_but_scores_the_same_completion():
    teacher = Teacher(-1.0)
    ctx = Context(ToyTask(), lambda m: (7,) * len(m[-1]["content"]), {}, policy=teacher)
    build("opsd", ctx, teacher_coef=1.0).examples([[sample(0.0)]])
    prompt, completion = teacher.asked[0]
    assert len(prompt) > len("do") and completion == (5, 6)


def test_rsft_keeps_the_smallest_distinct_passing_edits():
    group = [sample(0, (1,), excess=0.3), sample(0, (2,), excess=0.1), sample(0, (2,), excess=0.1),
             sample(0, (3,), passed=False), sample(0, (4,), excess=0.2)]  # fmt: skip
    kept = build("rsft", keep=2).select([group])
    assert [g[0].completion_ids for g in kept] == [(2,), (4,)]


def test_rsft_without_a_passing_sample_fails():
    with pytest.raises(RunFailed, match="nothing to train on"):
        build("rsft").select([[sample(0, passed=False)]])


def test_dpo_prefers_the_smallest_edit():
    group = [sample(0, (1,), excess=0.3), sample(0, (2,), excess=0.1), sample(0, (3,), excess=0.2)]
    ctx = Context(ToyTask(), lambda m: (), {}, reference=lambda pairs: [torch.zeros(len(c)) for _, c in pairs])
    method = build("dpo", ctx)
    pairs = method.select([group, [sample(0, (9,))]])
    assert [[s.completion_ids for s in pair] for pair in pairs] == [[(2,), (1,)]]
    chosen, rejected = method.examples(pairs)
    assert chosen.chosen and not rejected.chosen and chosen.pair == rejected.pair == 0


def test_gkd_refuses_the_sampled_signal():
    with pytest.raises(OnpolError, match="full-vocabulary"):
        build("gkd", teacher_coef=1.0)


def test_gkd_is_a_mixture_without_importance_ratio():
    method = build("gkd", teacher_coef=1.0, signal=OpdSignal.jsd)
    assert method.source is Source.MIXTURE
    (example,) = method.examples([[Sample(Problem("p", "", None), (1,), (2, 3))]])
    assert example.sampler_logprobs is None and example.div_mask.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("name", "adv_coef"), [("opd", 0.0), ("rl_opd", 1.0), ("gkd", 0.0)])
def test_exact_signals_carry_the_sampler_and_the_reference(name, adv_coef):
    def reference(pairs):
        return [torch.full((len(c),), -3.0) for _, c in pairs]

    ctx = Context(ToyTask(), lambda m: (), {"": Teacher(-1.0)}, reference)
    method = build(name, ctx, teacher_coef=1.0, adv_coef=adv_coef, signal=OpdSignal.reverse, reference_kl=0.1)
    (example, _) = method.examples([[sample(0.1), sample(0.2)]])
    assert example.sampler_logprobs.tolist() == [-0.5, -0.5] and example.reference_logprobs.tolist() == [-3.0, -3.0]
    assert example.div_mask.tolist() == [1.0, 1.0] and (example.pg_mask is not None) == bool(adv_coef)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "opd", "signal": OpdSignal.reverse, "signal_clip": 1e-3}, r"signal_clip=0, or method\.signal"),
        ({"name": "gkd", "signal": OpdSignal.jsd, "signal_clip": 1.0}, r"method\.signal_clip=0"),
        ({"name": "gkd", "signal": OpdSignal.sampled}, "full-vocabulary"),
        ({"name": "gkd", "signal": OpdSignal.jsd, "adv_coef": 1.0}, r"method=rl_opd method\.signal=jsd"),
        ({"name": "gkd", "signal": OpdSignal.jsd, "lam": 0.5, "reference_kl": 0.1}, r"method\.lam=1"),
        ({"name": "sft", "teacher_coef": 0.0, "reference_kl": 0.1}, r"sft trains on none\. Set method\.reference_kl=0"),
        ({"name": "opd", "reference_kl": -0.1}, "0 or more"),
        ({"name": "opd", "steps": 0, "epochs": 1.0}, r"method\.name=opd samples its completions\. Set method\.steps"),
        ({"name": "gkd", "signal": OpdSignal.jsd, "steps": 0, "epochs": 1.0}, r"Set method\.steps"),
        ({"name": "opd", "tutors": {"a": "run"}}, r"method\.tutors are for method=multi_opd; method=opd has one"),
    ],
)
def test_settings_that_could_not_apply_are_refused(settings, message):
    with pytest.raises(OnpolError, match=message):
        check_method(MethodConfig(**{"teacher_coef": 1.0, **settings}))


def test_settings_that_apply_are_taken():
    check_method(MethodConfig(name="opd", teacher_coef=1.0, signal_clip=1.0, reference_kl=0.1))
    check_method(MethodConfig(name="opd", teacher_coef=1.0, signal=OpdSignal.reverse, reference_kl=0.1))
    check_method(MethodConfig(name="gkd", teacher_coef=1.0, signal=OpdSignal.jsd, lam=1.0, reference_kl=0.1))
    check_method(MethodConfig(name="rl", adv_coef=1.0, signal=OpdSignal.reverse, signal_clip=1.0))  # no teacher


def test_who_is_scored_by_a_teacher():
    assert scores_by_teacher(MethodConfig(name="opd", teacher_coef=1.0))
    assert scores_by_teacher(MethodConfig(name="opsd", teacher_coef=1.0))
    assert not scores_by_teacher(MethodConfig(name="rl", adv_coef=1.0))
    assert not scores_by_teacher(MethodConfig(name="sft", teacher_coef=1.0))


def test_a_teacher_that_skips_tokens_is_a_bug():
    class Short(Teacher):
        def logprobs(self, sequences):
            return [torch.zeros(len(c) - 1) for _, c in sequences]

    with pytest.raises(AssertionError, match="every completion token"):
        build("opd", context(**{"": Short(0.0)}), teacher_coef=1.0).examples([[sample(0)]])


def test_unknown_method_names_the_nearest():
    with pytest.raises(OnpolError, match="Did you mean 'opd'"):
        check_method(MethodConfig(name="opdd"))


@pytest.mark.parametrize("name", ["rl", "opd", "rl_opd", "opsd", "multi_opd"])
def test_policy_methods_without_a_signal_are_refused(name):
    with pytest.raises(OnpolError, match="no signal"):
        check_method(MethodConfig(name=name))


def test_group_of_one_has_no_reward_advantage():
    with pytest.raises(OnpolError, match="at least 2"):
        check_method(MethodConfig(name="rl", adv_coef=1.0, group=1))


def test_needs():
    assert MethodConfig(name="opd", teacher_coef=1.0).needs_tutor
    assert not MethodConfig(name="opsd", teacher_coef=1.0).needs_tutor
    assert needs_hidden(MethodConfig(name="opd", teacher_coef=1.0, signal=OpdSignal.jsd))
    assert set(METHODS) == {"sft", "rsft", "dpo", "rl", "opd", "rl_opd", "multi_opd", "opsd", "gkd"}
