"""Grading many answers so that an interruption loses almost nothing.

Owns the order of work: answers are graded as a stream or in chunks, and every line is written as soon as
it and all before it are known. Ctrl-C writes what is known out of order, too; the same command skips all
of it and goes on.
What a grade is, is the task's; what a line holds is `records`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.types import Completion, Grade, Problem
from onpol_cli.evaluation.records import Key, Row, answer_key, sample_row
from onpol_cli.tasks.answers import Answer
from onpol_cli.tasks.protocol import Task

CHUNK = 64
"""Answers handed at once to a task that cannot report single grades."""

Write = Callable[[Sequence[Row]], None]
"""Appends lines to samples.jsonl and flushes."""
Progress = Callable[[int, int], None]
"""Told (answers graded, answers in all) after each write."""
OnGrade = Callable[[int, Grade], None]


@runtime_checkable
class Streaming(Protocol):
    """A task that reports each grade when it is known, in any order."""

    def grade_each(self, items: Sequence[tuple[Problem, Completion]], on_grade: OnGrade) -> list[Grade]:
        """As `Task.grade`; calls `on_grade(index, grade)` once an item."""
        ...


def grade_answers(
    task: Task,
    answers: Sequence[Answer],
    write: Write,
    *,
    done: Mapping[Key, Row] | None = None,
    on_progress: Progress | None = None,
) -> list[Row]:
    """Grade `answers` that are not in `done` and write their lines in order.

    Args:
        task: grades; `task.name` is the bench of the lines.
        answers: in the order in which lines are written.
        write: appends lines (`RunDir.append`).
        done: lines of an earlier attempt, from `records.read_done`.
        on_progress: told the counts, once before the start and after each write.

    Returns:
        All lines of `answers`, in order, old and new.

    Raises:
        OnpolError: a line of `done` belongs to another completion of the same number.
    """
    old = dict(done or {})
    rows: list[Row | None] = [_known(task.name, answer, old) for answer in answers]
    todo = [index for index, row in enumerate(rows) if row is None]
    tell = on_progress or (lambda graded, total: None)
    tell(len(rows) - len(todo), len(rows))
    ready = _InOrder(len(todo), write)

    def graded(position: int, grade: Grade) -> None:
        index = todo[position]
        row = sample_row(task.name, answers[index], grade)
        rows[index] = row
        ready.put(position, row)
        tell(len(rows) - len(todo) + ready.written, len(rows))

    items = [(answers[index].problem, answers[index].completion) for index in todo]
    try:
        if isinstance(task, Streaming):
            task.grade_each(items, graded)
        else:
            _in_chunks(task, items, graded)
    finally:
        ready.write_rest()
    return [row for row in rows if row is not None]


def _in_chunks(task: Task, items: Sequence[tuple[Problem, Completion]], graded: OnGrade) -> None:
    for start in range(0, len(items), CHUNK):
        grades = task.grade(items[start : start + CHUNK])
        for position, grade in enumerate(grades, start):
            graded(position, grade)


def _known(bench: str, answer: Answer, done: Mapping[Key, Row]) -> Row | None:
    row = done.get(answer_key(bench, answer))
    if row is not None and row.get("completion") != answer.completion.text:
        raise OnpolError(
            f"The run directory already holds a grade of another answer to {bench} problem "
            f"{answer.problem.problem_id!r}, sample {answer.sample}. Choose another --run-dir for these answers."
        )
    return row


class _InOrder:
    """Writes rows in order of position although they arrive in any order."""

    def __init__(self, total: int, write: Write) -> None:
        self.total = total
        self.write = write
        self.written = 0
        self._waiting: dict[int, Row] = {}

    def put(self, position: int, row: Row) -> None:
        """Take one row; write it and its successors if all before it are written."""
        self._waiting[position] = row
        batch: list[Row] = []
        while self.written + len(batch) in self._waiting:
            batch.append(self._waiting.pop(self.written + len(batch)))
        if batch:
            self.write(batch)
            self.written += len(batch)

    def write_rest(self) -> None:
        """Write what waits for lines that will not come any more (nothing, unless interrupted)."""
        if self._waiting:
            self.write([self._waiting[position] for position in sorted(self._waiting)])
            self._waiting.clear()
