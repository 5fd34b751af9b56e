"""Order and completion sources: pure functions of seed and step."""

from dataclasses import replace

from onpol_cli.core.types import Finish, Grade, Outcome, Problem, Rollout
from onpol_cli.methods.base import Sample
from onpol_cli.training.order import Order
from onpol_cli.training.sources import (
    DatasetSource,
    MixtureSource,
    PolicySource,
    asked_of,
    rollout_metrics,
    sample_groups,
)

PROBLEMS = [(Problem(f"p{i}", "", None), (1, i)) for i in range(5)]


def sampler(prompts):
    return [
        Rollout(p.problem_id, i, p.ids, tuple(range(1 + p.sample_seed(i) % 3)), (0.0,) * 3, Finish.STOP, p.problem_id)
        for p in prompts
        for i in range(p.samples)
    ]


def grader(items):
    return [Grade(Outcome.PASSED if p.problem_id != "p0" else Outcome.FAILED, 0.1) for p, _ in items]


def test_every_epoch_visits_every_item_once():
    order = Order(7, seed=3)
    seen = [index for step in range(7) for index in order.take(step, 3)]
    for epoch in range(3):
        assert sorted(seen[7 * epoch : 7 * epoch + 7]) == list(range(7))


def test_order_needs_no_history():
    assert Order(50, 1).take(9, 8) == [i for s in [9] for i in Order(50, 1).take(s, 8)]
    assert Order(50, 1).take(0, 50) != Order(50, 2).take(0, 50)


def test_dataset_batches():
    groups = [[Sample(problem, ids, (3,))] for problem, ids in PROBLEMS]
    source = DatasetSource(groups, batch=2, seed=0)
    first, _ = source.groups(0)
    assert len(first) == 2 and source.groups(0)[0] == first


def test_policy_groups_keep_prompt_and_rollouts_together():
    source = PolicySource(PROBLEMS, sampler, grader, prompts=3, group=4, seed=0)
    groups, metrics = source.groups(2)
    assert [len(group) for group in groups] == [4, 4, 4]
    for group in groups:
        assert {s.rollout.problem_id for s in group} == {group[0].problem.problem_id}
        assert [s.rollout.sample for s in group] == [0, 1, 2, 3]
    assert metrics["tokens/generated"] == sum(len(s.completion_ids) for g in groups for s in g)
    again, _ = source.groups(2)
    assert again == groups


def test_steps_differ_in_their_seeds():
    one = PolicySource(PROBLEMS[:1], sampler, grader, prompts=1, group=64, seed=0)
    lengths = [[len(s.completion_ids) for s in one.groups(step)[0][0]] for step in (0, 1)]
    assert lengths[0] != lengths[1]


def test_mixture_draws_the_share_it_was_told():
    dataset = DatasetSource([[Sample(PROBLEMS[0][0], (1,), (3,))]], 1, 0)
    policy = PolicySource(PROBLEMS, sampler, grader, prompts=1, group=2, seed=0)
    for lam, low, high in ((0.0, 0, 0), (1.0, 200, 200), (0.5, 70, 130)):
        source = MixtureSource(dataset, policy, lam, seed=5)
        count = sum(source.groups(step)[1]["mixture/on_policy"] for step in range(200))
        assert low <= count <= high


def test_metrics_count_outcomes_and_constant_groups():
    groups, metrics = sample_groups(asked_of(PROBLEMS, 0), 2, sampler, grader)
    assert metrics["outcome/passed"] == 0.8 and metrics["outcome/failed"] == 0.2
    assert metrics["reward/constant_groups"] == 1.0
    assert rollout_metrics(groups)["length/max"] <= 3


def test_the_sampler_rests_before_a_step_in_which_it_is_not_asked():
    happened = []

    def ask(prompts):
        happened.append("sample")
        return sampler(prompts)

    dataset = DatasetSource([[Sample(PROBLEMS[0][0], (1,), (3,))]], 1, 0)
    policy = PolicySource(PROBLEMS, ask, grader, prompts=1, group=2, seed=0)
    source = MixtureSource(dataset, policy, 0.5, seed=5, rest=lambda: happened.append("rest"))
    wanted = ["sample" if source.groups(step)[1]["mixture/on_policy"] else "rest" for step in range(20)]
    assert happened == wanted and len({*wanted}) == 2


def test_answers_at_the_token_limit_are_counted_whatever_their_grade():
    def endless(prompts):
        return [replace(rollout, finish=Finish.LENGTH) for rollout in sampler(prompts)]

    _, metrics = sample_groups(asked_of(PROBLEMS, 0), 2, endless, grader)
    assert metrics["length/limit_share"] == 1.0 and metrics["outcome/passed"] > 0
    assert sample_groups(asked_of(PROBLEMS, 0), 2, sampler, grader)[1]["length/limit_share"] == 0.0
