"""More tests for programs that come with few: varied inputs, answered by the reference solution.

Owns how inputs are varied. Constraints of the problem are not known, so variation is timid: values
stay near the range seen in the examples, and what holds for all of them (order, distinctness,
lengths that go together, a rectangular shape) is kept. Inputs that the reference cannot answer are
dropped by the caller. Problems with several right answers are left as they are. Runs nothing.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from onpol_cli.tasks.minimal_edit.testing import EditTests

_SEVERAL_ANSWERS = re.compile(r"any order|any valid|any of|any one|multiple (?:answers|valid|solutions)|random", re.I)
_LONGEST_TEXT = 600
"""Characters of one added test at most."""

NODE_BUILDERS = ("list_node", "tree_node")


class Built(NamedTuple):
    """An argument made by a node builder of the preamble: `list_node([1, 2])`."""

    builder: str
    values: list[Any]

    def __repr__(self) -> str:
        return f"{self.builder}({self.values!r})"


class ListNode:
    """Linked list, as the preamble of LeetCode problems defines it."""

    def __init__(self, val: Any = 0, next: Any = None) -> None:
        self.val, self.next = val, next


class TreeNode:
    """Binary tree, as the preamble of LeetCode problems defines it."""

    def __init__(self, val: Any = 0, left: Any = None, right: Any = None) -> None:
        self.val, self.left, self.right = val, left, right


def plain(argument: Any) -> Any:
    """What a program receives: nodes for `Built`, anything else as it is."""
    if not isinstance(argument, Built):
        return argument
    if argument.builder == "list_node":
        head: Any = None
        for value in reversed(argument.values):
            head = ListNode(value, head)
        return head
    return _tree(argument.values)


def _tree(values: list[Any]) -> Any:
    if not values:
        return None
    root = TreeNode(values[0])
    parents, rest = [root], list(values[1:])
    while rest and parents:
        parent = parents.pop(0)
        for side in ("left", "right"):
            value = rest.pop(0) if rest else None
            if value is not None:
                child = TreeNode(value)
                setattr(parent, side, child)
                parents.append(child)
    return root


def example_inputs(tests: EditTests) -> list[tuple[Any, ...]]:
    """Arguments, by position, of the calls in a `check(candidate)` script; [] where they cannot be read."""
    inputs: list[tuple[Any, ...]] = []
    try:
        for node in ast.walk(ast.parse(tests.source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "candidate":
                inputs.append(_arguments(node, tests.parameters))
    except (SyntaxError, ValueError):
        return []
    return inputs


def _arguments(call: ast.Call, parameters: Sequence[str]) -> tuple[Any, ...]:
    values = [_value(item) for item in call.args]
    named = {item.arg: _value(item.value) for item in call.keywords}
    rest = parameters[len(values) :]
    if set(rest) != set(named):
        raise ValueError("arguments do not fit the parameters")
    return (*values, *(named[name] for name in rest))


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NODE_BUILDERS:
        return Built(node.func.id, ast.literal_eval(node.args[0]))
    return ast.literal_eval(node)


def can_be_strengthened(tests: EditTests, text: str) -> bool:
    """Whether varied inputs have one right answer, as far as the statement tells."""
    return tests.kind == "assert" and "def check" in tests.source and not _SEVERAL_ANSWERS.search(text)


def vary(examples: Sequence[tuple[Any, ...]], rng: random.Random, count: int) -> list[tuple[Any, ...]]:
    """Up to `count` new inputs near `examples`, without repetitions, the same for the same `rng`."""
    columns = [list(column) for column in zip(*examples, strict=False)]
    fixed = _tied(columns)
    seen = {repr(example) for example in examples}
    found: list[tuple[Any, ...]] = []
    for _ in range(4 * count):
        base = rng.choice(list(examples))
        steps = rng.choice((1, 1, 2))
        new = list(base)
        for _ in range(steps):
            position = rng.randrange(len(new))
            new[position] = _vary(new[position], columns[position], rng, position in fixed)
        if repr(tuple(new)) not in seen and len(repr(new)) < _LONGEST_TEXT:
            seen.add(repr(tuple(new)))
            found.append(tuple(new))
        if len(found) == count:
            break
    return found


def _tied(columns: Sequence[list[Any]]) -> set[int]:
    """Positions whose size must not change: lengths equal to another's, or given as a number, in all examples."""
    sizes = [[len(v) if isinstance(v, (list, str)) else v if type(v) is int else None for v in c] for c in columns]
    tied: set[int] = set()
    for a in range(len(columns)):
        for b in range(a):
            if None not in sizes[a] and sizes[a] == sizes[b]:
                tied |= {a, b}
    return tied


def _vary(value: Any, column: list[Any], rng: random.Random, fixed: bool) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value if fixed else _number(value, [item for item in column if type(item) is int], rng)
    if isinstance(value, str):
        return _text(value, [item for item in column if isinstance(item, str)], rng, fixed)
    if isinstance(value, Built):
        return _built(value, [item.values for item in column if isinstance(item, Built)], rng)
    if isinstance(value, list) and value:
        lists = [item for item in column if isinstance(item, list)]
        if all(isinstance(item, list) for item in value):
            return _exchange_cells(value, rng)
        return _sequence(value, lists, rng, fixed)
    return value


