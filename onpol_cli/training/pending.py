"""A batch that waits to be trained on, as plain JSON and back: states must load without running code (no pickle)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.types import Finish, Grade, Outcome, Problem, Rollout
from onpol_cli.methods.base import Group, Sample


def plain(groups: Sequence[Group]) -> list[list[dict[str, Any]]]:
    """Samples as JSON values; problems by id, since the task makes them again."""
    return [[_plain(sample) for sample in group] for group in groups]


def _plain(sample: Sample) -> dict[str, Any]:
    return {
        "problem_id": sample.problem.problem_id,
        "prompt_ids": list(sample.prompt_ids),
        "completion_ids": list(sample.completion_ids),
        "rollout": None if sample.rollout is None else asdict(sample.rollout),
        "grade": None if sample.grade is None else asdict(sample.grade),
    }


def groups_of(rows: Sequence[Sequence[Mapping[str, Any]]], problems: Mapping[str, Problem]) -> list[Group]:
    """The inverse of `plain`.

    Raises:
        OnpolError: a problem is not among `problems`.
    """
    return [[_sample(row, problems) for row in group] for group in rows]


def _sample(row: Mapping[str, Any], problems: Mapping[str, Problem]) -> Sample:
    name = str(row["problem_id"])
    if name not in problems:
        raise OnpolError(f"The saved batch has problem {name}, which the task no longer has. Restore the task's data.")
    rollout, grade = row["rollout"], row["grade"]
    return Sample(
        problems[name],
        tuple(row["prompt_ids"]),
        tuple(row["completion_ids"]),
        None if rollout is None else _rollout(rollout),
        None if grade is None else Grade(**{**grade, "outcome": Outcome(grade["outcome"])}),
    )


def _rollout(row: Mapping[str, Any]) -> Rollout:
    ids = {name: tuple(row[name]) for name in ("prompt_ids", "completion_ids", "sampler_logprobs")}
    return Rollout(**{**row, **ids, "finish": Finish(row["finish"])})
