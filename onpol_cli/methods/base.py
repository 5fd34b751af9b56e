"""What every method receives and returns.

Owns the vocabulary between the training loop and the methods: `Sample`, `Group`, `Context`, `Method`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import torch
from torch import Tensor

from onpol_cli.core.types import Grade, Message, Problem, Rollout
from onpol_cli.learner.batch import TrainExample
from onpol_cli.learner.scorer import TeacherScorer
from onpol_cli.tasks.protocol import Task

Ids = tuple[int, ...]


class Source(StrEnum):
    """Where the completions of a step come from."""

    DATASET = "dataset"
    POLICY = "policy"
    MIXTURE = "mixture"


@dataclass(frozen=True)
class Sample:
    """One completion on its way to the learner.

    Attributes:
        prompt_ids: ids of the prompt, length P.
        completion_ids: ids of the completion, length T.
        rollout: how it was sampled; None for dataset completions.
        grade: its verdict; None where nobody graded it.
    """

    problem: Problem
    prompt_ids: Ids
    completion_ids: Ids
    rollout: Rollout | None = None
    grade: Grade | None = None

    @property
    def ids(self) -> tuple[Ids, Ids]:
        """The pair that scorers take."""
        return self.prompt_ids, self.completion_ids


Group = list[Sample]
"""The samples of one prompt."""


@dataclass(frozen=True)
class Context:
    """What a method may call.

    Attributes:
        task: prompts and references.
        encode: chat messages to prompt ids.
        teachers: scorers by domain; the key "" serves every problem of single-teacher methods.
        reference: log-probs of the frozen start for (prompt, completion) pairs: list of [T].
        policy: the learner itself as a scorer (self-distillation), at the teacher's temperature.
    """

    task: Task
    encode: Callable[[list[Message]], Ids]
    teachers: Mapping[str, TeacherScorer]
    reference: Callable[[Sequence[tuple[Ids, Ids]]], list[Tensor]] | None = None
    policy: TeacherScorer | None = None


class Method(Protocol):
    """A method of training."""

    source: Source
    prepares: bool
    """Whether `select` must first choose the data set from graded samples of the base."""

    def select(self, groups: Sequence[Group]) -> list[Group]:
        """The data set to train on, from graded groups of base samples (only if `prepares`)."""
        ...

    def examples(self, groups: Sequence[Group]) -> list[TrainExample]:
        """Per-token streams of one optimiser step."""
        ...


def ones(sample: Sample) -> Tensor:
    """A stream of ones over the completion: `[T]` float32."""
    return torch.ones(len(sample.completion_ids))


def flat(groups: Sequence[Group]) -> list[Sample]:
    """All samples in order."""
    return [sample for group in groups for sample in group]


def sampler_logprobs(sample: Sample) -> Tensor:
    """The sampler's log-probs, `[T]`. A completion that nobody sampled is a bug of the caller."""
    assert sample.rollout is not None, "policy methods train on rollouts"
    return torch.tensor(sample.rollout.sampler_logprobs, dtype=torch.float32)


def group_advantages(group: Group) -> list[float]:
    """Reward minus the group's mean reward, not divided by its standard deviation (Dr. GRPO, arXiv 2503.20783)."""
    rewards = [sample.grade.reward if sample.grade is not None else 0.0 for sample in group]
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]
