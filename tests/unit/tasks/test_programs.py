"""Grading through a runner: identical programs of one problem run once, everything gets its grade."""

from onpol_cli.core.types import Completion, Outcome, Problem
from onpol_cli.sandbox.jobs import CallJob, Status, Verdict
from onpol_cli.tasks.programs import grade_programs


class Recorder:
    """A runner that passes programs holding "good" and remembers what it ran."""

    def __init__(self) -> None:
        self.sources: list[str] = []

    def run(self, jobs, on_verdict=None):
        verdicts = [Verdict(Status.PASSED if "good" in job.source else Status.FAILED) for job in jobs]
        self.sources += [job.source for job in jobs]
        for position, verdict in reversed(list(enumerate(verdicts))):
            on_verdict(position, verdict)
        return verdicts


def job(problem, code):
    return CallJob(source=code, entry_point="f", calls=((1,),), expected=(1,))


def test_equal_programs_of_a_problem_run_once():
    one, two = Problem("one", "", None), Problem("two", "", None)
    good, bad = (Completion(f"def f(x):\n    return x  # {word}", is_code=True) for word in ("good", "bad"))
    items = [(one, good), (one, bad), (one, good), (two, good), (one, Completion("")), (one, good)]
    runner, told = Recorder(), []
    grades = grade_programs(runner, items, job, on_grade=lambda index, grade: told.append(index))
    passed = [grade.outcome is Outcome.PASSED for grade in grades]
    assert passed == [True, False, True, True, False, True]
    assert grades[4].outcome is Outcome.NO_ANSWER
    assert len(runner.sources) == 3
    assert sorted(told) == list(range(6))
