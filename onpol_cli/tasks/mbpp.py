"""MBPP, the sanitized half: 427 short functions from one sentence each. A forgetting bench.

Owns the record format of `sanitized-mbpp.json` (google-research, CC-BY-4.0), the prompt and the jobs.
Its `task_id` is a number; `problem_id` is that number as text. Source: Austin et al. 2021, arXiv:2108.07732.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.records import check_unique, read_records, require_fields
from onpol_cli.core.types import Message, Problem
from onpol_cli.sandbox.jobs import Job
from onpol_cli.tasks.minimal_edit.testing import EditTests, parameters_of
from onpol_cli.tasks.programs import BENCH_CPU_S, ProgramTask, Runner

FIELDS: dict[str, type | tuple[type, ...]] = {
    "task_id": (int, str),
    "prompt": str,
    "code": str,
    "test_list": list,
}


def load(path: Path) -> list[Problem]:
    """Problems of a sanitized MBPP file.

    Raises:
        OnpolError: unreadable, a field is missing or empty, an id occurs twice, or no function is tested.
    """
    records = read_records(path)
    for number, record in enumerate(records, 1):
        require_fields(f"{path}, record {number}", record, FIELDS)
    check_unique(path, [str(record["task_id"]) for record in records])
    return [_problem(f"{path}, record {number}", record) for number, record in enumerate(records, 1)]


def _problem(where: str, record: Mapping[str, Any]) -> Problem:
    lines = tuple(record["test_list"])
    if not all(isinstance(line, str) for line in lines):
        raise OnpolError(f"{where} ({record['task_id']}): test_list must hold texts.")
    entry = _tested_function(where, record["code"], lines)
    return Problem(
        problem_id=str(record["task_id"]),
        statement=record["prompt"],
        tests=EditTests(
            kind="assert",
            source="\n".join([*_imports(record), *lines]),
            entry_point=entry,
            parameters=parameters_of(record["code"], entry),
        ),
        original=record["code"],
        entry_point=entry,
        meta={"test_list": list(lines)},
    )


def _imports(record: Mapping[str, Any]) -> list[str]:
    """Imports that the asserts need. Some rely on those of the reference solution (596: `sys`)."""
    body = ast.parse(record["code"]).body
    own = [ast.unparse(node) for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
    lines = list(dict.fromkeys([*(record.get("test_imports") or ()), *own]))
    modules = {alias.asname or alias.name for line in lines for node in ast.parse(line).body for alias in _names(node)}
    used = {node.id for node in ast.walk(ast.parse("\n".join(record["test_list"]))) if isinstance(node, ast.Name)}
    return lines if modules & used else []


def _names(node: ast.stmt) -> list[ast.alias]:
    return node.names if isinstance(node, (ast.Import, ast.ImportFrom)) else []


def _tested_function(where: str, code: str, lines: Sequence[str]) -> str:
    """The function of the reference solution that the tests call (the last defined of them)."""
    try:
        defined = [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
        used = {node.id for node in ast.walk(ast.parse("\n".join(lines))) if isinstance(node, ast.Name)}
    except SyntaxError as error:
        raise OnpolError(f"{where}: code or test_list is not Python ({error.msg}). Get the file again.") from error
    tested = [name for name in defined if name in used]
    if not tested:
        raise OnpolError(f"{where}: test_list calls no function that code defines. Remove the record.")
    return tested[-1]


def make_job(problem: Problem, code: str) -> Job:
    """The job that tests the function of `code`."""
    return cast(EditTests, problem.tests).job(code, cpu_s=BENCH_CPU_S)


def messages(problem: Problem) -> list[Message]:
    """The sentence, and the asserts, without which the function's name is unknown (as in the paper)."""
    tests = "\n".join(problem.meta["test_list"])
    text = (
        f"{problem.statement.strip()}\n\nThe function must pass these tests:\n\n```python\n{tests}\n```\n\n"
        "Answer with the complete function, imports included, in one ```python block."
    )
    return [{"role": "user", "content": text}]


def build(path: Path, sandbox: Runner) -> ProgramTask:
    """The bench with the problems of `path`."""
    return ProgramTask("mbpp", load(path), sandbox, make_job=make_job, messages=messages)
