"""The lines of samples.jsonl: one graded completion each, a stable contract for people's scripts.

Owns the layout of a line and reading back what an interrupted grading left. Appending is the run
directory's (`runs.rundir`), grading is `grading`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onpol_cli.core.types import Grade, Problem
from onpol_cli.runs.rundir import read_lines
from onpol_cli.tasks.answers import Answer

Row = dict[str, Any]
Key = tuple[str, str, int, float | None]
"""(bench, problem id, sample, temperature or None)."""

_COPIED_META = ("difficulty", "platform", "contest_date", "erratum", "original_passes")


def sample_row(bench: str, answer: Answer, grade: Grade) -> Row:
    """The line of one graded answer.

    `bench, problem_id, sample, outcome, reward, completion, code, detail` always;
    `excess_levenshtein, added_cc, families` for edit benches (null where undefined); difficulty,
    platform, date and whether the original passes here, where that is known; then the grade's and the
    answer's extra keys.
    """
    problem = answer.problem
    row: Row = {
        "bench": bench,
        "problem_id": problem.problem_id,
        "sample": answer.sample,
        "outcome": grade.outcome.value,
        "reward": grade.reward,
        "completion": answer.completion.text,
    }
    if problem.corrupted is not None:
        row |= {
            "excess_levenshtein": grade.excess_levenshtein,
            "added_cc": grade.added_cc,
            "families": list(problem.families),
        }
    row |= {name: problem.meta[name] for name in _COPIED_META if problem.meta.get(name) is not None}
    row |= {"code": grade.code, "detail": grade.detail, "wall_timeout": grade.wall_timeout}
    return {**row, **_new(row, grade.extra), **_new(row, answer.extra)}


def _new(row: Row, extra: Mapping[str, Any]) -> Row:
    """Entries of `extra` that do not replace a key of the contract."""
    return {key: value for key, value in extra.items() if key not in row}


def problem_row(bench: str, problem: Problem) -> Row:
    """What later tables need to know of a problem: ids, families, statement, both codes, labels."""
    return {
        "bench": bench,
        "problem_id": problem.problem_id,
        "statement": problem.statement,
        "original": problem.original,
        "corrupted": problem.corrupted,
        "families": list(problem.families),
        **{name: problem.meta[name] for name in _COPIED_META if problem.meta.get(name) is not None},
    }


def key_of(row: Mapping[str, Any]) -> Key:
    """What identifies an answer within a run."""
    temperature = row.get("temperature")
    return row["bench"], str(row["problem_id"]), int(row["sample"]), None if temperature is None else float(temperature)


def answer_key(bench: str, answer: Answer) -> Key:
    """`key_of` the line that `answer` will have."""
    temperature = answer.extra.get("temperature")
    return bench, answer.problem.problem_id, answer.sample, None if temperature is None else float(temperature)


def read_done(path: Path) -> dict[Key, Row]:
    """Lines of an earlier, interrupted grading by key; {} when there is no file.

    A torn last line (the process was killed while writing it) is cut off the file, so that what is
    appended next starts on a line of its own.
    """
    if not path.is_file():
        return {}
    _cut_torn_tail(path)
    return {key_of(row): row for row in read_lines(path)}


def _cut_torn_tail(path: Path) -> None:
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        keep = size
        while keep and _byte(file, keep - 1) != b"\n":
            keep -= 1
        if keep < size:
            file.truncate(keep)


def _byte(file: Any, place: int) -> bytes:
    file.seek(place)
    return bytes(file.read(1))
