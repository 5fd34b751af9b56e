"""Small questions about syntax nodes, and small new nodes, shared by the corruption families.

Owns no family. Everything here is pure.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cached_property
from typing import Any

INVERSE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}

_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_INNER = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_COLLECTING = {"append", "extend", "add", "insert", "update", "appendleft"}


class Scope:
    """Facts about one function that a single node cannot tell; computed when first asked for."""

    def __init__(self, function: ast.AST) -> None:
        self.function = function

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Nodes of the body, without those of nested functions and classes."""
        found: list[ast.AST] = []
        stack: list[ast.AST] = list(reversed(getattr(self.function, "body", [])))
        while stack:
            node = stack.pop()
            found.append(node)
            if not isinstance(node, _INNER):
                stack.extend(ast.iter_child_nodes(node))
        return found

    @cached_property
    def accumulators(self) -> frozenset[str]:
        """Names that grow: augmented, updated from themselves in a loop, or collected into."""
        names: set[str] = set()
        for node in self.nodes:
            if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
                names.add(node.target.id)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr in _COLLECTING and isinstance(node.func.value, ast.Name):
                    names.add(node.func.value.id)
            elif isinstance(node, _LOOPS):
                names.update(_updated_in(node))
        return frozenset(names)

    @cached_property
    def integers(self) -> frozenset[str]:
        """Names that hold whole numbers as far as one can see: range and enumerate targets, counted variables."""
        names: set[str] = set()
        for node in self.nodes:
            if isinstance(node, (ast.For, ast.comprehension)):
                names.update(_counting_targets(node))
            elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name) and is_int(node.value):
                names.add(node.target.id)
            elif isinstance(node, ast.BinOp) and is_int(node.right) and isinstance(node.left, ast.Name):
                names.add(node.left.id)
            elif isinstance(node, ast.Assign) and is_int(node.value):
                names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        return frozenset(names)


def _updated_in(loop: ast.AST) -> Iterator[str]:
    for node in ast.walk(loop):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if any(isinstance(part, ast.Name) and part.id == name for part in ast.walk(node.value)):
                yield name


def _counting_targets(loop: ast.For | ast.comprehension) -> Iterator[str]:
    source, target = called(loop.iter), loop.target
    if source == "range" and isinstance(target, ast.Name):
        yield target.id
    elif source == "enumerate" and isinstance(target, ast.Tuple) and isinstance(target.elts[0], ast.Name):
        yield target.elts[0].id


def called(node: ast.AST | None) -> str | None:
    """Name of the plain function that a call expression calls: `f(...)` -> "f"; else None."""
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None


def method(node: ast.AST | None) -> str | None:
    """Name of the method or module function that a call expression calls: `x.f(...)` -> "f"; else None."""
    return node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else None


def keyword(call: ast.Call, name: str) -> ast.keyword | None:
    """The keyword argument called `name`, if there is one."""
    return next((item for item in call.keywords if item.arg == name), None)


def is_number(node: ast.AST | None) -> bool:
    """A literal int or float (never a bool)."""
    return isinstance(node, ast.Constant) and type(node.value) in (int, float)


def is_int(node: ast.AST | None) -> bool:
    """A literal int (never a bool)."""
    return isinstance(node, ast.Constant) and type(node.value) is int


def is_none(node: ast.AST | None) -> bool:
    """The literal None."""
    return isinstance(node, ast.Constant) and node.value is None


def is_text(node: ast.AST | None) -> bool:
    """A literal string, formatted or not."""
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def signed(node: ast.AST | None) -> int | None:
    """Value of a literal int with or without a minus sign; None for anything else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        inner = signed(node.operand)
        return None if inner is None else -inner
    return node.value if isinstance(node, ast.Constant) and type(node.value) is int else None


def number(value: int | float) -> ast.expr:
    """A literal; negative values get a unary minus, as the parser would build them."""
    if value < 0:
        return ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=-value))
    return ast.Constant(value=value)


def shift(node: ast.expr, by: int) -> ast.expr:
    """`node + by`, folded into a literal at its end: `5` -> `6`, `n - 1` -> `n`, `n` -> `n + 1`."""
    value = signed(node)
    if value is not None:
        return number(value + by)
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)) and is_int(node.right):
        constant: Any = node.right
        offset = constant.value if isinstance(node.op, ast.Add) else -constant.value
        return _plus(node.left, offset + by)
    return _plus(node, by)


def _plus(node: ast.expr, offset: int) -> ast.expr:
    if offset == 0:
        return node
    op: ast.operator = ast.Add() if offset > 0 else ast.Sub()
    return ast.BinOp(left=node, op=op, right=ast.Constant(value=abs(offset)))


def compares_none(node: ast.AST) -> bool:
    """`x is None` and its kin, with or without `not`."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return compares_none(node.operand)
    return isinstance(node, ast.Compare) and any(is_none(part) for part in (node.left, *node.comparators))


def negate(test: ast.expr) -> ast.expr:
    """The opposite condition, written the short way where there is one."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return test.operand
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        return ast.Compare(left=test.left, ops=[INVERSE[type(test.ops[0])]()], comparators=test.comparators)
    return ast.UnaryOp(op=ast.Not(), operand=test)


def call(name: str, *arguments: ast.expr) -> ast.Call:
    """The expression `name(arguments)`."""
    return ast.Call(func=ast.Name(id=name, ctx=ast.Load()), args=list(arguments), keywords=[])


def counts_length(node: ast.expr) -> bool:
    """`len(x)`, or `len(x)` plus or minus a literal."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)) and is_int(node.right):
        node = node.left
    return called(node) == "len"
