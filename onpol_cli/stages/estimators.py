"""`onpol bench estimators tutor=...`: what a teacher's signal is worth, on one frozen batch.

The student samples once; every estimator then says its gradient on the same rollouts. Against the exact
reverse KL over the vocabulary at every sampled position (which needs no further sampling):

- `cosine`, `cosine_forward`: cosine of the gradient to that of the exact reverse, exact forward KL;
- `norm`: length relative to the exact reverse KL's;
- `variance`: `sum_i |g_i - mean|^2 / (S - 1)` over S disjoint quarters of the rollouts, relative to the
  squared norm of the exact reverse KL's gradient on all of them. For exact divergences this is what the
  sampled prefixes leave; the rest is the estimator's own noise;
- `covered`: mean probability of the tokens that the signal looks at;
- `signal_mb`: what travels from teacher to learner for the batch, MB (10^6 bytes), the teacher's output
  matrix included where hidden states travel; `ms`: wall time of scoring and gradient, milliseconds.

Owns the list of estimators and these measures; losses are the learner's.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from onpol_cli.core.compose import as_dict, compose, to_yaml
from onpol_cli.core.config import Config, MethodConfig, OpdSignal
from onpol_cli.core.console import say, show, show_json, show_text
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.seeding import derive_seed
from onpol_cli.stages import build
from onpol_cli.stages.gradients import gradient

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from onpol_cli.learner.batch import TrainExample
    from onpol_cli.learner.learner import Learner
    from onpol_cli.learner.scorer import LocalScorer
    from onpol_cli.methods.base import Group

SPLITS = 4
TOPK = (4, 16, 64)
SAMPLED, K3 = "sampled token", "sampled token, k3 as a loss"
REVERSE, FORWARD = "reverse KL, exact", "forward KL, exact"
COLUMNS = ("cosine", "cosine_forward", "norm", "variance", "covered", "signal_mb", "ms")


@dataclass(frozen=True)
class Estimator:
    """One signal: its name and the method settings that make it."""

    name: str
    method: MethodConfig


@dataclass
class Frozen:
    """What all estimators share: the student, its rollouts, the teacher."""

    learner: Learner
    teacher: LocalScorer
    groups: list[Group]


def estimators(method: MethodConfig) -> list[Estimator]:
    """All signals, as changes of `method`. The exact KLs come first: the others are held against them."""
    plain = replace(method, name="opd", adv_coef=0.0, teacher_coef=1.0, reference_kl=0.0, signal=OpdSignal.sampled)
    found = [
        Estimator(REVERSE, replace(plain, signal=OpdSignal.reverse)),
        Estimator(FORWARD, replace(plain, signal=OpdSignal.forward)),
        Estimator("JSD 0.5, exact", replace(plain, signal=OpdSignal.jsd, beta=0.5)),
        Estimator(SAMPLED, plain),
        Estimator(K3, replace(plain, teacher_coef=0.0, reference_kl=1.0)),
    ]
    for kind in (OpdSignal.topk_reverse, OpdSignal.topk_forward):
        word = kind.value.removeprefix("topk_")
        found += [Estimator(f"top-{k} {word} + tail", replace(plain, signal=kind, topk=k)) for k in TOPK]
    return found


def run_estimators(overrides: Sequence[str], *, dry_run: bool, as_json: bool) -> None:
    """Measure and show.

    Raises:
        OnpolError: no tutor, or one that does not fit; too few rollouts per prompt to split.
    """
    named = any(word.startswith("method=") for word in overrides)
    config = compose([*([] if named else ["method=opd"]), "method.prompts=8", "method.group=8", *overrides])
    if config.method.group % SPLITS:
        raise OnpolError(f"method.group={config.method.group} cannot be split: use a multiple of {SPLITS}.")
    tutor = build.find_checkpoint(build.require_tutor(config), config, fetch=not dry_run)
    if dry_run:
        return show_json({"config": as_dict(config), "dry_run": True}) if as_json else show_text(to_yaml(config))
    build.verify_all(config, {"": tutor})
    with ExitStack() as stack:
        frozen = freeze(config, tutor, stack)
        rows = measure(frozen, config)
    facts = {"tutor": tutor.label, "rollouts": sum(map(len, frozen.groups)), "tokens": count_tokens(frozen)}
    if as_json:
        return show_json({**facts, "splits": SPLITS, "estimators": rows})
    return show(estimator_table(rows, f"{facts['rollouts']} rollouts, {facts['tokens']} tokens, tutor {tutor.label}"))


def freeze(config: Config, tutor: build.Checkpoint, stack: ExitStack) -> Frozen:
    """Student, teacher and one batch of the student's rollouts."""
    from onpol_cli.methods.base import Sample
    from onpol_cli.rollout.engine import Prompt
    from onpol_cli.sandbox import Sandbox
    from onpol_cli.stages.train import make_learner
    from onpol_cli.tasks.registry import build_task

    policy = build.policy_config(config)
    tokenizer, chat = build.tokenizer_and_chat(policy.path)
    teacher = build.load_teacher(tutor, config, policy.path)
    learner = make_learner(config, policy, tokenizer, 1, teacher.output_matrix)
    # Nothing is graded: the sandbox starts no worker unless it is given a job.
    task = build_task(config.task, Sandbox(config.sandbox))
    pairs = build.encoded(task, chat, task.problems("train")[: config.method.prompts], config)
    engine = stack.enter_context(build.engine_for(config, policy.path, tokenizer, learner.model))
    seeds = [derive_seed(config.seed, "estimators", place) for place in range(len(pairs))]
    prompts = [
        Prompt(problem.problem_id, ids, config.method.group, seed)
        for (problem, ids), seed in zip(pairs, seeds, strict=True)
    ]
    rollouts = engine.generate(prompts, config.rollout.sampling)
    owners = [problem for problem, _ in pairs for _ in range(config.method.group)]
    samples = [
        Sample(owner, rollout.prompt_ids, rollout.completion_ids, rollout)
        for owner, rollout in zip(owners, rollouts, strict=True)
    ]
    size = config.method.group
    return Frozen(learner, teacher, [samples[first : first + size] for first in range(0, len(samples), size)])


