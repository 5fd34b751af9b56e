"""The 14 in-domain corruption families of the Minimal Code Edit task.

Each is a generator `(node, place) -> edits`, registered with its name and the node types it looks
at. Twelve of the names are those of the published 400-task file without their `mutate_` prefix.
Edits that could not be told from an out-of-domain family (`None` comparisons, `len` end points of
ranges, negative indices, starts and defaults of calls) are left to that family; the one overlap
that the published lists name themselves, `max` -> `min`, is kept in both.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any

from onpol_cli.tasks.minimal_edit import syntax
from onpol_cli.tasks.minimal_edit.engine import DELETE, Edit, EditsOf, Family, Place

IN_DOMAIN: dict[str, Family] = {}


def _family(*kinds: type[ast.AST]) -> Callable[[EditsOf], EditsOf]:
    def register(edits: EditsOf) -> EditsOf:
        summary = (edits.__doc__ or "").strip().splitlines()[0]
        IN_DOMAIN[edits.__name__] = Family(edits.__name__, summary, kinds, edits)
        return edits

    return register


_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}


@_family(ast.Compare)
def comparison_operators(node: ast.Compare, place: Place) -> Iterator[Edit]:
    """A bound made strict or not strict, a direction turned, an equality or membership negated."""
    if syntax.compares_none(node):
        return
    for index, op in enumerate(node.ops):
        for new in _COMPARISONS.get(type(op), ()):
            yield Edit(node, "ops", index, new())


@_family(ast.Call)
def range_bounds(node: ast.Call, place: Place) -> Iterator[Edit]:
    """Start or end of a range off by one."""
    if syntax.called(node) != "range":
        return
    for index, bound in enumerate(node.args[:2]):
        if isinstance(bound, ast.Starred) or syntax.counts_length(bound):
            continue
        for by in (1, -1):
            yield Edit(node, "args", index, syntax.shift(bound, by))


_ASCENDING = {"sort_values", "sort_index"}


@_family(ast.Call)
def sort_order(node: ast.Call, place: Place) -> Iterator[Edit]:
    """Ascending order turned into descending or back."""
    if syntax.called(node) == "sorted" or syntax.method(node) == "sort":
        name, default = "reverse", False
    elif syntax.method(node) in _ASCENDING:
        name, default = "ascending", True
    else:
        return
    given = syntax.keyword(node, name)
    if given is None:
        added = ast.keyword(arg=name, value=ast.Constant(value=not default))
        yield Edit(node, "keywords", None, [*node.keywords, added])
    elif isinstance(given.value, ast.Constant) and isinstance(given.value.value, bool):
        yield Edit(given, "value", None, ast.Constant(value=not given.value.value))


@_family(ast.FunctionDef, ast.AsyncFunctionDef)
def accumulator_init(node: ast.AST, place: Place) -> Iterator[Edit]:
    """An accumulator that starts from the wrong value."""
    for part in place.scope.nodes:
        if isinstance(part, ast.Assign):
            for target in part.targets:
                yield from _initial(target, part.value, Place(part, "value", None, place.scope))
        elif isinstance(part, ast.AnnAssign) and part.value is not None:
            yield from _initial(part.target, part.value, Place(part, "value", None, place.scope))


def _initial(target: ast.expr, value: ast.expr, place: Place) -> Iterator[Edit]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        for index, (name, item) in enumerate(zip(target.elts, value.elts, strict=True)):
            yield from _initial(name, item, Place(value, "elts", index, place.scope))
    elif isinstance(target, ast.Name) and target.id in place.scope.accumulators:
        for new in _other_starts(value):
            yield place.become(new)


def _other_starts(value: ast.expr) -> Iterator[ast.expr]:
    start = syntax.signed(value)
    if start is not None:
        yield from (syntax.number(start + 1), syntax.number(start - 1))
    elif isinstance(value, ast.Constant) and value.value == "":
        yield ast.Constant(value=" ")
    elif isinstance(value, ast.List) and not value.elts:
        yield ast.List(elts=[ast.Constant(value=0)], ctx=ast.Load())
    elif syntax.called(value) == "float" and _is_infinity(value):
        text = value.args[0].value  # type: ignore[attr-defined]
        yield syntax.call("float", ast.Constant(value=text[1:] if text.startswith("-") else "-" + text))


def _is_infinity(value: Any) -> bool:
    argument = value.args[0] if len(value.args) == 1 else None
    return isinstance(argument, ast.Constant) and argument.value in ("inf", "-inf")


_ARITHMETIC: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Add, ast.FloorDiv),
    ast.Div: (ast.Mult, ast.FloorDiv),
    ast.FloorDiv: (ast.Mult, ast.Div),
    ast.Mod: (ast.FloorDiv, ast.Mult),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
    ast.BitXor: (ast.BitOr, ast.BitAnd),
    ast.LShift: (ast.RShift,),
    ast.RShift: (ast.LShift,),
}


@_family(ast.BinOp, ast.AugAssign)
def arithmetic_operators(node: ast.BinOp | ast.AugAssign, place: Place) -> Iterator[Edit]:
    """One arithmetic or bit operator in place of another; text operations are left alone."""
    sides = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.value,)
    if any(syntax.is_text(side) or isinstance(side, ast.List) for side in sides):
        return
    for new in _ARITHMETIC.get(type(node.op), ()):
        yield Edit(node, "op", None, new())


_LEAVES = (ast.Return, ast.Raise, ast.Continue, ast.Break)


@_family(ast.If)
def edge_case_guards(node: ast.If, place: Place) -> Iterator[Edit]:
    """A guard (an `if` that leaves early, or asks for `not x`) reversed, off by one, or missing."""
    negated = isinstance(node.test, ast.UnaryOp) and isinstance(node.test.op, ast.Not)
    if not negated and not isinstance(node.body[-1], _LEAVES):
        return
    if not syntax.compares_none(node.test):
        yield Edit(node, "test", None, syntax.negate(node.test))
    if isinstance(node.test, ast.Compare) and len(node.test.ops) == 1:
        limit = node.test.comparators[0]
        if syntax.signed(limit) is not None:
            yield from (Edit(node.test, "comparators", 0, syntax.shift(limit, by)) for by in (1, -1))
    if not node.orelse and place.field == "body":
        alone = len(getattr(place.owner, place.field)) == 1
        yield place.become(ast.Pass() if alone else DELETE)


@_family(ast.Subscript)
def list_indexing(node: ast.Subscript, place: Place) -> Iterator[Edit]:
    """An index off by one. Negative literals belong to `negative_index_shift`."""
    index = node.slice
    if syntax.is_int(index):
        value = syntax.signed(index) or 0
        yield from (Edit(node, "slice", None, syntax.number(new)) for new in (value + 1, value - 1) if new >= 0)
    elif _is_counter(index, place):
        yield from (Edit(node, "slice", None, syntax.shift(index, by)) for by in (1, -1))


def _is_counter(index: ast.expr, place: Place) -> bool:
    if isinstance(index, ast.BinOp):
        return isinstance(index.op, (ast.Add, ast.Sub, ast.FloorDiv, ast.Mod)) and not syntax.is_text(index.left)
    return isinstance(index, ast.Name) and index.id in place.scope.integers


_CALLS: dict[str, tuple[str, ...]] = {
    "mean": ("median",),
    "median": ("mean",),
    "max": ("min",),
    "sum": ("len",),
    "std": ("var",),
    "var": ("std",),
    "floor": ("ceil",),
    "ceil": ("floor",),
    "argmax": ("argmin",),
    "argmin": ("argmax",),
    "bisect_left": ("bisect_right",),
    "bisect_right": ("bisect_left",),
    "nlargest": ("nsmallest",),
    "nsmallest": ("nlargest",),
    "startswith": ("endswith",),
    "endswith": ("startswith",),
    "isalpha": ("isalnum",),
    "isdigit": ("isalnum",),
    "popleft": ("pop",),
}


@_family(ast.Call)
def function_call_name(node: ast.Call, place: Place) -> Iterator[Edit]:
    """A call of a related but wrong function: mean -> median, max -> min, sum -> len, ..."""
    field = "id" if isinstance(node.func, ast.Name) else "attr"
    for new in _CALLS.get(getattr(node.func, field, ""), ()):
        yield Edit(node.func, field, None, new)


@_family(ast.Call, ast.Subscript)
def remove_copy_calls(node: ast.Call | ast.Subscript, place: Place) -> Iterator[Edit]:
    """A copy that is no longer made: `x.copy()`, `copy.deepcopy(x)`, `x[:]`."""
    if isinstance(node, ast.Subscript):
        part = node.slice
        whole = isinstance(part, ast.Slice) and not (part.lower or part.upper or part.step)
        if whole and isinstance(node.ctx, ast.Load):
            yield place.become(node.value)
    elif syntax.method(node) == "copy" and not node.args and not node.keywords:
        yield place.become(node.func.value)  # type: ignore[attr-defined]
    elif len(node.args) == 1 and (syntax.called(node) or syntax.method(node)) in ("copy", "deepcopy"):
        yield place.become(node.args[0])


@_family(ast.Constant)
def boolean_constants(node: ast.Constant, place: Place) -> Iterator[Edit]:
    """True for False or the other way round."""
    if isinstance(node.value, bool):
        yield place.become(ast.Constant(value=not node.value))


@_family(ast.Constant)
def numeric_constants(node: ast.Constant, place: Place) -> Iterator[Edit]:
    """A literal number off by one (a float by one in its last written place)."""
    if not syntax.is_number(node) or _belongs_elsewhere(place):
        return
    value: Any = node.value
    if isinstance(value, int):
        yield from (place.become(syntax.number(new)) for new in (value + 1, value - 1))
        return
    places = len(repr(value).partition(".")[2])
    if "e" not in repr(value) and value == value and abs(value) != float("inf"):
        yield from (place.become(syntax.number(round(value + by * 10.0**-places, places))) for by in (1, -1))


def _belongs_elsewhere(place: Place) -> bool:
    """Literals under a minus sign, and the arguments that out-of-domain families change."""
    owner = place.owner
    if isinstance(owner, ast.UnaryOp):
        return isinstance(owner.op, ast.USub)
    return syntax.called(owner) == "enumerate" or syntax.method(owner) == "get"


@_family(ast.Slice)
def slice_bounds(node: ast.Slice, place: Place) -> Iterator[Edit]:
    """An end of a slice off by one, or given where there was none."""
    if not node.lower and not node.upper:
        return
    for field in ("lower", "upper"):
        bound = getattr(node, field)
        if bound is not None:
            yield from (Edit(node, field, None, syntax.shift(bound, by)) for by in (1, -1))
        elif not node.step:
            yield Edit(node, field, None, syntax.number(1 if field == "lower" else -1))


@_family(ast.If, ast.IfExp)
def conditional_inversion(node: ast.If | ast.IfExp, place: Place) -> Iterator[Edit]:
    """A condition reversed, or the two values of a conditional expression exchanged."""
    if isinstance(node, ast.IfExp):
        yield place.become(ast.IfExp(test=node.test, body=node.orelse, orelse=node.body))
    elif not syntax.compares_none(node.test):
        yield Edit(node, "test", None, syntax.negate(node.test))


@_family(ast.Call)
def range_step(node: ast.Call, place: Place) -> Iterator[Edit]:
    """A range that walks with the wrong step."""
    if syntax.called(node) != "range" or any(isinstance(item, ast.Starred) for item in node.args):
        return
    if len(node.args) == 3:
        step = syntax.signed(node.args[2])
        if step is not None:
            news = [step + 1, step - 1] if abs(step) > 1 else [2 * step]
            yield from (Edit(node, "args", 2, syntax.number(new)) for new in news)
    elif node.args:
        bounds = node.args if len(node.args) == 2 else [syntax.number(0), *node.args]
        yield Edit(node, "args", None, [*bounds, syntax.number(2)])
