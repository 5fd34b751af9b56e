"""The 20 out-of-domain corruption families: used for training when transfer is measured.

Each is a generator `(node, place) -> edits`, as in `in_domain`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from onpol_cli.tasks.minimal_edit import syntax
from onpol_cli.tasks.minimal_edit.engine import DELETE, Edit, EditsOf, Family, Place

OUT_OF_DOMAIN: dict[str, Family] = {}


def _family(*kinds: type[ast.AST]) -> Callable[[EditsOf], EditsOf]:
    def register(edits: EditsOf) -> EditsOf:
        summary = (edits.__doc__ or "").strip().splitlines()[0]
        OUT_OF_DOMAIN[edits.__name__] = Family(edits.__name__, summary, kinds, edits)
        return edits

    return register


def _renamed(func: ast.expr, names: Mapping[str, tuple[str, ...]], *, methods_only: bool = False) -> Iterator[Edit]:
    """Edits that call another function: `func` is the callee of a call."""
    if isinstance(func, ast.Attribute):
        yield from (Edit(func, "attr", None, new) for new in names.get(func.attr, ()))
    elif isinstance(func, ast.Name) and not methods_only:
        yield from (Edit(func, "id", None, new) for new in names.get(func.id, ()))


_EXTREMES = {"min": ("max",), "max": ("min",), "minimum": ("maximum",), "maximum": ("minimum",)}


@_family(ast.Call)
def min_max_swap(node: ast.Call, place: Place) -> Iterator[Edit]:
    """The other extreme: min for max, max for min."""
    return _renamed(node.func, _EXTREMES)


@_family(ast.Call, ast.BinOp)
def abs_toggle(node: ast.Call | ast.BinOp, place: Place) -> Iterator[Edit]:
    """An `abs` removed, or put around a difference of two values."""
    if isinstance(node, ast.Call):
        if syntax.called(node) == "abs" and len(node.args) == 1 and not isinstance(node.args[0], ast.Starred):
            yield place.become(node.args[0])
        return
    values = not (syntax.is_number(node.left) or syntax.is_number(node.right))
    if values and isinstance(node.op, ast.Sub) and syntax.called(place.owner) != "abs":
        yield place.become(syntax.call("abs", node))


@_family(ast.Call)
def append_extend(node: ast.Call, place: Place) -> Iterator[Edit]:
    """`append` for `extend` or the other way round."""
    return _renamed(node.func, {"append": ("extend",), "extend": ("append",)}, methods_only=True)


@_family(ast.Call)
def enumerate_start(node: ast.Call, place: Place) -> Iterator[Edit]:
    """`enumerate` that counts from the wrong number."""
    if syntax.called(node) != "enumerate":
        return
    given = syntax.keyword(node, "start")
    if given is not None:
        yield from (Edit(given, "value", None, syntax.shift(given.value, by)) for by in (1, -1))
    elif len(node.args) == 2:
        yield from (Edit(node, "args", 1, syntax.shift(node.args[1], by)) for by in (1, -1))
    elif len(node.args) == 1:
        yield Edit(node, "args", None, [*node.args, syntax.number(1)])


@_family(ast.Break)
def break_to_continue(node: ast.Break, place: Place) -> Iterator[Edit]:
    """`continue` where the loop should end."""
    yield place.become(ast.Continue())


@_family(ast.Call)
def dict_get_default(node: ast.Call, place: Place) -> Iterator[Edit]:
    """`d.get(key, default)` with another default, or without."""
    if syntax.method(node) != "get" or node.keywords or not 1 <= len(node.args) <= 2:
        return
    if len(node.args) == 1:
        yield Edit(node, "args", None, [*node.args, syntax.number(0)])
        return
    default = node.args[1]
    if syntax.signed(default) is not None:
        yield from (Edit(node, "args", 1, syntax.shift(default, by)) for by in (1, -1))
    elif isinstance(default, ast.Constant) and isinstance(default.value, bool):
        yield Edit(node, "args", 1, ast.Constant(value=not default.value))
    if not syntax.is_none(default):
        yield Edit(node, "args", None, node.args[:1])


@_family(ast.Call)
def lower_upper(node: ast.Call, place: Place) -> Iterator[Edit]:
    """`lower` for `upper`, `islower` for `isupper`, or the other way round."""
    names = {"lower": ("upper",), "upper": ("lower",), "islower": ("isupper",), "isupper": ("islower",)}
    return _renamed(node.func, names, methods_only=True)


@_family(ast.Call)
def strip_variant(node: ast.Call, place: Place) -> Iterator[Edit]:
    """`strip`, `lstrip` and `rstrip` mistaken for one another."""
    names = {"strip": ("lstrip", "rstrip"), "lstrip": ("rstrip", "strip"), "rstrip": ("lstrip", "strip")}
    return _renamed(node.func, names, methods_only=True)


_SEPARATORS = {"": (" ", ","), " ": ("", ", "), ",": (", ", ""), ", ": (",", " "), "\n": (" ", "")}


@_family(ast.Call)
def join_separator(node: ast.Call, place: Place) -> Iterator[Edit]:
    """Pieces joined by the wrong separator."""
    text = node.func.value if isinstance(node.func, ast.Attribute) and node.func.attr == "join" else None
    if isinstance(text, ast.Constant) and isinstance(text.value, str):
        for new in _SEPARATORS.get(text.value, ("",)):
            yield Edit(node.func, "value", None, ast.Constant(value=new))


@_family(ast.Call)
def sorted_key_len(node: ast.Call, place: Place) -> Iterator[Edit]:
    """Sorting by length where it should be by value, or the other way round."""
    if syntax.called(node) != "sorted" and syntax.method(node) != "sort":
        return
    key = syntax.keyword(node, "key")
    if key is None:
        added = ast.keyword(arg="key", value=ast.Name(id="len", ctx=ast.Load()))
        yield Edit(node, "keywords", None, [added, *node.keywords])
    elif isinstance(key.value, ast.Name) and key.value.id == "len":
        yield Edit(node, "keywords", node.keywords.index(key), DELETE)


@_family(ast.Call)
def set_list_cast(node: ast.Call, place: Place) -> Iterator[Edit]:
    """`list(x)` for `set(x)` or the other way round: duplicates and order kept or lost."""
    if len(node.args) == 1 and isinstance(node.func, ast.Name):
        yield from _renamed(node.func, {"set": ("list",), "list": ("set",)})


@_family(ast.Call)
def round_int(node: ast.Call, place: Place) -> Iterator[Edit]:
    """Truncation for rounding or the other way round."""
    if not isinstance(node.func, ast.Name) or node.keywords or not node.args:
        return
    if node.func.id == "round":
        yield place.become(syntax.call("int", node.args[0]))
    elif node.func.id == "int" and len(node.args) == 1:
        yield Edit(node.func, "id", None, "round")


@_family(ast.comprehension)
def comprehension_filter(node: ast.comprehension, place: Place) -> Iterator[Edit]:
    """A condition of a comprehension that is missing."""
    yield from (Edit(node, "ifs", index, DELETE) for index in range(len(node.ifs)))


@_family(ast.Call)
def find_index(node: ast.Call, place: Place) -> Iterator[Edit]:
    """`find` for `index` or the other way round: they differ when nothing is found."""
    names = {"find": ("index",), "index": ("find",), "rfind": ("rindex",), "rindex": ("rfind",)}
    return _renamed(node.func, names, methods_only=True)


@_family(ast.Call)
def any_all(node: ast.Call, place: Place) -> Iterator[Edit]:
    """`any` for `all` or the other way round."""
    return _renamed(node.func, {"any": ("all",), "all": ("any",)})


@_family(ast.Call)
def zip_order(node: ast.Call, place: Place) -> Iterator[Edit]:
    """Two neighbouring arguments of `zip` exchanged."""
    if syntax.called(node) != "zip" or any(isinstance(item, ast.Starred) for item in node.args):
        return
    for index in range(len(node.args) - 1):
        swapped = list(node.args)
        swapped[index], swapped[index + 1] = swapped[index + 1], swapped[index]
        yield Edit(node, "args", None, swapped)


@_family(ast.Call)
def range_len_endpoint(node: ast.Call, place: Place) -> Iterator[Edit]:
    """`range(len(x))` that ends one too early or too late (`len(x) - 1` likewise, and as a start)."""
    if syntax.called(node) != "range":
        return
    for index, bound in enumerate(node.args[:2]):
        if syntax.counts_length(bound):
            yield from (Edit(node, "args", index, syntax.shift(bound, by)) for by in (-1, 1))


@_family(ast.Subscript)
def negative_index_shift(node: ast.Subscript, place: Place) -> Iterator[Edit]:
    """An index counted from the end, off by one: x[-1] -> x[-2]."""
    value = syntax.signed(node.slice)
    if value is not None and value < 0:
        news: Any = (value - 1, value + 1) if value < -1 else (value - 1,)
        yield from (Edit(node, "slice", None, syntax.number(new)) for new in news)


_VIEWS = {"items": ("keys", "values"), "keys": ("values", "items"), "values": ("keys", "items")}


@_family(ast.Call)
def items_keys_values(node: ast.Call, place: Place) -> Iterator[Edit]:
    """The wrong view of a dictionary."""
    if not node.args and not node.keywords:
        yield from _renamed(node.func, _VIEWS, methods_only=True)


@_family(ast.Compare)
def none_comparison(node: ast.Compare, place: Place) -> Iterator[Edit]:
    """`is None` for `is not None` or the other way round (`==` and `!=` likewise)."""
    equality = isinstance(node.ops[0], (ast.Is, ast.IsNot, ast.Eq, ast.NotEq))
    if equality and len(node.ops) == 1 and syntax.compares_none(node):
        yield Edit(node, "ops", 0, syntax.INVERSE[type(node.ops[0])]())