def measure(frozen: Frozen, config: Config) -> list[dict[str, Any]]:
    """One row of numbers per estimator."""
    exact: dict[str, Tensor] = {}
    rows = []
    masses = Coverage(frozen)
    for estimator in estimators(config.method):
        start = time.perf_counter()
        examples = examples_of(estimator, frozen, frozen.groups)
        vector = gradient_of(estimator, frozen, examples)
        seconds = time.perf_counter() - start
        if estimator.name in (REVERSE, FORWARD):
            exact[estimator.name] = vector
        rows.append({"name": estimator.name, "vector": vector, "ms": 1000 * seconds})
        rows[-1] |= {"signal_mb": signal_mb(examples, frozen), "covered": masses.of(estimator.method)}
        rows[-1]["variance"] = variance(estimator, frozen)
        say(f"{estimator.name}: {seconds:.2f} s")
    return [finished(row, exact) for row in rows]


def finished(row: dict[str, Any], exact: dict[str, Tensor]) -> dict[str, Any]:
    """The row with its vector replaced by numbers, the variance relative to the exact gradient."""
    vector = row.pop("vector")
    row["variance"] /= float(exact[REVERSE].square().sum())
    return {**row, **against(vector, exact)}


def against(vector: Tensor, exact: dict[str, Tensor]) -> dict[str, float]:
    """Cosines and length of one gradient against the exact ones."""
    reverse, forward = exact[REVERSE].double(), exact[FORWARD].double()
    vector = vector.double()
    return {
        "cosine": float(vector @ reverse / (vector.norm() * reverse.norm())),
        "cosine_forward": float(vector @ forward / (vector.norm() * forward.norm())),
        "norm": float(vector.norm() / reverse.norm()),
    }


