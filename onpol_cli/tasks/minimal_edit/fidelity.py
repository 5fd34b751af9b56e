"""How much an answer changes beyond the true reversal: excess Levenshtein and added complexity.

Owns normalisation, tokens, distance and cognitive complexity of Python sources, exactly as the
Minimal Code Edit evaluation defines them (github.com/nreHieW/over-editing; 60 worked examples
are reproduced by a test), quirks included, because figures are compared with published ones. Does
not run code and does not know what an outcome is (see `grading`).

Every function takes any text whatever: what does not parse falls back as defined. Values are for
the running Python: from 3.12 on, its tokeniser splits f-strings into pieces, 3.11 does not.
"""

from __future__ import annotations

import ast
import io
import tokenize
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from rapidfuzz.distance import Levenshtein

_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)
"""What parsing and unparsing raise on odd text: bad syntax, null bytes and surrogates, deep nesting."""

_SKIPPED = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.DEDENT,
}


@dataclass(frozen=True)
class Fidelity:
    """How far an answer is from the smallest edit.

    Attributes:
        excess_levenshtein: normalised distance(answer, corrupted) minus normalised
            distance(original, corrupted); 0 is as small as the true reversal.
        added_cc: cognitive complexity(answer) minus that of the original; None if either does
            not parse.
    """

    excess_levenshtein: float
    added_cc: int | None


def parse(source: str) -> ast.Module:
    """The syntax tree of any text.

    Raises:
        SyntaxError: for every kind of unreadable source, null bytes and excessive nesting included.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in answers are not our user's business
            return ast.parse(source)
    except _UNREADABLE as problem:
        raise problem if isinstance(problem, SyntaxError) else SyntaxError(str(problem)) from problem


@lru_cache(maxsize=16384)
def normalise(source: str) -> str:
    """The source without comments and layout (`ast.unparse(ast.parse(.))`); as it is if it does not parse."""
    try:
        return ast.unparse(parse(source))
    except _UNREADABLE:
        return source


@lru_cache(maxsize=16384)
def tokens(source: str) -> tuple[str, ...]:
    """Token strings of the normalised source.

    Python's tokens without comments, blank lines, encoding, end marker, indents and dedents (the
    token that ends a statement stays). Where tokenising fails: comments cut line by line and the
    rest split on white space.
    """
    text = normalise(source)
    try:
        stream = tokenize.generate_tokens(io.StringIO(text).readline)
        return tuple(token.string for token in stream if token.type not in _SKIPPED)
    except (tokenize.TokenError, *_UNREADABLE):
        return tuple("\n".join(_without_comment(line) for line in text.splitlines()).split())


def _without_comment(line: str) -> str:
    """The line up to a `#` that stands outside quotes, as far as this line alone can tell."""
    quote, position = "", 0
    while position < len(line):
        step = 1
        triple = line[position : position + 3]
        if not quote:
            if line[position] == "#":
                return line[:position]
            if line[position] in "\"'":
                quote = triple if triple in ('"""', "'''") else line[position]
                step = len(quote)
        elif line.startswith(quote, position) and (len(quote) == 3 or line[position - 1] != "\\"):
            step, quote = len(quote), ""
        position += step
    return line


def distance(a: str, b: str) -> int:
    """Levenshtein distance between the token sequences of two sources, in tokens."""
    return _distance(tokens(a), tokens(b))


def _distance(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    # Numbers stand for tokens: rapidfuzz compares hashes of strings, numbers cannot collide.
    number: dict[str, int] = {}
    coded = [[number.setdefault(token, len(number)) for token in side] for side in (a, b)]
    return Levenshtein.distance(coded[0], coded[1])


def normalised_distance(a: str, b: str) -> float:
    """`distance(a, b)` over the length of the longer token sequence; 0 for two empty ones."""
    left, right = tokens(a), tokens(b)
    longest = max(len(left), len(right))
    return _distance(left, right) / longest if longest else 0.0


@lru_cache(maxsize=16384)
def _baseline(original: str, corrupted: str) -> float:
    return normalised_distance(original, corrupted)


def excess_levenshtein(original: str, corrupted: str, answer: str) -> float:
    """Normalised distance(answer, corrupted) minus normalised distance(original, corrupted).

    0: the answer changes as much as the exact reversal; negative: less. Defined for every answer,
    parsing or not.
    """
    return normalised_distance(answer, corrupted) - _baseline(original, corrupted)


@lru_cache(maxsize=16384)
def cognitive_complexity(source: str) -> int:
    """Cognitive complexity of the normalised source, counted as the published evaluation does.

    `if`, loops, handlers, conditional expressions, comprehension clauses and cases cost 1 plus
    their nesting, boolean operators 1 for every operand after the first. Known oddities that
    equal numbers need: conditions of `if` and `while`, iterables of `for`, items of `with` and
    exception types are not looked at; a `match` is counted by its cases and then once more as an
    ordinary statement; `try*` is ordinary.

    Raises:
        SyntaxError: the source does not parse.
    """
    tree = parse(normalise(source))
    total = 0
    stack: list[tuple[ast.AST, int]] = [(tree, 0)]
    while stack:
        node, nesting = stack.pop()
        total += _cost(node, nesting)
        stack.extend(_below(node, nesting))
    return total


def _cost(node: ast.AST, nesting: int) -> int:
    """What the node itself adds."""
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, (ast.If, ast.For, ast.AsyncFor, ast.While, ast.IfExp)):
        return 1 + nesting
    if isinstance(node, ast.comprehension):
        return (1 + len(node.ifs)) * (1 + nesting)
    if isinstance(node, ast.Try):
        return len(node.handlers) * (1 + nesting)
    if isinstance(node, ast.Match):
        return len(node.cases) * (1 + nesting)
    return 0


def _below(node: ast.AST, nesting: int) -> Iterator[tuple[ast.AST, int]]:
    """The nodes to look at next, each with its nesting."""
    deeper: list[Iterable[ast.AST]] = []
    if isinstance(node, ast.If):
        deeper.append(node.body)
        if len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
            yield node.orelse[0], nesting
        else:
            deeper.append(node.orelse)
    elif isinstance(node, (ast.For, ast.AsyncFor, ast.While)):
        deeper += [node.body, node.orelse]
    elif isinstance(node, (ast.With, ast.AsyncWith)):
        deeper.append(node.body)
    elif isinstance(node, ast.Try):
        deeper += [node.body, node.orelse, node.finalbody, *(handler.body for handler in node.handlers)]
    else:
        if isinstance(node, ast.Match):
            deeper += [case.body for case in node.cases]
        yield from ((child, nesting) for child in ast.iter_child_nodes(node))
    yield from ((child, nesting + 1) for block in deeper for child in block)


def added_cc(original: str, answer: str) -> int | None:
    """Cognitive complexity of the answer minus that of the original; None if either does not parse."""
    try:
        return cognitive_complexity(answer) - cognitive_complexity(original)
    except SyntaxError:
        return None


def fidelity(original: str, corrupted: str, answer: str) -> Fidelity:
    """Both measures of one answer."""
    return Fidelity(excess_levenshtein(original, corrupted, answer), added_cc(original, answer))
