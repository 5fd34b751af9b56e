"""What every bench of programs shares: from completions through the sandbox to grades, one by one.

Owns the streaming of jobs, the outcome of a verdict, and the grade of a generated program. The job of a
problem is each bench's own; grades of edits are `minimal_edit.grading`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from onpol_cli.core.types import Completion, Grade, Outcome, Problem
from onpol_cli.sandbox.jobs import Job, Status, Verdict
from onpol_cli.tasks.extraction import extract_code

Item = tuple[Problem, Completion]
OnGrade = Callable[[int, Grade], None]
MakeJob = Callable[[Problem, str], Job]
MakeGrade = Callable[[Problem, Completion, Verdict | None], Grade]
"""Grade of a completion; the verdict is None when it holds no code."""

BATCH = 1024
"""Most items whose jobs exist at once: a long queue keeps every worker busy."""
BATCH_BYTES = 256 * 1024 * 1024
"""Most bytes of test data in them, so that the parent's memory stays flat."""


class Runner(Protocol):
    """What is needed of the sandbox."""

    def run(self, jobs: Sequence[Job], on_verdict: Callable[[int, Verdict], None] | None = None) -> list[Verdict]:
        """Verdicts in the order of `jobs`; `on_verdict(index, verdict)` as each is known."""
        ...


def code_of(completion: Completion) -> str | None:
    """The program in `completion`, None if there is none."""
    code = completion.text if completion.is_code else extract_code(completion.text)
    return code if code is not None and code.strip() else None


def outcome_of(completion: Completion, verdict: Verdict | None) -> Outcome:
    """How the answer ended. A cut answer that passes all the same counts as passed."""
    if verdict is not None and verdict.status is Status.PASSED:
        return Outcome.PASSED
    if completion.truncated:
        return Outcome.TRUNCATED
    return Outcome.NO_ANSWER if verdict is None else Outcome(verdict.status.value)


def generated_grade(problem: Problem, completion: Completion, verdict: Verdict | None) -> Grade:
    """Grade of a generated program: reward 1 if it passes all tests, else 0."""
    outcome = outcome_of(completion, verdict)
    return Grade(
        outcome=outcome,
        reward=1.0 if outcome is Outcome.PASSED else 0.0,
        code=code_of(completion),
        detail=verdict.detail if verdict is not None else "no code in the answer",
        wall_timeout=verdict is not None and verdict.wall_timeout,
    )


def grade_programs(
    sandbox: Runner,
    items: Sequence[Item],
    make_job: MakeJob,
    make_grade: MakeGrade = generated_grade,
    on_grade: OnGrade | None = None,
) -> list[Grade]:
    """Run all items that hold code and grade everything.

    Args:
        sandbox: runs the jobs.
        items: problems with completions.
        make_job: the job that tests a program against a problem.
        make_grade: turns a verdict into a grade.
        on_grade: told (index, grade) as each is known, in any order.

    Returns:
        Grades in the order of `items`.
    """
    grades: list[Grade | None] = [None] * len(items)

    def settle(index: int, verdict: Verdict | None) -> None:
        grade = make_grade(*items[index], verdict)
        grades[index] = grade
        if on_grade:
            on_grade(index, grade)

    for batch in _batches(items):
        jobs: list[Job] = []
        places: list[int] = []
        for index in batch:
            code = code_of(items[index][1])
            if code is None:
                settle(index, None)
            else:
                jobs.append(make_job(items[index][0], code))
                places.append(index)
        if jobs:
            _run(sandbox, jobs, places, settle)
    assert all(grade is not None for grade in grades), "the sandbox answers every job"
    return [grade for grade in grades if grade is not None]


def _run(sandbox: Runner, jobs: Sequence[Job], places: Sequence[int], settle: Callable[[int, Verdict], None]) -> None:
    """Run jobs that stand for the items at `places`."""
    sandbox.run(jobs, on_verdict=lambda position, verdict: settle(places[position], verdict))


def _batches(items: Sequence[Item]) -> Iterator[range]:
    """Ranges of items of bounded number and bounded size of tests (`tests.size`, where they have one)."""
    start, size = 0, 0
    for index, (problem, _) in enumerate(items):
        weight = int(getattr(problem.tests, "size", 0))
        if index > start and (index - start >= BATCH or size + weight > BATCH_BYTES):
            yield range(start, index)
            start, size = index, 0
        size += weight
    yield range(start, len(items))
