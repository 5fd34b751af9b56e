"""Grading answers from a file on one or several benches: what `onpol eval --answers FILE` does.

Owns the sequence read, check everything, grade, summarise. The stage opens the run directory and the
sandbox, builds the tasks and shows the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from onpol_cli.core.types import Problem
from onpol_cli.evaluation.grading import Progress, Write, grade_answers
from onpol_cli.evaluation.records import Row, read_done
from onpol_cli.evaluation.summary import summarise
from onpol_cli.tasks.answers import Answer, match_answers, read_answers
from onpol_cli.tasks.protocol import Task


@runtime_checkable
class Exporting(Protocol):
    """A task that also writes its grades in another project's format."""

    def export(self, folder: Path, rows: Sequence[Row]) -> None:
        """Write `rows` into `folder`."""
        ...


@dataclass(frozen=True)
class Plan:
    """Checked work: every answer has its problem and, unless partial, every problem its answer.

    Attributes:
        tasks: by bench name.
        problems: all problems of each bench.
        answers: those to grade, by bench.
    """

    tasks: Mapping[str, Task]
    problems: Mapping[str, Sequence[Problem]]
    answers: Mapping[str, Sequence[Answer]]


def plan_answers(tasks: Sequence[Task], answers_file: Path, *, partial: bool = False, split: str = "test") -> Plan:
    """Read `answers_file` and match it with the problems of `tasks`. Writes nothing.

    Raises:
        OnpolError: bad file, unknown problem, missing answer (see `tasks.answers`).
    """
    raws = read_answers(answers_file)
    problems = {task.name: task.problems(split) for task in tasks}
    left_out: set[str] = set()
    for task in tasks:
        left_out |= set(getattr(task, "left_out", ()))
    matched = match_answers(raws, problems, partial=partial, left_out=left_out)
    return Plan({task.name: task for task in tasks}, problems, matched)


def evaluate_answers(
    plan: Plan,
    samples_file: Path,
    write: Write,
    *,
    on_progress: Progress | None = None,
    on_bench: Callable[[str], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Grade a plan into `samples_file` and summarise it.

    Args:
        plan: from `plan_answers`.
        samples_file: samples.jsonl of the run directory; what it already holds is not graded again.
        write: appends lines to that file.
        on_progress: told (graded, total) of the bench at work.
        on_bench: told the name of each bench as its grading starts.

    Returns:
        By bench name, what `summary.summarise` gives.

    Raises:
        OnpolError: the file holds grades of other answers.
    """
    done = read_done(samples_file)
    summaries = {}
    for name, task in plan.tasks.items():
        if on_bench:
            on_bench(name)
        rows = grade_answers(task, plan.answers[name], write, done=done, on_progress=on_progress)
        if isinstance(task, Exporting):
            task.export(samples_file.parent, rows)
        summaries[name] = summarise(plan.problems[name], rows)
    return summaries
