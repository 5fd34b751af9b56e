"""Where a corruption may strike, and how one is applied: sites, edits, mutants.

Owns the walk over function bodies, the single replacement (`Edit`) that every family is expressed
in, and the drawing of sites. A family (see `families`) only looks at one node and says which
replacements it could make there; it never changes the tree. Does not know what a test is: whether
a mutant fails its tests is decided by `prepare` or by the caller.

Speed: a tree is parsed once, edits are applied in place, unparsed, and undone, so no tree is copied.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from onpol_cli.tasks.minimal_edit.syntax import Scope

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)
"""What parsing, walking and unparsing raise on odd or deeply nested text."""

DELETE = object()
"""As the `new` of an edit: take the element out of its list."""

_HIDDEN = {
    "FunctionDef": {"args", "decorator_list", "returns", "type_params"},
    "AsyncFunctionDef": {"args", "decorator_list", "returns", "type_params"},
    "ClassDef": {"bases", "keywords", "decorator_list", "type_params"},
    "Lambda": {"args"},
    "AnnAssign": {"annotation"},
    "FormattedValue": {"format_spec"},
    "match_case": {"pattern"},
    "TypeAlias": {"name", "type_params", "value"},
}
"""Fields never entered: signatures, decorators, annotations, format specifications, patterns."""

_NOT_NODES = {"ctx", "op", "ops", "id", "attr", "arg", "name", "names", "module", "level", "lineno", "type_comment"}
_NOT_NODES |= {"conversion", "simple", "is_async", "kind"}


class Edit(NamedTuple):
    """Replacement of one field (or of one element of a list field) of one node.

    `new` is a node, an operator, a string, a list, or `DELETE`.
    """

    owner: ast.AST
    field: str
    position: int | None
    new: Any


class Place(NamedTuple):
    """Where a node hangs: `owner.field` or `owner.field[position]`, inside the function of `scope`."""

    owner: ast.AST
    field: str
    position: int | None
    scope: Scope

    def become(self, new: Any) -> Edit:
        """The edit that puts `new` where the node is."""
        return Edit(self.owner, self.field, self.position, new)


EditsOf = Callable[[Any, Place], Iterator[Edit]]


@dataclass(frozen=True)
class Family:
    """A kind of bug.

    Attributes:
        name: as in data files and tables.
        summary: one line for people.
        kinds: node types that `edits` is asked about.
        edits: `(node, place) -> possible edits`; pure.
    """

    name: str
    summary: str
    kinds: tuple[type[ast.AST], ...]
    edits: EditsOf


@dataclass(frozen=True)
class Site:
    """One possible corruption: the family, where (line, column of the source), and the edit."""

    family: str
    line: int
    column: int
    edit: Edit

    @cached_property
    def texts(self) -> tuple[str, str]:
        """Source of what changes, before and after. Only valid while the edit is not applied."""
        owner, new = self.edit.owner, self.edit.new
        old = _get(self.edit)
        if isinstance(new, (ast.expr, ast.stmt)) and isinstance(old, ast.AST):
            return _text(old), _text(new)
        before = _text(old if new is DELETE else owner)
        if new is DELETE:
            return before, ""
        with _applied(self.edit):
            return before, _text(owner)

    def describe(self) -> dict[str, Any]:
        """A JSON-serialisable record of this site."""
        before, after = self.texts
        return {"family": self.family, "line": self.line, "column": self.column, "before": before, "after": after}


@dataclass(frozen=True)
class Corruption:
    """A mutant.

    Attributes:
        source: the corrupted program, as `ast.unparse` writes it.
        families: family of each edit, in the order applied.
        sites: `Site.describe()` of each edit.
    """

    source: str
    families: tuple[str, ...]
    sites: tuple[dict[str, Any], ...]


class _applied:
    """Context in which an edit is in force."""

    def __init__(self, edit: Edit) -> None:
        self.edit = edit

    def __enter__(self) -> None:
        self.old = apply(self.edit)

    def __exit__(self, *_: object) -> None:
        undo(self.edit, self.old)


def _get(edit: Edit) -> Any:
    value = getattr(edit.owner, edit.field)
    return value if edit.position is None else value[edit.position]


def _text(node: Any) -> str:
    return ast.unparse(node).strip()


def apply(edit: Edit) -> Any:
    """Put the edit in force; returns what stood there, for `undo`."""
    old = _get(edit)
    if edit.position is None:
        setattr(edit.owner, edit.field, edit.new)
    elif edit.new is DELETE:
        del getattr(edit.owner, edit.field)[edit.position]
    else:
        getattr(edit.owner, edit.field)[edit.position] = edit.new
    return old


def undo(edit: Edit, old: Any) -> None:
    """Take back an applied edit."""
    if edit.position is None:
        setattr(edit.owner, edit.field, old)
    elif edit.new is DELETE:
        getattr(edit.owner, edit.field).insert(edit.position, old)
    else:
        getattr(edit.owner, edit.field)[edit.position] = old


_FIELDS: dict[str, tuple[str, ...]] = {}


def _fields(node: ast.AST) -> tuple[str, ...]:
    """Names of the fields of `node` to descend into."""
    kind = type(node).__name__
    if kind not in _FIELDS:
        hidden = _HIDDEN.get(kind, set()) | _NOT_NODES
        _FIELDS[kind] = tuple(name for name in node._fields if name not in hidden)
    return _FIELDS[kind]


def is_docstring(node: ast.AST) -> bool:
    """Whether the statement is a bare string (a docstring, or text used as a comment)."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


