"""What every bench of programs shares: from completions through the sandbox to grades, one by one.

Owns the streaming of jobs, the outcome of a verdict, the grade of a generated program, and the task object
of benches that are no more than problems, prompt and job. Job and prompt are each bench's own; grades of
edits are `minimal_edit.grading`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.types import Completion, Grade, Message, Outcome, Problem
from onpol_cli.sandbox.jobs import Job, Status, Verdict
from onpol_cli.tasks.extraction import extract_code

Item = tuple[Problem, Completion]
OnGrade = Callable[[int, Grade], None]
MakeJob = Callable[[Problem, str], Job]
FindCode = Callable[[Problem, Completion], str | None]
MakeGrade = Callable[[Problem, Completion, Verdict | None], Grade]
"""Grade of a completion; the verdict is None when it holds no code."""

BENCH_CPU_S = 10.0
"""CPU seconds of a program in the public benches, whatever limit an experiment sets for its own task. Of
their solutions the slowest takes about 3 s."""
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


def _default_code(problem: Problem, completion: Completion) -> str | None:
    return code_of(completion)


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
    find_code: FindCode = _default_code,
) -> list[Grade]:
    """Run all items that hold code and grade everything.

    Args:
        sandbox: runs the jobs.
        items: problems with completions.
        make_job: the job that tests a program against a problem.
        make_grade: turns a verdict into a grade.
        on_grade: told (index, grade) as each is known, in any order.
        find_code: the program in a completion.

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
        codes = {index: find_code(*items[index]) for index in batch}
        todo = [(index, code) for index, code in codes.items() if code is not None]
        for index in codes.keys() - dict(todo).keys():
            settle(index, None)
        shared = _same_programs(items, todo)
        if shared:
            jobs = [make_job(items[places[0]][0], codes[places[0]] or "") for places in shared]
            _run(sandbox, jobs, shared, settle)
    assert all(grade is not None for grade in grades), "the sandbox answers every job"
    return [grade for grade in grades if grade is not None]


def _same_programs(items: Sequence[Item], todo: Sequence[tuple[int, str]]) -> list[list[int]]:
    """Places of items by (problem, program): rollouts of one prompt often agree, and one run serves them all."""
    places: dict[tuple[int, str], list[int]] = {}
    for index, code in todo:
        places.setdefault((id(items[index][0]), code), []).append(index)
    return list(places.values())


def _run(
    sandbox: Runner, jobs: Sequence[Job], places: Sequence[Sequence[int]], settle: Callable[[int, Verdict], None]
) -> None:
    """Run jobs; each stands for all the items at its places."""

    def told(position: int, verdict: Verdict) -> None:
        for place in places[position]:
            settle(place, verdict)

    sandbox.run(jobs, on_verdict=told)


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


class ProgramTask:
    """A bench with test problems only. Implements `protocol.Task`."""

    def __init__(
        self,
        name: str,
        problems: Sequence[Problem],
        sandbox: Runner,
        *,
        make_job: MakeJob,
        messages: Callable[[Problem], list[Message]],
        make_grade: MakeGrade = generated_grade,
        find_code: FindCode = _default_code,
    ) -> None:
        """
        Args:
            name: of the bench.
            problems: what is graded.
            sandbox: where programs run.
            make_job: the job that tests a program.
            messages: the prompt.
            make_grade: turns a verdict into a grade.
            find_code: the program in a completion.
        """
        self.name = name
        self._problems = list(problems)
        self._sandbox = sandbox
        self._make_job = make_job
        self._messages = messages
        self._make_grade = make_grade
        self._find_code = find_code

    def problems(self, split: str) -> list[Problem]:
        """The problems.

        Raises:
            OnpolError: another split than "test".
        """
        if split != "test":
            raise OnpolError(f"{self.name} has no split {split!r}: it is a bench, for evaluation only (split test).")
        return list(self._problems)

    def messages(self, problem: Problem) -> list[Message]:
        """The chat that asks for an answer."""
        return self._messages(problem)

    def reference(self, problem: Problem) -> str:
        """The correct solution as an answer.

        Raises:
            OnpolError: none is known.
        """
        if problem.original is None:
            raise OnpolError(f"{self.name} has no reference solutions: it cannot be trained on.")
        return f"```python\n{problem.original.strip()}\n```"

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        """Verdicts in the order of `items`."""
        return self.grade_each(items)

    def grade_each(self, items: Sequence[Item], on_grade: OnGrade | None = None) -> list[Grade]:
        """As `grade`, reporting each grade when it is known."""
        return grade_programs(self._sandbox, items, self._make_job, self._make_grade, on_grade, self._find_code)