def examples_of(estimator: Estimator, frozen: Frozen, groups: Sequence[Group]) -> list[TrainExample]:
    """The rollouts with the estimator's streams."""
    from onpol_cli.methods.base import Context, flat
    from onpol_cli.methods.on_policy import OnPolicy
    from onpol_cli.tasks.protocol import Task

    samples = flat(groups)
    if estimator.name == K3:
        rows = frozen.teacher.logprobs([sample.ids for sample in samples])
        return [k3_example(sample, row) for sample, row in zip(samples, rows, strict=True)]
    task: Task = None  # type: ignore[assignment]  # OPD asks the task for nothing
    context = Context(task, lambda _: (), {"": frozen.teacher})
    return OnPolicy(estimator.method, context).examples(groups)


def k3_example(sample: Any, teacher: Tensor) -> TrainExample:
    """No advantage; the penalty's reference is the teacher: k3 differentiated as if it were a loss."""
    from onpol_cli.learner.batch import TrainExample
    from onpol_cli.methods.base import ones, sampler_logprobs

    return TrainExample(
        sample.prompt_ids,
        sample.completion_ids,
        pg_mask=ones(sample),
        advantages=0.0 * ones(sample),
        sampler_logprobs=sampler_logprobs(sample),
        reference_logprobs=teacher,
    )


def gradient_of(estimator: Estimator, frozen: Frozen, examples: Sequence[TrainExample]) -> Tensor:
    """The estimator's gradient `[P]` on these examples."""
    frozen.learner.objective = replace(frozen.learner.objective, method=estimator.method)
    return gradient(frozen.learner, examples)[1]


def variance(estimator: Estimator, frozen: Frozen) -> float:
    """Unbiased total variance over the splits, not yet relative; one gradient is held at a time."""
    total, squares = None, 0.0
    for split in range(SPLITS):
        quarter = [group[split::SPLITS] for group in frozen.groups]
        vector = gradient_of(estimator, frozen, examples_of(estimator, frozen, quarter))
        squares += float(vector.square().sum())
        total = vector if total is None else total + vector
    assert total is not None
    return (squares - float(total.square().sum()) / SPLITS) / (SPLITS - 1)


class Coverage:
    """How much probability a signal looks at, averaged over the batch's positions."""

    def __init__(self, frozen: Frozen) -> None:
        pairs = [sample.ids for group in frozen.groups for sample in group]
        self.policy = frozen.learner.engine
        self.teacher = frozen.teacher
        self.states = {id(model): model.hidden(pairs) for model in (self.policy, self.teacher)}
        self.sampled = frozen.learner.logprobs(pairs)

    def of(self, method: MethodConfig) -> float:
        """Mean mass: 1 for exact divergences, the k likeliest tokens' for top-k, the sampled token's else."""
        import torch

        if method.signal is OpdSignal.sampled:
            return float(torch.cat(self.sampled).exp().mean())
        if method.signal not in (OpdSignal.topk_reverse, OpdSignal.topk_forward):
            return 1.0
        model = self.policy if method.signal is OpdSignal.topk_reverse else self.teacher
        return self._top(model, method.topk)

    def _top(self, model: Any, k: int) -> float:
        import torch

        from onpol_cli.learner.head import chunk_logits, chunks

        states = torch.cat(self.states[id(model)]).to(model.device)
        options = model.options()
        total = 0.0
        for rows in chunks(len(states), options.chunk):
            probs = chunk_logits(states[rows], model.output_matrix, options).softmax(1)
            total += float(probs.topk(min(k, probs.shape[1]), 1).values.sum())
        return total / len(states)


def signal_mb(examples: Sequence[TrainExample], frozen: Frozen) -> float:
    """Bytes of the teacher's numbers that the batch carries, MB."""
    size = 0
    for example in examples:
        for stream in (example.teacher_logprobs, example.reference_logprobs, example.teacher_hidden):
            size += 0 if stream is None else stream.numel() * stream.element_size()
    if any(example.teacher_hidden is not None for example in examples):
        matrix = frozen.teacher.output_matrix
        size += matrix.numel() * matrix.element_size()
    return size / 1e6


def count_tokens(frozen: Frozen) -> int:
    """Completion tokens of the batch."""
    return sum(len(sample.completion_ids) for group in frozen.groups for sample in group)


def estimator_table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    """One line an estimator."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("signal")
    for name in COLUMNS:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(row["name"], *(f"{row[name]:.4g}" for name in COLUMNS))
    return table