Table = dict[type, list[tuple[str, EditsOf]]]


class _Collector:
    """One walk that asks every family about every node of every function body, in source order."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.found: list[Site] = []

    def outside(self, node: ast.AST) -> None:
        """Descend through modules and classes to the functions."""
        for field in ("body", "orelse", "finalbody", "handlers"):
            for index, child in enumerate(getattr(node, field, ())):
                if isinstance(child, FUNCTIONS):
                    scope = Scope(child)
                    self.ask(child, Place(node, field, index, scope))
                    self.inside(child, scope)
                else:
                    self.outside(child)

    def inside(self, node: ast.AST, scope: Scope) -> None:
        """Everything below `node`, which lies in (or is) the function of `scope`."""
        for field in _fields(node):
            value = getattr(node, field, None)
            if isinstance(value, list):
                for index, child in enumerate(value):
                    if isinstance(child, ast.AST):
                        self.visit(child, node, field, index, scope)
            elif isinstance(value, ast.AST):
                self.visit(value, node, field, None, scope)

    def visit(self, node: ast.AST, owner: ast.AST, field: str, index: int | None, scope: Scope) -> None:
        if isinstance(node, FUNCTIONS):
            scope = Scope(node)
        elif is_docstring(node):
            return
        if type(node) in self.table:
            self.ask(node, Place(owner, field, index, scope))
        self.inside(node, scope)

    def ask(self, node: Any, place: Place) -> None:
        for name, edits in self.table.get(type(node), ()):
            for edit in edits(node, place):
                spot = node if hasattr(node, "lineno") and not isinstance(node, FUNCTIONS) else edit.owner
                line, column = getattr(spot, "lineno", 0), getattr(spot, "col_offset", 0)
                self.found.append(Site(name, line, column, edit))


@lru_cache(maxsize=64)
def _table(families: tuple[Family, ...]) -> Table:
    table: Table = {}
    for family in families:
        for kind in family.kinds:
            table.setdefault(kind, []).append((family.name, family.edits))
    return table


def find_sites(tree: ast.Module, families: Sequence[Family]) -> list[Site]:
    """All possible edits of `families` in the function bodies of `tree`, in source order."""
    collector = _Collector(_table(tuple(families)))
    collector.outside(tree)
    return collector.found


def draw(source: str, families: Sequence[Family], rng: random.Random, count: int = 1) -> Corruption | None:
    """A mutant with up to `count` edits, no two of which touch the same piece of code.

    A family is drawn uniformly among those that have a site left, then one of its sites, so that
    frequent constructs do not crowd out rare families. None where no family applies, or where the
    source does not parse or is nested too deeply.
    """
    try:
        return _draw(ast.parse(source), families, rng, count)
    except _UNREADABLE:
        return None


def _draw(tree: ast.Module, families: Sequence[Family], rng: random.Random, count: int) -> Corruption | None:
    names: list[str] = []
    records: list[dict[str, Any]] = []
    touched: dict[int, ast.AST] = {}
    while len(names) < count:
        site = _draw_site(find_sites(tree, families), touched, rng)
        if site is None:
            break
        names.append(site.family)
        records.append(site.describe())
        _mark(site.edit, touched)
        apply(site.edit)
    text = _unparse(tree) if names else None
    return None if text is None else Corruption(text, tuple(names), tuple(records))


def _draw_site(found: list[Site], touched: dict[int, ast.AST], rng: random.Random) -> Site | None:
    by_family: dict[str, list[Site]] = {}
    for site in found:
        if id(site.edit.owner) not in touched:
            by_family.setdefault(site.family, []).append(site)
    while by_family:
        name = rng.choice(list(by_family))
        candidates = by_family[name]
        site = candidates.pop(rng.randrange(len(candidates)))
        if not candidates:
            del by_family[name]
        if _differs(site):
            return site
    return None


def _differs(site: Site) -> bool:
    try:
        before, after = site.texts
    except _UNREADABLE:  # f-strings that this Python cannot write back
        return False
    return before != after


def _mark(edit: Edit, touched: dict[int, ast.AST]) -> None:
    """Remember every node that the edit concerns, so that a later edit cannot undo it."""
    touched[id(edit.owner)] = edit.owner
    for root in (_get(edit), edit.new):
        for item in root if isinstance(root, list) else [root]:
            if isinstance(item, ast.AST):
                touched.update((id(node), node) for node in ast.walk(item))


def _unparse(tree: ast.Module) -> str | None:
    try:
        text = ast.unparse(tree)
        ast.parse(text)
    except _UNREADABLE:
        return None
    return text


def every(source: str, families: Sequence[Family]) -> Iterator[Corruption]:
    """Every mutant with a single edit, by family in the given order, then in source order.

    Raises:
        SyntaxError: the source does not parse.
    """
    tree = ast.parse(source)
    try:
        found = find_sites(tree, families)
    except RecursionError:
        return
    rank = {family.name: position for position, family in enumerate(families)}
    for site in sorted(found, key=lambda site: rank[site.family]):
        if not _differs(site):
            continue
        with _applied(site.edit):
            text = _unparse(tree)
        if text is not None:
            yield Corruption(text, (site.family,), (site.describe(),))
