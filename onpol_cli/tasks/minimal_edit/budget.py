"""Counting steps instead of seconds, so that what a mutant does never depends on the machine.

Owns the instrumentation of pool programs and their mutants while data are prepared: every loop
round, function call and round of a comprehension is a step, and a program that exceeds its budget
is stopped. Seconds would not do: a few programs of a large pool always lie near any limit, and the
same seed would give another file. For the trusted programs of `prepare` only; answers of models are
limited by the sandbox.
"""

from __future__ import annotations

import ast
from dataclasses import replace

from onpol_cli.tasks.minimal_edit.engine import FUNCTIONS, is_docstring
from onpol_cli.tasks.minimal_edit.testing import EditTests

STEPS = 200_000
"""Steps of one run of all tests: some 30 ms."""

MARK = "onpol step budget spent"
"""Text of the exception, found again in a verdict's detail."""

_PREAMBLE = f"""
class OnpolStepLimit(BaseException):
    pass
def __onpol_step__(left=[{STEPS}]):
    left[0] -= 1
    if left[0] < 0:
        raise OnpolStepLimit({MARK!r})
    return True
"""


class _Instrument(ast.NodeTransformer):
    """Adds a step to every body that can run more than once."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.comprehension):
            node.ifs.insert(0, _step())
        elif isinstance(node, (ast.For, ast.AsyncFor, ast.While, *FUNCTIONS)):
            after_docstring = int(isinstance(node, FUNCTIONS) and is_docstring(node.body[0]))
            node.body.insert(after_docstring, ast.Expr(value=_step()))
        return node


def _step() -> ast.Call:
    return ast.Call(func=ast.Name(id="__onpol_step__", ctx=ast.Load()), args=[], keywords=[])


def instrument(source: str) -> str:
    """The program, counting its steps with `__onpol_step__`.

    Raises:
        SyntaxError: it does not parse.
    """
    return ast.unparse(ast.fix_missing_locations(_Instrument().visit(ast.parse(source))))


def with_budget(tests: EditTests) -> EditTests:
    """The tests with a preamble that instrumented programs need."""
    return replace(tests, preamble=f"{tests.preamble}\n{_PREAMBLE}")


def spent(detail: str) -> bool:
    """Whether a verdict's or result's detail tells of a spent budget."""
    return MARK in detail
