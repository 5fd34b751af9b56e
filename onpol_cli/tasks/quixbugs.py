"""QuixBugs: 40 classic algorithms with a one-line bug each, nine of them on graphs. A minimal-edit bench.

Owns the record format (one object a program: `buggy`, `correct`, `json_testcases`, `python_test`), the
translation of its pytest files into one script, and the jobs. Prompt and grade are those of every edit
bench. The tests that QuixBugs itself skips as too slow are skipped here too.
Source: jkoppel/QuixBugs (MIT); Lin et al. 2017, doi:10.1145/3135932.3135941.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.records import check_unique, read_records, require_fields
from onpol_cli.core.types import Problem
from onpol_cli.sandbox.jobs import AssertJob, Job
from onpol_cli.tasks.edit_bench import edit_bench
from onpol_cli.tasks.minimal_edit.prompts import EditPrompts
from onpol_cli.tasks.programs import BENCH_CPU_S, ProgramTask, Runner

FIELDS: dict[str, type | tuple[type, ...]] = {
    "task_id": str,
    "entry_point": str,
    "buggy": str,
    "correct": str,
    "python_test": str,
}
NODE_CLASS = '''
class Node:
    """A node of a linked list or graph, as the tests build it."""

    def __init__(
        self, value=None, successor=None, successors=(), predecessors=(), incoming_nodes=(), outgoing_nodes=()
    ):
        self.value = value
        self.successor = successor
        self.successors = list(successors)
        self.predecessors = list(predecessors)
        self.incoming_nodes = list(incoming_nodes)
        self.outgoing_nodes = list(outgoing_nodes)
'''

_PYTEST = """
import json


class _Skipped(Exception):
    pass


class _Approx:
    def __init__(self, expected, abs):
        self.low, self.high = expected - abs, expected + abs

    def __eq__(self, other):
        return self.low <= other <= self.high


class pytest:
    run_slow = False
    approx = _Approx

    class mark:
        @staticmethod
        def parametrize(names, rows):
            def keep(test):
                test.rows = rows
                return test
            return keep

    @staticmethod
    def skip(reason):
        raise _Skipped(reason)
"""
"""The little of pytest that the test files use."""

_RUN_ALL = """
for _name, _test in list(globals().items()):
    if _name.startswith("test") and callable(_test):
        for _row in getattr(_test, "rows", [()]):
            try:
                _test(*_row)
            except _Skipped:
                pass
"""


@dataclass(frozen=True)
class Script:
    """A problem's tests.

    Attributes:
        source: runs every test against the global `entry_point`.
        in_process: the tests build nodes and go on using them after a call, so calls must take and return
            the very objects, which no copy between processes can be.
    """

    source: str
    in_process: bool


def load(path: Path) -> list[Problem]:
    """Problems of a QuixBugs file, or of a checkout of its repository.

    Raises:
        OnpolError: unreadable, a field is missing or empty, an id occurs twice, or tests that do not parse.
    """
    records = read_checkout(path) if path.is_dir() else read_records(path)
    for number, record in enumerate(records, 1):
        require_fields(f"{path}, record {number}", record, FIELDS)
    check_unique(path, [record["task_id"] for record in records])
    return [_problem(f"{path}, record {number}", record) for number, record in enumerate(records, 1)]


def read_checkout(folder: Path) -> list[dict[str, Any]]:
    """Records from a checkout of jkoppel/QuixBugs: every program that has a test file, by name.

    Raises:
        OnpolError: the folder is something else.
    """
    records: list[dict[str, Any]] = []
    for test in sorted((folder / "python_testcases").glob("test_*.py")):
        name = test.stem.removeprefix("test_")
        sources = [folder / part / f"{name}.py" for part in ("python_programs", "correct_python_programs")]
        cases = folder / "json_testcases" / f"{name}.json"
        if all(source.is_file() for source in sources):
            buggy, correct = (source.read_text(encoding="utf-8") for source in sources)
            lines = cases.read_text(encoding="utf-8").splitlines() if cases.is_file() else []
            records.append(
                {
                    "task_id": f"QuixBugs/{name}",
                    "entry_point": name,
                    "buggy": buggy,
                    "correct": correct,
                    "json_testcases": [json.loads(line) for line in lines if line.strip()],
                    "python_test": test.read_text(encoding="utf-8"),
                }
            )
    if not records:
        raise OnpolError(
            f"{folder} is no checkout of QuixBugs (python_testcases/test_*.py with python_programs and "
            "correct_python_programs). Run: git clone https://github.com/jkoppel/QuixBugs"
        )
    return records


def _problem(where: str, record: Mapping[str, Any]) -> Problem:
    entry = record["entry_point"]
    try:
        original, _ = _split_comments(record["correct"])
        corrupted, texts = _split_comments(record["buggy"])
        script = _script(where, record["python_test"], record.get("json_testcases"))
    except SyntaxError as error:
        raise OnpolError(f"{where} ({entry}): correct, buggy or python_test is not Python ({error.msg}).") from error
    return Problem(
        problem_id=record["task_id"],
        statement=texts or f"The function `{entry}`.",
        tests=Script(script, in_process=_builds_nodes(record["python_test"])),
        original=original,
        corrupted=corrupted,
        entry_point=entry,
    )


def _builds_nodes(python_test: str) -> bool:
    return any(isinstance(node, ast.ImportFrom) and node.module == "node" for node in ast.parse(python_test).body)


def _split_comments(source: str) -> tuple[str, str]:
    """(code, text): the strings between and after the functions are description, not program."""
    lines = source.split("\n")
    texts = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            texts.append(node.value.value.strip())
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    return "\n".join(lines).strip() + "\n", "\n\n".join(texts)


class _Translate(ast.NodeTransformer):
    """Drops imports and the choice of program; lets the test data be read from `CASES`."""

    def visit_Import(self, node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        return None

    def visit_If(self, node: ast.If) -> ast.AST | None:
        if isinstance(node.test, ast.Attribute) and node.test.attr == "use_correct":
            return None
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id == "load_json_testcases":
            return ast.Name("CASES", ast.Load())
        return self.generic_visit(node)


def _script(where: str, python_test: str, cases: Any) -> str:
    """The test file as one script that needs no pytest."""
    tree = _Translate().visit(ast.parse(python_test))
    if not any(isinstance(node, ast.FunctionDef) and node.name.startswith("test") for node in tree.body):
        raise OnpolError(f"{where}: python_test defines no test function. Remove or complete the record.")
    tests = ast.unparse(ast.fix_missing_locations(tree))
    data = f"CASES = json.loads({json.dumps(cases or [])!r})\n"
    return _PYTEST + data + tests + "\n" + _RUN_ALL


def make_job(problem: Problem, code: str) -> Job:
    """The job that runs all tests against the function of `code`."""
    assert problem.entry_point is not None
    return AssertJob(
        source=code,
        test_source=problem.tests.source,
        entry_point=problem.entry_point,
        preamble=NODE_CLASS,
        in_process=problem.tests.in_process,
        cpu_s=BENCH_CPU_S,
    )


def build(path: Path, sandbox: Runner, prompts: EditPrompts) -> ProgramTask:
    """The bench with the problems of `path`."""
    return edit_bench("quixbugs", load(path), sandbox, prompts, make_job)
