"""Outcome, fidelity and reward of one answer."""

from __future__ import annotations

import pytest

from onpol_cli.core.types import Completion, Outcome, Problem
from onpol_cli.sandbox.jobs import Status, Verdict
from onpol_cli.tasks.minimal_edit.grading import FAIL_REWARD, PASS_REWARD, edit_grade

ORIGINAL, CORRUPTED = "def f(a, b):\n    return a + b", "def f(a, b):\n    return a - b"
PROBLEM = Problem("p", "Add.", tests=None, original=ORIGINAL, corrupted=CORRUPTED, families=("arithmetic_operators",))
PASSED, FAILED = Verdict(Status.PASSED), Verdict(Status.FAILED, detail="test 0")


def _answer(code: str, truncated: bool = False) -> Completion:
    return Completion(f"Here:\n```python\n{code}\n```", truncated)


def test_the_exact_reversal_earns_the_full_reward() -> None:
    grade = edit_grade(PROBLEM, _answer(ORIGINAL), PASSED)
    assert (grade.outcome, grade.reward, grade.excess_levenshtein, grade.added_cc) == (
        Outcome.PASSED,
        PASS_REWARD,
        0,
        0,
    )
    assert grade.code == ORIGINAL
    assert grade.extra == {"exact_reversal": True, "pass_below_fail": False}


def test_a_pass_is_paid_by_what_it_changes_beyond_the_reversal() -> None:
    grade = edit_grade(PROBLEM, _answer("def f(a, b):\n    return b + a"), PASSED)
    # tokens: def f ( a , b ) : NEWLINE return a - b NEWLINE; three of 14 differ, one of 14 in the original
    assert grade.excess_levenshtein == pytest.approx(2 / 14)
    assert grade.reward == pytest.approx(PASS_REWARD - 2 / 14)


def test_a_pass_that_rewrites_everything_is_paid_less_than_a_failure_and_flagged() -> None:
    rewrite = (
        "import functools\n\n\ndef f(*args):\n    if not args:\n        raise ValueError(args)\n    return sum(args)"
    )
    grade = edit_grade(PROBLEM, _answer(rewrite), PASSED)
    assert grade.reward < FAIL_REWARD
    assert grade.extra == {"exact_reversal": False, "pass_below_fail": True}
    assert grade.added_cc == 1


@pytest.mark.parametrize(
    ("status", "truncated", "outcome"),
    [
        (Status.FAILED, False, Outcome.FAILED),
        (Status.TIMEOUT, False, Outcome.TIMEOUT),
        (Status.ERROR, False, Outcome.ERROR),
        (Status.FAILED, True, Outcome.TRUNCATED),
        (Status.PASSED, True, Outcome.PASSED),
    ],
)
def test_outcomes_and_the_reward_of_what_does_not_pass(status: Status, truncated: bool, outcome: Outcome) -> None:
    grade = edit_grade(PROBLEM, _answer(ORIGINAL, truncated), Verdict(status))
    assert grade.outcome is outcome
    assert grade.reward == (PASS_REWARD if outcome is Outcome.PASSED else FAIL_REWARD)
    assert grade.excess_levenshtein == 0.0


def test_an_answer_that_does_not_parse_has_a_distance_but_no_complexity() -> None:
    grade = edit_grade(PROBLEM, _answer("def f(a, b):\n    return a +"), Verdict(Status.ERROR, "SyntaxError"))
    assert isinstance(grade.excess_levenshtein, float)
    assert grade.added_cc is None
    assert grade.detail == "SyntaxError"


@pytest.mark.parametrize(("truncated", "outcome"), [(False, Outcome.NO_ANSWER), (True, Outcome.TRUNCATED)])
def test_no_code_no_measures(truncated: bool, outcome: Outcome) -> None:
    grade = edit_grade(PROBLEM, Completion("I do not know.", truncated), None)
    assert (grade.outcome, grade.reward, grade.code) == (outcome, FAIL_REWARD, None)
    assert grade.excess_levenshtein is None
    assert grade.added_cc is None


def test_code_from_an_answers_file_is_taken_as_it_stands() -> None:
    assert edit_grade(PROBLEM, Completion(ORIGINAL, is_code=True), FAILED).code == ORIGINAL
