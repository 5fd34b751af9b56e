"""Words of the world: conditions, expressions and final steps, each in English and in Python.

A `Row` is a template with holes for variables (`{x}`, `{a}`, `{b}`, `{w}`, `{c}`, `{r}`) and for
constants (`{k}`, `{m}`); a `Term` is a row with its constants drawn and its variable chosen. Rows
differ in meaning, not in surface: how a term is written down is `render`'s business.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Constant = int | str
Domain = tuple[Constant, ...]

SMALL: Domain = tuple(range(2, 10))
SIGNED: Domain = (-5, -3, -2, -1, 0, *range(1, 13))
LETTERS: Domain = tuple("aeinorst")
SEPARATORS: Domain = ("-", ",", "+", " ", "")


@dataclass(frozen=True)
class Row:
    """One word of the world.

    Attributes:
        kind: its name in a skeleton; unique within its table.
        english: template of the description.
        code: template of the Python expression.
        domains: values that each constant may take.
        result: type of the value: int, str, list or bool.
        negated: template of the opposite condition; empty: `not (...)`.
        other: an equivalent way to write `code`; empty: none.
        weight: relative frequency.
    """

    kind: str
    english: str
    code: str
    domains: Mapping[str, Domain] = field(default_factory=dict)
    result: str = "int"
    negated: str = ""
    other: str = ""
    weight: float = 1.0

    @property
    def size(self) -> int:
        """Number of distinct choices of constants."""
        total = 1
        for domain in self.domains.values():
            total *= len(domain)
        return total


@dataclass(frozen=True)
class Term:
    """A row with its constants; `variable` is the role that replaces `{x}` (or `{w}`)."""

    row: Row
    constants: tuple[tuple[str, Constant], ...]
    variable: str = ""

    @property
    def skeleton(self) -> str:
        """Meaning without constants."""
        return f"{self.row.kind}:{self.variable}"

    @property
    def identity(self) -> str:
        """Meaning with constants."""
        return f"{self.skeleton}{[value for _, value in self.constants]}"

    def _fill(self, template: str, names: Mapping[str, str], *, code: bool) -> str:
        values = dict(names)
        if self.variable:
            values["x"] = values["w"] = names[self.variable]
        for name, value in self.constants:
            values[name] = repr(value) if code or isinstance(value, str) else str(value)
        return template.format_map(values)

    def english(self, names: Mapping[str, str]) -> str:
        """The description, with `names` of the roles."""
        return self._fill(self.row.english, names, code=False)

    def code(self, names: Mapping[str, str], *, other: bool = False) -> str:
        """The Python expression; `names` maps a role to the code that yields it."""
        template = self.row.other if other and self.row.other else self.row.code
        return self._fill(template, names, code=True)

    def negation(self, names: Mapping[str, str]) -> str:
        """The Python expression of the opposite condition."""
        if self.row.negated:
            return self._fill(self.row.negated, names, code=True)
        return f"not ({self.code(names)})"


def draw_term(rng: random.Random, rows: Sequence[Row], variable: str = "") -> Term:
    """A random row of `rows` with random constants; equal constants within a term are avoided."""
    row = rng.choices(rows, [r.weight for r in rows])[0]
    values: dict[str, Constant] = {}
    for name, domain in row.domains.items():
        values[name] = rng.choice(domain)
    if "low" in values and isinstance(values["low"], int):
        values["high"] = values["low"] + int(values["high"])
    return Term(row, tuple(values.items()), variable)


def _row(kind: str, english: str, code: str, weight: float = 1.0, **extra: object) -> Row:
    domains = {name: extra.pop(name) for name in ("k", "m", "low", "high") if name in extra}
    return Row(kind, english, code, domains, weight=weight, **extra)  # type: ignore[arg-type]


INT_CONDITIONS = (
    _row("gt", "{x} above {k}", "{x} > {k}", 2, k=SIGNED, negated="{x} <= {k}"),
    _row("ge", "{x} at least {k}", "{x} >= {k}", k=SIGNED, negated="{x} < {k}"),
    _row("lt", "{x} below {k}", "{x} < {k}", 2, k=SIGNED, negated="{x} >= {k}"),
    _row("le", "{x} at most {k}", "{x} <= {k}", k=SIGNED, negated="{x} > {k}"),
    _row("ne", "{x} not {k}", "{x} != {k}", k=SIGNED, negated="{x} == {k}"),
    _row("even", "{x} even", "{x} % 2 == 0", negated="{x} % 2 != 0"),
    _row("odd", "{x} odd", "{x} % 2 == 1", negated="{x} % 2 != 1"),
    _row("div", "{x} divisible by {k}", "{x} % {k} == 0", k=(3, 4, 5, 6, 7), negated="{x} % {k} != 0"),
    _row("nodiv", "{x} not divisible by {k}", "{x} % {k} != 0", k=(3, 4, 5, 6, 7), negated="{x} % {k} == 0"),
    _row("far", "{x} more than {k} from 0", "abs({x}) > {k}", k=SMALL, negated="abs({x}) <= {k}"),
    _row("near", "{x} within {m} of {k}", "abs({x} - {k}) <= {m}", m=(1, 2, 3, 4), k=SMALL),
    _row("in", "{x} from {low} to {high}", "{low} <= {x} <= {high}", low=SIGNED, high=(3, 5, 7),
         other="{x} >= {low} and {x} <= {high}"),
    _row("out", "{x} below {low} or above {high}", "{x} < {low} or {x} > {high}", low=SIGNED, high=(2, 4, 6),
         other="not {low} <= {x} <= {high}"),
    _row("evengt", "{x} even and above {k}", "{x} % 2 == 0 and {x} > {k}", k=SIGNED),
    _row("oddlt", "{x} odd and below {k}", "{x} % 2 == 1 and {x} < {k}", k=SMALL),
    _row("divor", "{x} divisible by {m} or above {k}", "{x} % {m} == 0 or {x} > {k}", m=(3, 4, 5), k=SMALL),
)  # fmt: skip

INT_EXPRESSIONS = (
    _row("id", "{x}", "{x}", 3),
    _row("add", "{x} plus {k}", "{x} + {k}", k=SMALL),
    _row("sub", "{x} minus {k}", "{x} - {k}", k=SMALL),
    _row("rsub", "{k} minus {x}", "{k} - {x}", k=SMALL),
    _row("mul", "{k} times {x}", "{x} * {k}", k=SMALL, other="{k} * {x}"),
    _row("square", "{x} squared", "{x} * {x}", other="{x} ** 2"),
    _row("div", "{x} over {k} rounded down", "{x} // {k}", k=SMALL),
    _row("mod", "{x} modulo {k}", "{x} % {k}", k=SMALL),
    _row("abs", "absolute {x}", "abs({x})"),
    _row("dist", "distance of {x} to {k}", "abs({x} - {k})", k=SMALL, other="abs({k} - {x})"),
    _row("cap", "{x} but at most {k}", "min({x}, {k})", k=SMALL, other="{x} if {x} < {k} else {k}"),
    _row("floor", "{x} but at least {k}", "max({x}, {k})", k=SMALL, other="{x} if {x} > {k} else {k}"),
    _row("linear", "{k} times {x} plus {m}", "{x} * {k} + {m}", k=SMALL, m=SMALL, other="{m} + {k} * {x}"),
    _row("linsub", "{k} times {x} minus {m}", "{x} * {k} - {m}", k=SMALL, m=SMALL, other="{k} * {x} - {m}"),
    _row("round", "{x} over {k} rounded", "round({x} / {k})", k=SMALL),
    _row("trunc", "{x} over {k} cut off", "int({x} / {k})", k=SMALL),
    _row("choose", "{k} times {x} if {x} above {m} else {x}", "{x} * {k} if {x} > {m} else {x}", k=SMALL, m=SMALL),
)  # fmt: skip

PAIR_CONDITIONS = (
    _row("agtb", "a above b", "{a} > {b}", 2, negated="{a} <= {b}", other="{b} < {a}"),
    _row("altb", "a below b", "{a} < {b}", 2, negated="{a} >= {b}", other="{b} > {a}"),
    _row("aneb", "a not b", "{a} != {b}", negated="{a} == {b}", other="{b} != {a}"),
    _row("aeqb", "a equal to b", "{a} == {b}", 0.5, negated="{a} != {b}", other="{b} == {a}"),
    _row("ahead", "a more than {k} above b", "{a} - {b} > {k}", k=(1, 2, 3, 4), other="{a} > {b} + {k}"),
    _row("close", "a within {k} of b", "abs({a} - {b}) <= {k}", k=SMALL),
    _row("sumgt", "a plus b above {k}", "{a} + {b} > {k}", k=SMALL, other="{b} + {a} > {k}"),
    _row("sumeven", "a plus b even", "({a} + {b}) % 2 == 0"),
)  # fmt: skip

PAIR_EXPRESSIONS = (
    _row("sum", "a plus b", "{a} + {b}", other="{b} + {a}"),
    _row("diff", "a minus b", "{a} - {b}", 2),
    _row("rdiff", "b minus a", "{b} - {a}"),
    _row("prod", "a times b", "{a} * {b}", 2, other="{b} * {a}"),
    _row("gap", "distance of a to b", "abs({a} - {b})", other="abs({b} - {a})"),
    _row("max", "larger of a and b", "max({a}, {b})", other="{a} if {a} > {b} else {b}"),
    _row("min", "smaller of a and b", "min({a}, {b})", other="{a} if {a} < {b} else {b}"),
    _row("mixa", "{k} times a plus b", "{a} * {k} + {b}", k=SMALL, other="{b} + {k} * {a}"),
    _row("mixb", "{k} times b minus a", "{b} * {k} - {a}", k=SMALL, other="{k} * {b} - {a}"),
    _row("prodadd", "a times b plus {k}", "{a} * {b} + {k}", k=SMALL, other="{k} + {a} * {b}"),
    _row("half", "a plus b over {k} cut off", "int(({a} + {b}) / {k})", k=(2, 3, 4)),
)  # fmt: skip

WORD_CONDITIONS = (
    _row("longer", "{w} longer than {k}", "len({w}) > {k}", 2, k=(1, 2, 3, 4, 5), negated="len({w}) <= {k}"),
    _row("shorter", "{w} shorter than {k}", "len({w}) < {k}", 2, k=(3, 4, 5, 6), negated="len({w}) >= {k}"),
    _row("starts", "{w} starting with {k}", "{w}.startswith({k})", k=LETTERS),
    _row("ends", "{w} ending with {k}", "{w}.endswith({k})", k=LETTERS, other="{w}[-1:] == {k}"),
    _row("has", "{w} with {k}", "{k} in {w}", k=LETTERS, negated="{k} not in {w}"),
    _row("hasnot", "{w} without {k}", "{k} not in {w}", k=LETTERS, negated="{k} in {w}"),
    _row("low", "{w} in lower case", "{w} == {w}.lower()", negated="{w} != {w}.lower()"),
    _row("late", "{w} with first {k} after place {m}", "{w}.find({k}) > {m}", k=LETTERS, m=(0, 1, 2)),
)  # fmt: skip

WORD_EXPRESSIONS = (
    _row("id", "{w}", "{w}", 2, result="str"),
    _row("upper", "{w} in capitals", "{w}.upper()", 1.5, result="str"),
    _row("lower", "{w} in small letters", "{w}.lower()", 1.5, result="str"),
    _row("strip", "{w} stripped", "{w}.strip()", 2.5, result="str"),
    _row("lstrip", "{w} stripped on the left", "{w}.lstrip()", 2, result="str"),
    _row("mirror", "{w} backwards", "{w}[::-1]", result="str"),
    _row("first", "first {k} letters of {w}", "{w}[:{k}]", k=(1, 2, 3), result="str"),
    _row("rest", "{w} without first {k} letters", "{w}[{k}:]", k=(1, 2, 3), result="str"),
    _row("last", "last {k} letters of {w}", "{w}[-{k}:]", k=(1, 2, 3), result="str"),
    _row("after", "{w} followed by {k}", "{w} + {k}", k=LETTERS, result="str"),
    _row("swap", "{w} with {k} for {m}", "{w}.replace({m}, {k})", k=LETTERS, m=LETTERS, result="str"),
    _row("clean", "{w} stripped in small letters", "{w}.strip().lower()", result="str"),
    _row("len", "length of {w}", "len({w})", 2),
    _row("count", "number of {k} in {w}", "{w}.count({k})", k=LETTERS),
    _row("find", "place of {k} in {w}", "{w}.find({k})", 2, k=LETTERS),
    _row("lenmul", "{k} times length of {w}", "len({w}) * {k}", k=SMALL, other="{k} * len({w})"),
    _row("lensub", "length of {w} minus {k}", "len({w}) - {k}", k=SMALL),
)  # fmt: skip

CHAR_CONDITIONS = (
    _row("is", "{w} equal to {k}", "{w} == {k}", k=LETTERS, negated="{w} != {k}"),
    _row("isnot", "{w} not {k}", "{w} != {k}", k=LETTERS, negated="{w} == {k}"),
    _row("vowel", "{w} a vowel", "{w} in 'aeiou'", negated="{w} not in 'aeiou'"),
    _row("consonant", "{w} not a vowel", "{w} not in 'aeiou'", negated="{w} in 'aeiou'"),
    _row("before", "{w} before {k}", "{w} < {k}", k=LETTERS, negated="{w} >= {k}"),
    _row("notafter", "{w} up to {k}", "{w} <= {k}", k=LETTERS, negated="{w} > {k}"),
    _row("upper", "{w} a capital", "{w}.isupper()"),
    _row("letter", "{w} a letter", "{w}.isalpha()"),
)  # fmt: skip

CHAR_EXPRESSIONS = (
    _row("id", "{w}", "{w}", 2, result="str"),
    _row("upper", "{w} in capitals", "{w}.upper()", result="str"),
    _row("lower", "{w} in small letters", "{w}.lower()", result="str"),
    _row("twice", "{w} twice", "{w} * 2", result="str", other="{w} + {w}"),
    _row("mark", "{w} followed by {k}", "{w} + {k}", k=("-", ".", "+", "*"), result="str"),
    _row("star", "{k} if {w} a vowel else {w}", "{k} if {w} in 'aeiou' else {w}", k=("-", ".", "*"), result="str"),
)  # fmt: skip

LIST_CONDITIONS = (
    _row("longer", "r longer than {k}", "len({r}) > {k}", k=(1, 2, 3), negated="len({r}) <= {k}"),
    _row("sumgt", "sum of r above {k}", "sum({r}) > {k}", k=SMALL, negated="sum({r}) <= {k}"),
    _row("sumlt", "sum of r below {k}", "sum({r}) < {k}", k=SMALL, negated="sum({r}) >= {k}"),
    _row("has", "r with {k}", "{k} in {r}", k=SMALL, negated="{k} not in {r}"),
    _row("firstgt", "first of r above {k}", "{r}[0] > {k}", k=SMALL, negated="{r}[0] <= {k}"),
    _row("lastlt", "last of r below {k}", "{r}[-1] < {k}", k=SMALL, negated="{r}[-1] >= {k}"),
    _row("anygt", "any of r above {k}", "any((y > {k} for y in {r}))", k=SMALL, other="max({r}) > {k}"),
    _row("allgt", "all of r above {k}", "all((y > {k} for y in {r}))", k=SIGNED, other="min({r}) > {k}"),
)  # fmt: skip

LIST_EXPRESSIONS = (
    _row("sum", "sum of r", "sum({r})", 2),
    _row("len", "length of r", "len({r})"),
    _row("max", "largest of r", "max({r})", 2),
    _row("min", "smallest of r", "min({r})", 2),
    _row("first", "first of r", "{r}[0]"),
    _row("last", "last of r", "{r}[-1]", 2),
    _row("span", "largest minus smallest of r", "max({r}) - min({r})"),
    _row("ends", "first plus last of r", "{r}[0] + {r}[-1]", other="{r}[-1] + {r}[0]"),
    _row("distinct", "number of distinct in r", "len(set({r}))"),
    _row("top", "largest of r times {k}", "max({r}) * {k}", k=SMALL, other="{k} * max({r})"),
    _row("all", "r", "{r}", result="list"),
    _row("tail", "r without its first", "{r}[1:]", result="list"),
    _row("init", "r without its last", "{r}[:-1]", result="list"),
    _row("head", "first {k} of r", "{r}[:{k}]", k=(1, 2, 3), result="list"),
    _row("sorted", "r sorted", "sorted({r})", result="list"),
    _row("falling", "r from high to low", "sorted({r}, reverse=True)", result="list"),
    _row("mirror", "r backwards", "{r}[::-1]", result="list"),
)  # fmt: skip

POSTS: Mapping[str, tuple[Row, ...]] = {
    "int": (
        _row("add", "plus {k}", "{r} + {k}", k=SMALL),
        _row("sub", "minus {k}", "{r} - {k}", k=SMALL),
        _row("mul", "times {k}", "{r} * {k}", k=SMALL),
        _row("mod", "modulo {k}", "{r} % {k}", k=SMALL),
        _row("div", "over {k} rounded down", "{r} // {k}", k=SMALL),
        _row("abs", "absolute", "abs({r})"),
        _row("cap", "at most {k}", "min({r}, {k})", k=SMALL),
        _row("floor", "at least {k}", "max({r}, {k})", k=SMALL),
        _row("round", "over {k} rounded", "round({r} / {k})", k=SMALL),
    ),
    "list": (
        _row("head", "first {k}", "{r}[:{k}]", k=(1, 2, 3), result="list"),
        _row("tail", "without the first", "{r}[1:]", result="list"),
        _row("mirror", "backwards", "{r}[::-1]", result="list"),
        _row("sorted", "sorted", "sorted({r})", result="list"),
        _row("falling", "from high to low", "sorted({r}, reverse=True)", 1.5, result="list"),
        _row("even", "every second", "{r}[::2]", result="list"),
    ),
    "str": (
        _row("upper", "in capitals", "{r}.upper()", result="str"),
        _row("lower", "in small letters", "{r}.lower()", result="str"),
        _row("mirror", "backwards", "{r}[::-1]", result="str"),
        _row("head", "first {k} letters", "{r}[:{k}]", k=(1, 2, 3, 4), result="str"),
        _row("len", "length", "len({r})"),
        _row("strip", "stripped", "{r}.strip()", result="str"),
    ),
    "dict": (
        _row("most", "largest count", "max({r}.values(), default=0)"),
        _row("keys", "keys sorted", "sorted({r}.keys())", result="list"),
        _row("often", "keys seen above {k} times", "[k for k, v in {r}.items() if v > {k}]", 2, k=(1, 2),
             result="list"),
        _row("excess", "sum of the counts above {k}", "sum((v for v in {r}.values() if v > {k}))", k=(1, 2)),
        _row("get", "count of {m}", "{r}.get({m}, 0)", m=(1, 2, 3, 4, 5)),
    ),
    "bool": (),
}  # fmt: skip
