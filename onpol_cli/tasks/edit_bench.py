"""Benches of repaired functions that others made: their prompt and grade are Minimal Code Edit's.

Owns the one constructor that HumanEvalFix and QuixBugs share.
"""

from __future__ import annotations

from collections.abc import Sequence

from onpol_cli.core.types import Problem
from onpol_cli.tasks.minimal_edit.grading import edit_grade
from onpol_cli.tasks.minimal_edit.prompts import EditPrompts
from onpol_cli.tasks.programs import MakeJob, ProgramTask, Runner


def edit_bench(
    name: str, problems: Sequence[Problem], sandbox: Runner, prompts: EditPrompts, make_job: MakeJob
) -> ProgramTask:
    """A bench that shows statement and broken function, and grades tests and size of the edit.

    Args:
        name: of the bench.
        problems: with `original` and `corrupted`.
        sandbox: where answers run.
        prompts: how problems are put to a model.
        make_job: the job that tests an answer.
    """
    return ProgramTask(
        name,
        problems,
        sandbox,
        make_job=make_job,
        messages=lambda problem: prompts.messages(problem.statement, problem.corrupted or ""),
        make_grade=edit_grade,
    )
