"""What surrounds an answer when LiveCodeBench runs it: the import preamble, and the function around a script.

Owns the text that is run. The official evaluator puts the body of a stdin program into a function,
whose variables are then fast locals; time limits were set with that. Here it is done where it cannot
change the program's meaning; all others run as the plain scripts that they are, so that `global`,
rebinding of a builtin and the like work as in a contest (the official evaluator fails those).
"""

from __future__ import annotations

import ast
import builtins
import warnings
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache

_PLAIN = (  # noqa: SIM905 (one word a module reads better than sixteen lines)
    "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json"
).split()
_STAR = [*_PLAIN, "builtins", "typing"]
_LIMITS = "import sys\nsys.setrecursionlimit(50000)\nsys.set_int_max_str_digits(50000)\n"

_OPEN = """
def open(file, *args, **kwargs):
    if file in (0, "/dev/stdin"):
        raise OSError("open(0) is not the input in LiveCodeBench's grading; sys.stdin and input() are")
    return io.open(file, *args, **kwargs)
"""
"""In the official evaluator the preamble binds `open` to the real one, so that `open(0)` reads the stdin of
the evaluator and waits for ever: all four such answers among the published ones are time-outs (abc315_b,
abc349_a, abc359_b, abc365_b). They fail here too, at once and with the reason."""

PREAMBLE = (
    "".join(f"from {name} import *\n" for name in _STAR)
    + "".join(f"import {name}\n" for name in _PLAIN)
    + _OPEN
    + _LIMITS
)
"""The names that official solutions may use without importing them (same list and order, own text)."""

PRELOAD = [*_STAR, "decimal", "fractions", "numpy"]
"""Modules that workers import once."""

_SCOPE_READERS = frozenset({"globals", "locals", "vars", "dir", "exec", "eval", "__import__", "__main__"})
_MAX_SOURCE = 200_000
"""Characters; longer programs are run as they are rather than parsed here."""


def preamble_for(source: str) -> str:
    """The part of `PREAMBLE` that `source` can notice: each program runs in a fresh process, where the 600
    names of the whole cost more than many solutions take.

    The whole for what does not parse, or looks names up in ways that cannot be seen here (`eval`, ...).
    """
    try:
        used = {node.id for node in ast.walk(_parse(source)) if isinstance(node, ast.Name)}
    except _UNREADABLE:
        return PREAMBLE
    if used & _SCOPE_READERS:
        return PREAMBLE
    origins = _origins()
    return "".join(origins[name] for name in sorted(used & origins.keys())) + _LIMITS


def as_function(source: str) -> str:
    """`source` with its top-level statements inside one called function, where that is safe.

    Returns `source` unchanged if it does not parse (running it then reports why), or if moving it
    could change what it does. A `return` at the top level makes the move necessary: the official
    evaluator accepts it.
    """
    try:
        tree = _parse(source)
        if not tree.body or not _movable(tree):
            return source
        imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        rest = [node for node in tree.body if not isinstance(node, (ast.Import, ast.ImportFrom))]
        if not rest:
            return source
        function = ast.parse("def wrapped_function():\n    pass\nwrapped_function()")
        assert isinstance(function.body[0], ast.FunctionDef)
        function.body[0].body = rest
        return "\n".join([*map(ast.unparse, imports), ast.unparse(function), ""])
    except _UNREADABLE:
        return source


_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)


@lru_cache(maxsize=1)
def _parse(source: str) -> ast.Module:
    """The tree of a program; the same one is asked for twice in a row.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: not a program, or too long to be looked at.
    """
    if len(source) > _MAX_SOURCE:
        raise ValueError("too long")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in answers
        return ast.parse(source)


def _movable(tree: ast.Module) -> bool:
    """Whether the top-level statements mean the same inside a function."""
    top = _bound_at_top(tree)
    return all(_harmless(node, top, tree) for node in ast.walk(tree)) and all(
        _bound_before_use(tree, name) for name in top & _predefined()
    )


def _harmless(node: ast.AST, top: frozenset[str], tree: ast.Module) -> bool:
    """Whether nothing in `node` itself depends on its scope being a module's."""
    if isinstance(node, ast.Global):
        return False
    if isinstance(node, ast.Name):
        return node.id not in _SCOPE_READERS
    if isinstance(node, ast.ImportFrom):
        return node.module != "__future__" and (node.names[0].name != "*" or node in tree.body)
    if isinstance(node, ast.ClassDef):
        # `x = x` in a class body reads the module's x, never an enclosing function's.
        return not any(_binds(part) & top for part in _own_scope(node.body))
    return True


_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _own_scope(nodes: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """All nodes below `nodes` that belong to the same scope: bodies of functions and classes left out."""
    stack = list(nodes)
    while stack:
        node = stack.pop()
        yield node
        if not isinstance(node, (*_DEFINITIONS, ast.Lambda)):
            stack.extend(ast.iter_child_nodes(node))


def _binds(node: ast.AST) -> set[str]:
    """The name that `node` itself binds or deletes in its scope, if any."""
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        return {node.id}
    return {node.name} if isinstance(node, _DEFINITIONS) else set()


def _bound_at_top(tree: ast.Module) -> frozenset[str]:
    """Names that the module's own statements bind, imports of the first level left out (they stay outside)."""
    return frozenset(name for node in _own_scope(tree.body) for name in _binds(node))


def _bound_before_use(tree: ast.Module, name: str) -> bool:
    """Whether a first-level assignment or definition binds `name` on a line before every line that reads it.

    In a script an earlier read finds the builtin or preamble name; in a function it is an error.
    """
    bound_by = [node for node in tree.body if isinstance(node, (ast.Assign, *_DEFINITIONS))]
    ends = [
        node.lineno if isinstance(node, _DEFINITIONS) else node.end_lineno or node.lineno
        for node in bound_by
        if any(name in _binds(part) for part in _own_scope([node]))
    ]
    reads = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)
    ]
    return bool(ends) and all(min(ends) < line for line in reads)


def _predefined() -> frozenset[str]:
    """Names that exist before a program starts: the preamble's and the builtins."""
    return frozenset(_origins()) | frozenset(vars(builtins))


@cache
def _origins() -> dict[str, str]:
    """The import that gives each name of the preamble its last meaning; builtins need none."""
    found: dict[str, str] = {}
    for module in _STAR:
        namespace: dict[str, object] = {}
        exec(f"from {module} import *", namespace)
        for name in namespace.keys() - {"__builtins__"}:
            found[name] = "" if module == "builtins" else f"from {module} import {name}\n"
    return {**found, **{name: f"import {name}\n" for name in _PLAIN}, "open": f"import io\n{_OPEN}"}
