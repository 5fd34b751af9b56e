"""HumanEvalFix: 164 HumanEval functions with a bug planted by people. A minimal-edit bench.

Owns the record format of HumanEvalPack's Python part (bigcode/humanevalpack, MIT) and the jobs. Prompt
and grade are those of every edit bench. Source: Muennighoff et al. 2023, arXiv:2308.07124.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from onpol_cli.core.records import check_unique, read_records, require_fields
from onpol_cli.core.types import Problem
from onpol_cli.sandbox.jobs import Job
from onpol_cli.tasks.edit_bench import edit_bench
from onpol_cli.tasks.humaneval import helpers_of
from onpol_cli.tasks.minimal_edit.prompts import EditPrompts
from onpol_cli.tasks.minimal_edit.testing import EditTests, parameters_of
from onpol_cli.tasks.programs import BENCH_CPU_S, ProgramTask, Runner

FIELDS: dict[str, type | tuple[type, ...]] = {
    "task_id": str,
    "declaration": str,
    "canonical_solution": str,
    "buggy_solution": str,
    "entry_point": str,
    "test": str,
}


def load(path: Path) -> list[Problem]:
    """Problems of a HumanEvalPack file.

    Raises:
        OnpolError: unreadable, a field is missing or empty, or an id occurs twice.
    """
    records = read_records(path)
    for number, record in enumerate(records, 1):
        require_fields(f"{path}, record {number}", record, FIELDS)
    check_unique(path, [record["task_id"] for record in records])
    return [_problem(record) for record in records]


def _problem(record: Mapping[str, Any]) -> Problem:
    head, entry = record["declaration"], record["entry_point"]
    bug = record.get("bug_type")
    return Problem(
        problem_id=record["task_id"],
        statement=str(record.get("docstring") or record.get("text") or ""),
        tests=EditTests(
            kind="assert",
            source=_without_last_call(record["test"], entry),
            entry_point=entry,
            preamble=helpers_of(head + "    pass\n", entry),
            parameters=parameters_of(head + "    pass\n", entry),
        ),
        original=head + record["canonical_solution"],
        corrupted=head + record["buggy_solution"],
        entry_point=entry,
        families=(str(bug),) if bug else (),
    )


def _without_last_call(script: str, entry: str) -> str:
    """The script without its own `check(function)`: the sandbox calls `check`, and once is enough."""
    return script.strip().removesuffix(f"check({entry})").strip() + "\n"


def make_job(problem: Problem, code: str) -> Job:
    """The job that tests the function of `code`."""
    return cast(EditTests, problem.tests).job(code, cpu_s=BENCH_CPU_S)


def build(path: Path, sandbox: Runner, prompts: EditPrompts) -> ProgramTask:
    """The bench with the problems of `path`."""
    return edit_bench("humanevalfix", load(path), sandbox, prompts, make_job)
