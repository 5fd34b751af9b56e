"""Specifications: what a function of the world does, apart from how it is written down.

A `Walk` goes over a source and gathers something; a `Piecewise` chooses among expressions. The
`skeleton` of a specification is its meaning with the constants left out and decides the split; the
`identity` adds the constants. Owns drawing and English; `render` owns Python.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from onpol_cli.tasks.world import sources, terms
from onpol_cli.tasks.world.sources import Source
from onpol_cli.tasks.world.terms import Constant, Row, Term, draw_term

Roles = dict[str, str]
ENGLISH: Roles = {name: name for name in ("x", "y", "a", "b", "w", "c", "k", "v", "r", "n", "m", "i")}

GATHERS = (
    Row("sum", "sum of {e}", "int", result="int", weight=3),
    Row("product", "product of {e}", "int", result="int"),
    Row("best", "largest {e} or None", "int", result="none", weight=1.2),
    Row("worst", "smallest {e} or None", "int", result="none", weight=1.2),
    Row("atleast", "largest of {k} and {e}", "int", {"k": terms.SIGNED}, result="int"),
    Row("atmost", "smallest of {k} and {e}", "int", {"k": terms.SIGNED}, result="int"),
    Row("list", "list of {e}", "int", result="list", weight=2.5),
    Row("first", "first {e} or {k}", "int", {"k": (-1, 0, 1, 5, 9)}, result="int", weight=1.2),
    Row("last", "last {e} or {k}", "int", {"k": (-1, 0, 1, 5, 9)}, result="int", weight=1.2),
    Row("distinct", "number of distinct {e}", "int", result="int"),
    Row("mean", "mean of {e} rounded or {k}", "int", {"k": (-1, 0, 1, 5, 9)}, result="int"),
    Row("counts", "counts of {e}", "int", result="dict", weight=1.5),
    Row("words", "list of {e}", "str", result="list", weight=2),
    Row("join", "{e} joined by {k}", "str", {"k": terms.SEPARATORS}, result="str", weight=3),
    Row("longest", "longest {e}", "str", result="str"),
    Row("bylen", "list of {e} by length", "str", result="list", weight=1.5),
    Row("variety", "number of distinct {e}", "str", result="int"),
    Row("tally", "counts of {e}", "str", result="dict"),
    Row("flat", "items of {e}", "list", result="list", weight=2),
    Row("lists", "list of {e}", "list", result="list"),
    Row("count", "number of {e}", "", result="int", weight=1.2),
    Row("any", "any", "", result="bool", weight=1.0),
    Row("all", "all", "", result="bool", weight=1.0),
)
CONDITION_ONLY = ("count", "any", "all")

GUARDS = (
    Row("empty", "{c} if {p} empty", "", weight=1.5),
    Row("short", "{c} if {p} shorter than {m}", "", {"m": (2, 3)}),
)
NUMBER_GUARD = Row("small", "{c} if {p} below {m}", "", {"m": (1, 2, 3, 4)})
GUARD_VALUES: dict[str, tuple[Constant, ...]] = {
    "int": (-9, -3, -2, -1, 3, 7, 10, 20),
    "list": (-2, -1, 3, 7),
    "str": ("none", "x", "z", "?"),
}


@dataclass(frozen=True)
class Guard:
    """An early return of `value` for small inputs; `term` says which."""

    term: Term
    param: str
    value: Constant

    def english(self, listed: bool) -> str:
        """The description; `listed`: the value is returned inside a list."""
        value = f"[{self.value}]" if listed else str(self.value)
        return self.term.english({**ENGLISH, "c": value, "p": self.param})


@dataclass(frozen=True)
class Walk:
    """Go over `source`, stop at `stop`, keep `condition`, gather `expression`, finish with `post`."""

    source: Source
    constants: tuple[tuple[str, Constant], ...]
    gather: Term
    expression: Term | None
    condition: Term | None
    first: Term | None = None
    """Step before: y is this expression of x; the other terms speak of y."""
    stop: Term | None = None
    post: Term | None = None
    guard: Guard | None = None

    @property
    def params(self) -> tuple[str, ...]:
        """Parameters of the function."""
        return self.source.params

    @property
    def result(self) -> str:
        """Type of the gathered value, before the post step."""
        return self.gather.row.result

    def parts(self) -> tuple[Term | None, ...]:
        """All optional terms, in a fixed order."""
        return (self.gather, self.expression, self.condition, self.first, self.stop, self.post)

    @property
    def skeleton(self) -> str:
        """Meaning without constants."""
        guard = self.guard.term.row.kind if self.guard else "-"
        names = [part.skeleton if part else "-" for part in self.parts()]
        return "/".join([*self.params, self.source.kind, *self.source.roles, *names, guard])

    @property
    def identity(self) -> str:
        """Meaning with constants."""
        guard = (self.guard.term.identity, self.guard.value) if self.guard else "-"
        names = [part.identity if part else "-" for part in self.parts()]
        return "/".join([*self.params, self.source.kind, *self.source.roles, str(self.constants), *names, str(guard)])

    def values(self) -> list[Constant]:
        """All constants, for the choice of test inputs."""
        found = [value for _, value in self.constants]
        for part in self.parts():
            found += [value for _, value in part.constants] if part else []
        if self.guard:
            found += [value for _, value in self.guard.term.constants]
        return found

    def english(self) -> str:
        """The description in controlled English."""
        over = self.source.english.format_map(dict(self.constants))
        roles = " and ".join(("y",) if self.first else self.source.roles)
        element = self.expression.english(ENGLISH) if self.expression else roles
        text = self.gather.english({**ENGLISH, "e": element})
        if self.gather.row.kind in ("any", "all") and self.condition:
            text = f"{self.gather.row.kind} {self.condition.english(ENGLISH)} in {over}"
        else:
            text += f" in {over}"
            text += f", {self.condition.english(ENGLISH)}" if self.condition else ""
        text += f", y is {self.first.english(ENGLISH)}" if self.first else ""
        text += f", until {self.stop.english(ENGLISH)}" if self.stop else ""
        text += f"; {self.post.english(ENGLISH)}" if self.post else ""
        text += f"; {self.guard.english(self.result == 'list')}" if self.guard else ""
        return text


@dataclass(frozen=True)
class Piecewise:
    """The expression of the first branch whose condition holds for n, else `otherwise`."""

    branches: tuple[tuple[Term, Term], ...]
    otherwise: Term
    params: tuple[str, ...] = ("n",)
    result: str = "int"

    @property
    def skeleton(self) -> str:
        """Meaning without constants."""
        names = [f"{c.skeleton}>{e.skeleton}" for c, e in self.branches]
        return "/".join(["piecewise", *names, self.otherwise.skeleton])

    @property
    def identity(self) -> str:
        """Meaning with constants."""
        names = [f"{c.identity}>{e.identity}" for c, e in self.branches]
        return "/".join(["piecewise", *names, self.otherwise.identity])

    def values(self) -> list[Constant]:
        """All constants, for the choice of test inputs."""
        used = [term for branch in self.branches for term in branch] + [self.otherwise]
        return [value for term in used for _, value in term.constants]

    def english(self) -> str:
        """The description in controlled English."""
        cases = [f"{e.english(ENGLISH)} if {c.english(ENGLISH)}" for c, e in self.branches]
        return "; ".join([*cases, f"else {self.otherwise.english(ENGLISH)}"])


Spec = Walk | Piecewise

GROUPS: tuple[tuple[Sequence[Source], float], ...] = (
    (sources.NUMBERS, 32),
    (sources.PAIRS, 20),
    (sources.WORDS, 18),
    (sources.CHARS, 7),
    (sources.ITEMS, 6),
    (sources.ROWS, 9),
)
PIECEWISE_WEIGHT = 8
CONSTANT_ROW = Row("const", "{k}", "{k}", {"k": terms.SIGNED}, weight=2)


def _conditions(source: Source, rng: random.Random) -> Term:
    kinds = {
        "x": (terms.INT_CONDITIONS, "x"),
        "w": (terms.WORD_CONDITIONS, "w"),
        "c": (terms.CHAR_CONDITIONS, "c"),
        "r": (terms.LIST_CONDITIONS, ""),
        "k": (terms.WORD_CONDITIONS, "k") if rng.random() < 0.3 else (terms.INT_CONDITIONS, "v"),
        "a": (terms.PAIR_CONDITIONS, "") if rng.random() < 0.5 else (terms.INT_CONDITIONS, rng.choice("ab")),
    }
    rows, variable = kinds[source.roles[0]]
    return draw_term(rng, rows, variable)


def _expressions(source: Source, rng: random.Random) -> Term:
    kinds = {
        "x": (terms.INT_EXPRESSIONS, "x"),
        "w": (terms.WORD_EXPRESSIONS, "w"),
        "c": (terms.CHAR_EXPRESSIONS, "c"),
        "r": (terms.LIST_EXPRESSIONS, ""),
        "k": (terms.WORD_EXPRESSIONS, "k") if rng.random() < 0.5 else (terms.INT_EXPRESSIONS, "v"),
        "a": (terms.PAIR_EXPRESSIONS, "") if rng.random() < 0.7 else (terms.INT_EXPRESSIONS, rng.choice("ab")),
    }
    rows, variable = kinds[source.roles[0]]
    return draw_term(rng, rows, variable)


def _guard(rng: random.Random, source: Source, result: str) -> Guard | None:
    param = source.params[0]
    if param == "d" or result not in GUARD_VALUES:
        return None
    row = [NUMBER_GUARD] if param == "n" else GUARDS
    return Guard(draw_term(rng, row), param, rng.choice(GUARD_VALUES[result]))


def _post(rng: random.Random, result: str, element: str) -> Term | None:
    rows = terms.POSTS.get(result, ())
    if result == "dict" and element == "str":
        rows = tuple(row for row in rows if row.kind != "get")
    return draw_term(rng, rows) if rows else None


def _draw_walk(rng: random.Random) -> Walk:
    group = rng.choices([g for g, _ in GROUPS], [weight for _, weight in GROUPS])[0]
    source = rng.choices(group, [s.weight for s in group])[0]
    constants = tuple((name, rng.choice(domain)) for name, domain in source.domains.items())
    expression: Term | None = _expressions(source, rng)
    assert expression is not None
    element = expression.row.result
    gather = draw_term(rng, [row for row in GATHERS if row.code in (element, "")])
    kind = gather.row.kind
    condition = _conditions(source, rng)
    bare = kind not in CONDITION_ONLY and rng.random() < 0.4
    if kind in CONDITION_ONLY:
        expression = None
    first = stop = None
    if source.roles == ("x",) and rng.random() < 0.12:
        first = draw_term(rng, terms.INT_EXPRESSIONS[1:], "x")
        condition = Term(condition.row, condition.constants, "y")
        expression = expression and Term(expression.row, expression.constants, "y")
    elif kind not in ("any", "all", "first") and rng.random() < 0.08:
        stop = _conditions(source, rng)
    finished = rng.random() < (0.6 if gather.row.result == "dict" else 0.3)
    post = _post(rng, gather.row.result, element) if finished else None
    guard = _guard(rng, source, gather.row.result) if not post and rng.random() < 0.3 else None
    return Walk(source, constants, gather, expression, None if bare else condition, first, stop, post, guard)


def _draw_piecewise(rng: random.Random) -> Piecewise:
    rows = (*terms.INT_EXPRESSIONS, CONSTANT_ROW)
    count = 1 if rng.random() < 0.35 else 2
    tests = [draw_term(rng, terms.INT_CONDITIONS, "n") for _ in range(count)]
    values = [draw_term(rng, rows, "n") for _ in range(count + 1)]
    if len({term.row.kind for term in tests}) < count or len({term.identity for term in values}) < count + 1:
        return _draw_piecewise(rng)
    return Piecewise(tuple(zip(tests, values[:-1], strict=True)), values[-1])


def draw_spec(rng: random.Random) -> Spec:
    """A random specification."""
    total = sum(weight for _, weight in GROUPS) + PIECEWISE_WEIGHT
    return _draw_piecewise(rng) if rng.random() * total < PIECEWISE_WEIGHT else _draw_walk(rng)


def _size(rows: Sequence[Row]) -> int:
    return sum(row.size for row in rows)


def count_programs() -> int:
    """Number of distinct identities of the simplest kind: numbers, a condition, an int gather, at most a post step.

    A lower bound of the size of the world: no pairs, words, rows, guards, stops or first steps.
    """
    walked = sum(source.size for source in sources.NUMBERS) * _size(terms.INT_CONDITIONS) * _size(terms.INT_EXPRESSIONS)
    gathers = [row for row in GATHERS if row.code == "int" and row.result == "int"]
    return walked * _size(gathers) * (1 + _size(terms.POSTS["int"]))
