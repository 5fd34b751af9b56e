"""The grade of an edit: outcome, fidelity and the reward of the paper, in one object.

Every task that asks for a repaired function (Minimal Code Edit, the procedural world, HumanEvalFix,
QuixBugs) grades through `edit_grade`, so that training reward and evaluation are the same numbers.
Runs nothing: the verdict comes from the sandbox.
"""

from __future__ import annotations

from typing import Any

from onpol_cli.core.types import Completion, Grade, Outcome, Problem
from onpol_cli.sandbox.jobs import Verdict
from onpol_cli.tasks.minimal_edit.fidelity import distance, fidelity
from onpol_cli.tasks.programs import code_of, outcome_of

PASS_REWARD = 0.1
"""Reward of a passing answer as small as the true reversal."""
FAIL_REWARD = -0.2
"""Reward of everything that does not pass."""


def edit_reward(passed: bool, excess: float | None) -> float:
    """The paper's reward: `0.1 - excess` for a pass, `-0.2` otherwise.

    A pass whose excess is above 0.3 is paid less than a failure; kept as published and flagged in
    the grade. Source: github.com/nreHieW/over-editing.
    """
    if not passed:
        return FAIL_REWARD
    assert excess is not None, "an answer that passes has code"
    return PASS_REWARD - excess


def edit_grade(problem: Problem, completion: Completion, verdict: Verdict | None) -> Grade:
    """Grade one answer to an edit problem (a `programs.MakeGrade`).

    Args:
        problem: with `original` and `corrupted`.
        completion: the answer; its code is extracted here.
        verdict: how its tests ended, None where there is no code to run.

    Returns:
        A grade whose `excess_levenshtein` is a number for every answer that has code, parsing or
        not; `extra["exact_reversal"]` says that its tokens are the original's, `extra["pass_below_fail"]`
        that it passes and is paid less than a failure.
    """
    assert problem.original is not None and problem.corrupted is not None, f"{problem.problem_id} is no edit problem"
    outcome = outcome_of(completion, verdict)
    code = code_of(completion)
    measured = fidelity(problem.original, problem.corrupted, code) if code is not None else None
    excess = measured.excess_levenshtein if measured else None
    reward = edit_reward(outcome is Outcome.PASSED, excess)
    return Grade(
        outcome=outcome,
        reward=reward,
        code=code,
        excess_levenshtein=excess,
        added_cc=measured.added_cc if measured else None,
        detail=verdict.detail if verdict is not None else "no code in the answer",
        wall_timeout=verdict is not None and verdict.wall_timeout,
        extra=_extra(problem, code, outcome is Outcome.PASSED and reward < FAIL_REWARD),
    )


def _extra(problem: Problem, code: str | None, pass_below_fail: bool) -> dict[str, Any]:
    """Further facts for samples.jsonl."""
    assert problem.original is not None
    reversal = code is not None and distance(problem.original, code) == 0
    return {"exact_reversal": reversal, "pass_below_fail": pass_below_fail}
