"""Where a step's completions come from: a fixed data set, the policy, or a mixture of both.

Each source returns groups of `Sample`s and the metrics that it alone can know (reward, length,
seconds and tokens of generation and grading). Sampling and grading are callables from `stages`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol

from onpol_cli.core.seeding import derive_rng, derive_seed
from onpol_cli.core.types import Completion, Grade, Outcome, Problem, Rollout
from onpol_cli.learner.parallel import ALONE, World
from onpol_cli.methods.base import Group, Ids, Sample, flat
from onpol_cli.rollout.engine import Prompt
from onpol_cli.training.order import Order

Metrics = dict[str, float]
Sampler = Callable[[Sequence[Prompt]], list[Rollout]]
Grader = Callable[[Sequence[tuple[Problem, Completion]]], list[Grade]]


class CompletionSource(Protocol):
    """Gives the groups of a step."""

    def groups(self, step: int) -> tuple[list[Group], Metrics]:
        """Groups of 0-based `step` and what is known of them."""
        ...


class DatasetSource:
    """Batches of a fixed list of groups."""

    def __init__(self, groups: Sequence[Group], batch: int, seed: int, world: World = ALONE) -> None:
        self.items = list(groups)
        self.batch = batch
        self.world = world
        self.order = Order(len(self.items), seed)

    def groups(self, step: int) -> tuple[list[Group], Metrics]:
        """This process's share of the step's `batch` groups, in shuffled order."""
        return [self.items[index] for index in self.world.share(self.order.take(step, self.batch))], {}


class PolicySource:
    """Rollouts of the current policy, graded."""

    def __init__(
        self,
        problems: Sequence[tuple[Problem, Ids]],
        sample: Sampler,
        grade: Grader,
        *,
        prompts: int,
        group: int,
        seed: int,
        world: World = ALONE,
    ) -> None:
        self.problems = list(problems)
        self.world = world
        self.sample = sample
        self.grade = grade
        self.prompts = prompts
        self.group = group
        self.seed = seed
        self.order = Order(len(self.problems), seed)

    def groups(self, step: int) -> tuple[list[Group], Metrics]:
        """`prompts` groups of `group` rollouts each (this process's share), seeded by run, step and place."""
        seed = derive_seed(self.seed, "rollout", step)
        chosen = [
            Asked(*self.problems[index], derive_seed(seed, place))
            for place, index in enumerate(self.order.take(step, self.prompts))
        ]
        return sample_groups(self.world.share(chosen), self.group, self.sample, self.grade)


class MixtureSource:
    """With probability `lam` a step is the policy's, else the data set's (drawn from the step's own seed).

    Args:
        rest: called before a step of the data set, in which nobody samples.
    """

    def __init__(
        self, dataset: DatasetSource, policy: PolicySource, lam: float, seed: int,
        rest: Callable[[], None] = lambda: None,
    ) -> None:
        self.dataset = dataset
        self.policy = policy
        self.lam = lam
        self.seed = seed
        self.rest = rest

    def groups(self, step: int) -> tuple[list[Group], Metrics]:
        """Groups of one of the two sources."""
        on_policy = derive_rng(self.seed, "mixture", step).random() < self.lam
        if not on_policy:
            self.rest()
        groups, metrics = (self.policy if on_policy else self.dataset).groups(step)
        return groups, {**metrics, "mixture/on_policy": float(on_policy)}


@dataclass(frozen=True)
class Asked:
    """A prompt to sample from: its problem, its token ids, and the seed of its rollouts."""

    problem: Problem
    ids: Ids
    seed: int


def asked_of(problems: Sequence[tuple[Problem, Ids]], seed: int) -> list[Asked]:
    """`problems` with a seed each, by place."""
    return [Asked(problem, ids, derive_seed(seed, place)) for place, (problem, ids) in enumerate(problems)]


def sample_groups(asked: Sequence[Asked], group: int, sample: Sampler, grade: Grader) -> tuple[list[Group], Metrics]:
    """Sample `group` completions per prompt and grade them all in one call."""
    prompts = [Prompt(one.problem.problem_id, one.ids, samples=group, seed=one.seed) for one in asked]
    start = time.perf_counter()
    rollouts = sample(prompts)
    generated = time.perf_counter()
    owners = [one.problem for one in asked for _ in range(group)]
    assert len(owners) == len(rollouts)
    grades = grade([(owner, rollout.completion()) for owner, rollout in zip(owners, rollouts, strict=True)])
    graded = time.perf_counter()
    samples = [
        Sample(owner, rollout.prompt_ids, rollout.completion_ids, rollout, verdict)
        for owner, rollout, verdict in zip(owners, rollouts, grades, strict=True)
    ]
    groups = [samples[start_ : start_ + group] for start_ in range(0, len(samples), group)]
    times = {"time/generate": generated - start, "time/grade": graded - generated}
    return groups, {**times, **rollout_metrics(groups)}


def rollout_metrics(groups: Sequence[Group]) -> Metrics:
    """Reward, length and outcome shares of graded rollouts; {} for none (a process without a share)."""
    samples = flat(groups)
    if not samples:
        return {}
    grades = [sample.grade for sample in samples if sample.grade is not None]
    lengths = [len(sample.completion_ids) for sample in samples]
    shares = Counter(grade.outcome for grade in grades)
    excess = [g.excess_levenshtein for g in grades if g.passed and g.excess_levenshtein is not None]
    below = [g for g in grades if g.passed and g.extra.get("pass_below_fail")]
    metrics = {
        "reward/mean": fmean(grade.reward for grade in grades),
        "reward/constant_groups": fmean(float(len({s.grade.reward for s in g if s.grade}) == 1) for g in groups),
        "reward/pass_below_fail": len(below) / len(grades),
        "length/mean": fmean(lengths),
        "length/max": float(max(lengths)),
        "length/limit_share": fmean(float(s.rollout is not None and s.rollout.truncated) for s in samples),
        "tokens/generated": float(sum(lengths)),
        "grade/wall_timeouts": float(sum(grade.wall_timeout for grade in grades)),
        **{f"outcome/{outcome.value}": shares[outcome] / len(grades) for outcome in Outcome},
    }
    if excess:
        metrics["reward/excess_levenshtein"] = fmean(excess)
    return metrics
