"""HumanEval: 164 functions to be written from signature and docstring. A forgetting bench.

Owns the record format of `HumanEval.jsonl.gz` (openai/human-eval, MIT), the prompt and the jobs.
Answers may be a whole program, or only the body that continues the prompt, as in the original.
Source: Chen et al. 2021, arXiv:2107.03374.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace
from pathlib import Path

from onpol_cli.core.records import check_unique, read_records, require_fields
from onpol_cli.core.types import Completion, Grade, Message, Problem
from onpol_cli.sandbox.jobs import AssertJob, Job, Verdict
from onpol_cli.tasks.programs import BENCH_CPU_S, ProgramTask, Runner, code_of, generated_grade

FIELDS: dict[str, type | tuple[type, ...]] = {
    "task_id": str,
    "prompt": str,
    "entry_point": str,
    "canonical_solution": str,
    "test": str,
}


@dataclass(frozen=True)
class CheckTests:
    """A test script.

    Attributes:
        script: defines `check(candidate)`.
        helpers: imports and helper functions that the statement shows above the function.
    """

    script: str
    helpers: str


def load(path: Path) -> list[Problem]:
    """Problems of a HumanEval file.

    Raises:
        OnpolError: unreadable, a field is missing or empty, or an id occurs twice.
    """
    records = read_records(path)
    for number, record in enumerate(records, 1):
        require_fields(f"{path}, record {number}", record, FIELDS)
    check_unique(path, [record["task_id"] for record in records])
    return [
        Problem(
            problem_id=record["task_id"],
            statement=record["prompt"],
            tests=CheckTests(record["test"], helpers_of(record["prompt"] + "    pass\n", record["entry_point"])),
            original=record["prompt"] + record["canonical_solution"],
            entry_point=record["entry_point"],
        )
        for record in records
    ]


def helpers_of(source: str, entry_point: str) -> str:
    """`source` without the function `entry_point`; "" if it does not parse."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    kept = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == entry_point)]
    return "\n".join(ast.unparse(node) for node in kept)


def defines(code: str, name: str) -> bool:
    """Whether `code` parses and binds `name` by a definition or an assignment at its first level."""
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    named = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    targets = (target for node in body if isinstance(node, ast.Assign) for target in node.targets)
    return name in named | {target.id for target in targets if isinstance(target, ast.Name)}


def find_code(problem: Problem, completion: Completion) -> str | None:
    """The program in `completion`, or its whole text where that continues the prompt (an indented body)."""
    code = code_of(completion)
    if code is None and completion.text.strip() and defines(problem.statement + completion.text, _entry(problem)):
        return completion.text
    return code


def _entry(problem: Problem) -> str:
    assert problem.entry_point is not None
    return problem.entry_point


def make_job(problem: Problem, code: str) -> Job:
    """The job that runs `check` on the function of `code`, which may be a bare continuation of the prompt."""
    entry, continued = _entry(problem), problem.statement + code
    whole = defines(code, entry) or not defines(continued, entry)
    return AssertJob(
        source=code if whole else continued,
        test_source=problem.tests.script,
        entry_point=entry,
        preamble=problem.tests.helpers,
        cpu_s=BENCH_CPU_S,
    )


def messages(problem: Problem) -> list[Message]:
    """The signature with its docstring, and how to answer."""
    text = (
        "Complete this Python function. Answer with the complete function, imports included, in one "
        f"```python block.\n\n```python\n{problem.statement.rstrip()}\n```"
    )
    return [{"role": "user", "content": text}]


def make_grade(problem: Problem, completion: Completion, verdict: Verdict | None) -> Grade:
    """The usual grade of a generated program, with the code that was found here."""
    return replace(generated_grade(problem, completion, verdict), code=find_code(problem, completion))


def build(path: Path, sandbox: Runner) -> ProgramTask:
    """The bench with the problems of `path`."""
    return ProgramTask(
        "humaneval",
        load(path),
        sandbox,
        make_job=make_job,
        messages=messages,
        make_grade=make_grade,
        find_code=find_code,
    )
