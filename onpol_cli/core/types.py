"""The nouns that travel through onpol: problem, rollout, grade.

One problem goes from file to `Problem`, is prompted as chat messages, sampled into `Rollout`s,
graded into `Grade`s; everything later (signal, gradient, table cell) is derived from these three.
Owns no behaviour beyond small derived properties.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Message = dict[str, str]
"""One chat turn: `{"role": "system" | "user" | "assistant", "content": text}`."""


class Outcome(StrEnum):
    """How one completion ended. Exactly one per grade; counted apart in every table."""

    PASSED = "passed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    NO_ANSWER = "no_answer"
    TRUNCATED = "truncated"
    ERROR = "error"


class Finish(StrEnum):
    """Why a rollout ended: end-of-sequence token (`stop`) or token limit (`length`)."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True)
class Problem:
    """One item of a task.

    Attributes:
        problem_id: the data file's own id, unique within the task.
        statement: what the function must do, without any answer.
        tests: what the task's grader needs; opaque to everything else.
        original: a correct solution, where one is known.
        corrupted: for edit tasks, the broken function shown to the model.
        entry_point: the name that tests call, where the task has one.
        families: names of the corruption families applied (edit tasks).
        meta: other facts by name (difficulty, platform, contest date, ...), JSON-serialisable.
    """

    problem_id: str
    statement: str
    tests: Any
    original: str | None = None
    corrupted: str | None = None
    entry_point: str | None = None
    families: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """What a grader sees of an answer: text, and whether the token limit cut it."""

    text: str
    truncated: bool = False
    is_code: bool = False
    """The text is bare source (from an answers file): skip extraction from markdown."""


@dataclass(frozen=True)
class Grade:
    """Verdict on one completion.

    Attributes:
        outcome: how it ended.
        reward: the training reward of the task (for edit tasks the paper's).
        code: the extracted source, None when the completion holds none.
        excess_levenshtein: edit tasks: normalised distance(answer, corrupted) minus
            normalised distance(original, corrupted); None outside edit tasks or without code.
        added_cc: edit tasks: cognitive complexity(answer) minus that of the original; None if
            either side does not parse.
        detail: one line for people: which test failed, which exception.
        wall_timeout: ended by the wall clock rather than by CPU time (not reproducible).
        extra: further per-answer numbers or labels, JSON-serialisable.
    """

    outcome: Outcome
    reward: float
    code: str | None = None
    excess_levenshtein: float | None = None
    added_cc: float | None = None
    detail: str = ""
    wall_timeout: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether all tests passed."""
        return self.outcome is Outcome.PASSED


@dataclass(frozen=True)
class Rollout:
    """One sampled completion with what the sampler knew of it.

    Attributes:
        problem_id: whose prompt this answers.
        sample: 0-based number of this sample within its prompt's group.
        prompt_ids: token ids of the prompt, length P.
        completion_ids: sampled token ids, length T, end-of-sequence token included if sampled.
        sampler_logprobs: length T, log-probability in nats of each sampled token under the
            distribution it was drawn from; same forward pass as the draw.
        finish: why it ended.
        text: decoded completion without special tokens.
        weight_version: number of weight syncs the sampler had received.
    """

    problem_id: str
    sample: int
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    finish: Finish
    text: str
    weight_version: int = 0

    @property
    def truncated(self) -> bool:
        """Whether the token limit, not the model, ended it."""
        return self.finish is Finish.LENGTH

    def completion(self) -> Completion:
        """The view of this rollout that a grader receives."""
        return Completion(self.text, self.truncated)
