"""The tests of an edit problem, and the sandbox job that runs them on an answer.

Owns the three kinds of tests and the choice of job. `assert` scripts that only compare calls on
literals with literals become calls (no second process, and parameter names do not matter); other
scripts run as they are. Runs nothing itself.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from onpol_cli.sandbox.jobs import AssertJob, CallJob, Job, UnittestJob
from onpol_cli.tasks.minimal_edit.engine import FUNCTIONS

KINDS = ("assert", "unittest")

UNITTEST_CPU_S = 30.0
"""CPU seconds for a unittest module: some of BigCodeBench's train models."""
UNITTEST_MEMORY_MB = 4096
"""Address space for programs that use the scientific libraries (their threads reserve much of it)."""

Calls = tuple[tuple[tuple[Any, ...], ...], tuple[Any, ...]]
"""Positional arguments of each call, and the results expected."""


@dataclass(frozen=True)
class EditTests:
    """Tests of one problem.

    Attributes:
        kind: "assert" (module-level asserts, or `def check(candidate)`) or "unittest" (a TestCase class).
        source: the trusted test code.
        entry_point: function under test: a name, or `Solution().f`.
        preamble: trusted code that runs before the program (imports, node classes).
        class_name: of the TestCase class.
        parameters: names of the entry point's parameters, in order.
    """

    kind: str
    source: str
    entry_point: str
    preamble: str = ""
    class_name: str = "TestCases"
    parameters: tuple[str, ...] = field(default=())

    @property
    def size(self) -> int:
        """Bytes of test data, roughly: bounds how many jobs exist at once."""
        return len(self.source)

    @cached_property
    def calls(self) -> Calls | None:
        """The tests as calls with expected results, where all of them can be written so."""
        name = self.entry_point.rpartition(".")[2]
        return literal_calls(self.source, name, self.parameters) if self.kind == "assert" else None

    @cached_property
    def test_imports(self) -> str:
        """Module-level imports of the tests. BigCodeBench runs program and tests as one module, and
        some of its programs use what only their tests import.
        """
        body = ast.parse(self.source).body
        imports = [node for node in body if isinstance(node, (ast.Import, ast.ImportFrom))]
        return "\n".join(ast.unparse(node) for node in imports if getattr(node, "module", "") != "__future__")

    def job(self, code: str, cpu_s: float | None = None, wall_s: float | None = None) -> Job:
        """The job that tests `code`; `cpu_s` and `wall_s` override the sandbox's limits."""
        if self.kind == "unittest":
            return UnittestJob(
                source=code,
                test_source=self.source,
                class_name=self.class_name,
                entry_point=self.entry_point,
                preamble=f"{self.preamble}\n{self.test_imports}",
                cpu_s=cpu_s or UNITTEST_CPU_S,
                wall_s=wall_s,
                memory_mb=UNITTEST_MEMORY_MB,
            )
        common: dict[str, Any] = {"source": code, "entry_point": self.entry_point, "preamble": self.preamble}
        common |= {"cpu_s": cpu_s, "wall_s": wall_s}
        if self.calls is None:
            return AssertJob(test_source=self.source, **common)
        calls, expected = self.calls
        return CallJob(calls=calls, expected=expected, **common)


def parameters_of(source: str, entry_point: str) -> tuple[str, ...]:
    """Parameter names of the function (or method, without its first) that tests call; () if not found."""
    name = entry_point.rpartition(".")[2]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and "." in entry_point:
            for item in node.body:
                if isinstance(item, FUNCTIONS) and item.name == name:
                    return tuple(part.arg for part in item.args.args[1:])
        elif isinstance(node, FUNCTIONS) and node.name == name and "." not in entry_point:
            return tuple(part.arg for part in node.args.args)
    return ()


def literal_calls(script: str, name: str, parameters: tuple[str, ...]) -> Calls | None:
    """Calls and results of a script made of `assert name(literals) == literal` only; None for any other."""
    try:
        tests = [_call(statement, name, parameters) for statement in _statements(ast.parse(script))]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    if not tests:
        return None
    return tuple(arguments for arguments, _ in tests), tuple(expected for _, expected in tests)


def _statements(tree: ast.Module) -> list[ast.stmt]:
    """The statements of `check`, or of the script itself."""
    if len(tree.body) == 1 and isinstance(tree.body[0], ast.FunctionDef) and tree.body[0].name == "check":
        return tree.body[0].body
    return tree.body


def _call(statement: ast.stmt, name: str, parameters: tuple[str, ...]) -> tuple[tuple[Any, ...], Any]:
    """Arguments and result of one assert.

    Raises:
        ValueError: it is anything but a comparison of a call on literals with a literal.
    """
    test = statement.test if isinstance(statement, ast.Assert) else None
    if not (isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq)):
        raise ValueError("no equality")
    call = test.left
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in (name, "candidate")):
        raise ValueError("no call of the function")
    return arguments_of(call, parameters), ast.literal_eval(test.comparators[0])


def arguments_of(call: ast.Call, parameters: tuple[str, ...]) -> tuple[Any, ...]:
    """Literal arguments of a call in the order of the function's parameters.

    Raises:
        ValueError: an argument is no literal, or cannot be given by position.
    """
    values = [ast.literal_eval(argument) for argument in call.args]
    named = {item.arg: ast.literal_eval(item.value) for item in call.keywords if item.arg}
    rest = parameters[len(values) : len(values) + len(named)]
    if len(named) != len(call.keywords) or set(rest) != set(named):
        raise ValueError("arguments cannot be given by position")
    return (*values, *(named[key] for key in rest))
