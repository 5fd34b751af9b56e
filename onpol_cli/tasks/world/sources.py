"""What the functions of the world walk over: lists, ranges, strings, dictionaries and pairs of lists.

A `Source` has one meaning and several `Form`s, that is ways to write the loop header. The first form
is the plainest and must work inside a comprehension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onpol_cli.tasks.world.terms import SIGNED, Domain


@dataclass(frozen=True)
class Form:
    """One way to walk a source.

    Attributes:
        iterable: the expression after `in`.
        target: roles bound by the loop header: element roles, or `i` for an index.
        elements: code of each element role; empty: the header binds them itself.
        prelude: statements before the loop; `{t}` is a temporary list.
    """

    iterable: str
    target: tuple[str, ...]
    elements: tuple[str, ...] = ()
    prelude: str = ""


@dataclass(frozen=True)
class Source:
    """One thing to walk over.

    Attributes:
        kind: its name in a skeleton.
        english: description; constants as `{k}`, `{m}`.
        params: parameters of the function: xs, ys, n, s, words, d, rows.
        roles: roles of one element: ("x",), ("a", "b"), ("w",), ("c",), ("k", "v") or ("r",).
        forms: ways to write it down.
        domains: values of the constants.
        weight: relative frequency.
    """

    kind: str
    english: str
    params: tuple[str, ...]
    roles: tuple[str, ...]
    forms: tuple[Form, ...]
    domains: Mapping[str, Domain] = field(default_factory=dict)
    weight: float = 1.0

    @property
    def size(self) -> int:
        """Number of distinct choices of constants."""
        total = 1
        for domain in self.domains.values():
            total *= len(domain)
        return total


X, AB, W, C, KV, R = ("x",), ("a", "b"), ("w",), ("c",), ("k", "v"), ("r",)
I = ("i",)  # noqa: E741
FEW: Domain = (1, 2, 3)
STEP: Domain = (2, 3)


def _source(
    kind: str,
    english: str,
    params: str,
    roles: tuple[str, ...],
    *forms: str | Form,
    weight: float = 1.0,
    **domains: Domain,
) -> Source:
    built = tuple(Form(form, roles) if isinstance(form, str) else form for form in forms)
    return Source(kind, english, tuple(params.split()), roles, built, domains, weight)


NUMBERS = (
    _source("all", "xs", "xs", X, "xs", Form("range(len(xs))", I, ("xs[{i}]",)), weight=6),
    _source("tail", "xs without its first {k}", "xs", X, "xs[{k}:]",
            Form("range({k}, len(xs))", I, ("xs[{i}]",)), k=FEW, weight=1.5),
    _source("head", "first {k} of xs", "xs", X, "xs[:{k}]", Form("range(min({k}, len(xs)))", I, ("xs[{i}]",)),
            k=(2, 3, 4)),
    _source("init", "xs without its last", "xs", X, "xs[:-1]",
            Form("range(len(xs) - 1)", I, ("xs[{i}]",)), weight=1.5),
    _source("step", "xs in steps of {k}", "xs", X, "xs[::{k}]",
            Form("range(0, len(xs), {k})", I, ("xs[{i}]",)), k=STEP, weight=1.5),
    _source("odd", "xs in steps of {k} from the second", "xs", X, "xs[1::{k}]",
            Form("range(1, len(xs), {k})", I, ("xs[{i}]",)), k=STEP, weight=1.5),
    _source("mirror", "xs backwards", "xs", X, "xs[::-1]", "reversed(xs)",
            Form("range(len(xs) - 1, -1, -1)", I, ("xs[{i}]",))),
    _source("sorted", "sorted xs", "xs", X, "sorted(xs)"),
    _source("low", "{k} smallest of xs", "xs", X, "sorted(xs)[:{k}]", k=(2, 3, 4)),
    _source("top", "{k} largest of xs", "xs", X, "sorted(xs, reverse=True)[:{k}]",
            Form("{t}[:{k}]", X, prelude="{t} = sorted(xs, reverse=True)"), k=(2, 3, 4), weight=1.5),
    _source("distinct", "distinct xs sorted", "xs", X, "sorted(set(xs))", weight=1.5),
    _source("more", "xs followed by {k}", "xs", X, "xs + [{k}]",
            Form("{t}", X, prelude="{t} = xs.copy()\n{t}.append({k})"), k=SIGNED, weight=0.5),
    _source("both", "xs then ys", "xs ys", X, "xs + ys",
            Form("{t}", X, prelude="{t} = xs.copy()\n{t}.extend(ys)"), weight=0.7),
    _source("upto", "0 to n minus 1", "n", X, "range(n)", weight=1.5),
    _source("from", "{k} to n", "n", X, "range({k}, n + 1)", k=(1, 2, 3, 4, 5), weight=2),
    _source("strides", "{m} below n in steps of {k}", "n", X, "range({m}, n, {k})", m=(0, 1, 2, 3), k=(2, 3, 4, 5),
            weight=1.5),
    _source("down", "n down to 1", "n", X, "range(n, 0, -1)"),
    _source("values", "values of d", "d", X, "d.values()", Form("d", I, ("d[{i}]",)), weight=2.5),
    _source("lookup", "d values of words, {k} if missing", "words d", X,
            Form("words", I, ("d.get({i}, {k})",)), k=(0, 1, 2, 3, -1), weight=1.5),
)  # fmt: skip

PAIRS = (
    _source("zip", "xs and ys", "xs ys", AB, "zip(xs, ys)", weight=3.5),
    _source("next", "neighbours in xs", "xs", AB, "zip(xs, xs[1:])",
            Form("range(1, len(xs))", I, ("xs[{i} - 1]", "xs[{i}]")),
            Form("range(len(xs) - 1)", I, ("xs[{i}]", "xs[{i} + 1]")), weight=3.5),
    _source("lag", "xs and xs from {k} on", "xs", AB, "zip(xs, xs[{k}:])",
            Form("range({k}, len(xs))", I, ("xs[{i} - {k}]", "xs[{i}]")), k=STEP, weight=1.5),
    _source("places", "places and xs", "xs", AB, "enumerate(xs)",
            Form("range(len(xs))", I, ("{i}", "xs[{i}]")), weight=2),
    _source("numbered", "numbers from {k} and xs", "xs", AB, "enumerate(xs, {k})", k=(1, 2, 3), weight=2),
    _source("mirror", "xs and xs backwards", "xs", AB, "zip(xs, xs[::-1])",
            Form("zip(xs, {t})", AB, prelude="{t} = xs.copy()\n{t}.reverse()"), weight=2.5),
    _source("ranked", "xs and sorted xs", "xs", AB, "zip(xs, sorted(xs))",
            Form("zip(xs, {t})", AB, prelude="{t} = xs.copy()\n{t}.sort()"), weight=3),
    _source("fallen", "xs and xs from high to low", "xs", AB, "zip(xs, sorted(xs, reverse=True))",
            Form("zip(xs, {t})", AB, prelude="{t} = xs.copy()\n{t}.sort(reverse=True)"), weight=3),
)  # fmt: skip

WORDS = (
    _source("all", "words", "words", W, "words", Form("range(len(words))", I, ("words[{i}]",)), weight=4),
    _source("tail", "words without the first {k}", "words", W, "words[{k}:]",
            Form("range({k}, len(words))", I, ("words[{i}]",)), k=FEW),
    _source("sorted", "sorted words", "words", W, "sorted(words)"),
    _source("bylen", "words by length", "words", W, "sorted(words, key=len)", weight=1.5),
    _source("split", "words of s", "s", W, "s.split()", Form("{t}", W, prelude="{t} = s.split()"), weight=2),
    _source("parts", "parts of s between commas", "s", W, "s.split(',')"),
    _source("distinct", "distinct words sorted", "words", W, "sorted(set(words))"),
    _source("keys", "keys of d", "d", W, "d.keys()", "d", weight=1.5),
)  # fmt: skip

CHARS = (
    _source("all", "s", "s", C, "s", Form("range(len(s))", I, ("s[{i}]",)), weight=2),
    _source("lower", "s in small letters", "s", C, "s.lower()", Form("{t}", C, prelude="{t} = s.lower()"), weight=1.5),
    _source("upper", "s in capitals", "s", C, "s.upper()"),
    _source("strip", "s stripped", "s", C, "s.strip()"),
    _source("tail", "s without its first {k}", "s", C, "s[{k}:]", Form("range({k}, len(s))", I, ("s[{i}]",)), k=FEW),
    _source("step", "s in steps of {k}", "s", C, "s[::{k}]", Form("range(0, len(s), {k})", I, ("s[{i}]",)), k=STEP),
    _source("mirror", "s backwards", "s", C, "s[::-1]", "reversed(s)"),
)  # fmt: skip

ITEMS = (
    _source("items", "keys k and values v of d", "d", KV, "d.items()", weight=1),
    _source("sorted", "sorted keys k and values v of d", "d", KV, "sorted(d.items())"),
)  # fmt: skip

ROWS = (
    _source("all", "rows", "rows", R, "rows", Form("range(len(rows))", I, ("rows[{i}]",)), weight=3),
    _source("tail", "rows without the first", "rows", R, "rows[1:]", Form("range(1, len(rows))", I, ("rows[{i}]",))),
    _source("mirror", "rows backwards", "rows", R, "rows[::-1]", "reversed(rows)"),
)  # fmt: skip
