"""`rollouts.jsonl`, the training rollouts of a run with `rollout.save=true`, and `selected.jsonl`, what rsft and
dpo chose of the base's samples to train on; reading them back.

One line a rollout: step, group, sample, problem_id, prompt_ids, completion_ids, sampler_logprobs (nats),
weight_version, finish, text, reward, outcome. Owns these files; `replay` and others read them through here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.files import write_atomic
from onpol_cli.core.types import Finish, Grade, Outcome, Problem, Rollout
from onpol_cli.runs.rundir import read_lines

if TYPE_CHECKING:
    from onpol_cli.methods.base import Group

ROLLOUTS = "rollouts.jsonl"
SELECTED = "selected.jsonl"
SELECTING = -1
"""Step number of what happens before the first."""


def rows_of(step: int, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Lines of one 0-based step; completions that nobody sampled (data set batches) are left out."""
    return [
        {
            "step": step,
            "group": number,
            "sample": sample.rollout.sample,
            "problem_id": sample.problem.problem_id,
            "prompt_ids": list(sample.prompt_ids),
            "completion_ids": list(sample.completion_ids),
            "sampler_logprobs": list(sample.rollout.sampler_logprobs),
            "weight_version": sample.rollout.weight_version,
            "finish": sample.rollout.finish.value,
            "text": sample.rollout.text,
            "reward": sample.grade.reward if sample.grade else None,
            "outcome": sample.grade.outcome.value if sample.grade else None,
            "excess_levenshtein": sample.grade.excess_levenshtein if sample.grade else None,
        }
        for number, group in enumerate(groups)
        for sample in group
        if sample.rollout is not None
    ]


def read_steps(folder: Path, problems: Mapping[str, Problem]) -> dict[int, list[Group]]:
    """Groups of samples by step, ascending. A step that was made again after a resume counts once.

    Args:
        folder: the run directory.
        problems: known problems by id; others get an empty statement.

    Raises:
        OnpolError: the run saved no rollouts.
    """
    newest: dict[tuple[int, int, int], dict[str, Any]] = {}
    for row in read_lines(folder / ROLLOUTS):
        newest[row["step"], row["group"], row["sample"]] = row
    if not newest:
        raise OnpolError(f"Run {folder.name} saved no rollouts. Train with rollout.save=true and an on-policy method.")
    steps: dict[int, dict[int, Group]] = {}
    for (step, group, _), row in sorted(newest.items()):
        steps.setdefault(step, {}).setdefault(group, []).append(_sample(row, problems))
    return {step: list(groups.values()) for step, groups in steps.items()}


def write_selected(folder: Path, groups: Sequence[Group]) -> None:
    """Keep the data set that was selected, whole or not at all; the order in a group says what a sample is for.

    Raises:
        RunFailed: it cannot be written.
    """
    rows = rows_of(SELECTING, groups)
    write_atomic(folder / SELECTED, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def has_selected(folder: Path) -> bool:
    """Whether the run has chosen its data set already."""
    return (folder / SELECTED).is_file()


def read_selected(folder: Path, problems: Mapping[str, Problem]) -> list[Group]:
    """The data set of `write_selected`, in its order."""
    groups: dict[int, Group] = {}
    for row in read_lines(folder / SELECTED):
        groups.setdefault(row["group"], []).append(_sample(row, problems))
    return list(groups.values())


def _sample(row: Mapping[str, Any], problems: Mapping[str, Problem]) -> Any:
    from onpol_cli.methods.base import Sample

    name = str(row["problem_id"])
    prompt, completion = tuple(row["prompt_ids"]), tuple(row["completion_ids"])
    rollout = Rollout(
        name,
        row["sample"],
        prompt,
        completion,
        tuple(row["sampler_logprobs"]),
        Finish(row["finish"]),
        row["text"],
        row["weight_version"],
    )
    grade = None
    if row["outcome"] is not None:
        distance = row.get("excess_levenshtein")
        grade = Grade(Outcome(row["outcome"]), float(row["reward"]), excess_levenshtein=distance)
    return Sample(problems.get(name, Problem(name, "", None)), prompt, completion, rollout, grade)


def tokens(groups: Iterable[Group]) -> int:
    """Completion tokens of all samples."""
    return sum(len(sample.completion_ids) for group in groups for sample in group)