def _number(value: int, seen: list[int], rng: random.Random) -> int:
    low, high = min(seen), max(seen)
    low = min(low, 1) if low > 0 else 0 if low == 0 else low - 2
    if rng.random() < 0.5:
        return max(low, value + rng.choice((-2, -1, 1, 2)))
    return rng.randint(low, high + 2)


def _text(value: str, seen: list[str], rng: random.Random, fixed: bool) -> str:
    alphabet = sorted(set("".join(seen)))
    one_class = all(c.isdigit() for c in alphabet) or all(c.islower() for c in alphabet)
    if not value or not alphabet or not (one_class or all(c.isupper() for c in alphabet)):
        return value  # brackets, signs, sentences: a grammar that we do not know
    return "".join(_sequence(list(value), [list(item) for item in seen if item], rng, fixed, tuple(alphabet)))


def _sequence(
    value: list[Any], seen: list[list[Any]], rng: random.Random, fixed: bool, alphabet: tuple[Any, ...] = ()
) -> list[Any]:
    """A list with one element changed, moved, added or dropped, keeping what holds for all of `seen`."""
    flat = [item for items in seen for item in items]
    if len({type(item) for item in flat}) != 1 or type(flat[0]) not in (int, str):
        return value
    keep_sorted = all(items == sorted(items) for items in seen) and not alphabet
    distinct = all(len(set(items)) == len(items) for items in seen) and not alphabet
    whole = not alphabet and type(flat[0]) is int and all(_is_range(items) for items in seen)
    shortest = min(len(items) for items in seen)
    new = list(value)
    at, other = rng.randrange(len(new)), rng.randrange(len(new))
    move = rng.choice(("exchange",) if whole else ("exchange", "set", "set", "add", "drop"))
    if move == "exchange" or (move in ("add", "drop") and (fixed or whole)):
        new[at], new[other] = new[other], new[at]
    elif move == "drop":
        if len(new) > max(1, min(shortest, 2)):
            del new[at]
    else:
        item = _element(flat, rng, alphabet)
        new[at : at + (move == "set")] = [item]
    if distinct:
        new = list(dict.fromkeys(new)) if not fixed else (new if len(set(new)) == len(new) else list(value))
    return sorted(new) if keep_sorted else new


def _element(flat: list[Any], rng: random.Random, alphabet: tuple[Any, ...]) -> Any:
    if alphabet or isinstance(flat[0], str) or rng.random() < 0.5:
        return rng.choice(alphabet or flat)
    return rng.randint(min(flat), max(flat))


def _is_range(items: list[int]) -> bool:
    return sorted(items) == list(range(min(items), min(items) + len(items))) if items else True


def _exchange_cells(value: list[Any], rng: random.Random) -> list[Any]:
    """A rectangular grid of plain cells with two cells exchanged; anything else unchanged."""
    width = {len(row) for row in value}
    if len(width) != 1 or width == {0} or any(isinstance(cell, list) for row in value for cell in row):
        return value
    grid = [list(row) for row in value]
    (r1, r2), (c1, c2) = [[rng.randrange(n) for _ in range(2)] for n in (len(grid), len(grid[0]))]
    grid[r1][c1], grid[r2][c2] = grid[r2][c2], grid[r1][c1]
    return grid


def _built(value: Built, seen: list[list[Any]], rng: random.Random) -> Built:
    """A linked list varied like a list; a tree cut at its end or with all values shifted (search order stays)."""
    if not value.values:
        return value
    if value.builder == "list_node":
        return Built(value.builder, _sequence(value.values, [items for items in seen if items], rng, False))
    if rng.random() < 0.5 and len(value.values) > 1:
        return Built(value.builder, value.values[: rng.randrange(1, len(value.values))])
    by = rng.choice((1, 2, 3))
    return Built(value.builder, [item + by if type(item) is int else item for item in value.values])


def with_tests(tests: EditTests, inputs: Sequence[tuple[Any, ...]], results: Sequence[Any]) -> str:
    """The test script with one assert more for each input."""
    lines = [tests.source.rstrip()]
    for arguments, result in zip(inputs, results, strict=True):
        given = ", ".join(f"{name} = {value!r}" for name, value in zip(tests.parameters, arguments, strict=True))
        lines.append(f"    assert candidate({given}) == {result!r}")
    return "\n".join(lines) + "\n"


def is_exact(result: Any) -> bool:
    """Whether a result can be written into a test and compared with `==`: plain literals, no floats, not long."""
    text = repr(result)
    if len(text) > _LONGEST_TEXT or _has_float(result):
        return False
    try:
        return bool(ast.literal_eval(text) == result)
    except (ValueError, SyntaxError):
        return False


def _has_float(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_float, (*value.keys(), *value.values())))
    return isinstance(value, float) or (isinstance(value, (list, tuple, set)) and any(map(_has_float, value)))
