"""Test inputs: edge cases first, then random ones near the constants of the specification."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from onpol_cli.tasks.world.terms import Constant

INPUTS = 14
"""Test inputs per problem."""
_ALPHABET = "aeinorst"


def _numbers(rng: random.Random, near: Sequence[int], size: int) -> list[int]:
    def one() -> int:
        if near and rng.random() < 0.5:
            return rng.choice(near) + rng.choice((-1, 0, 0, 1))
        return rng.randint(-9, 20)

    found = [one() for _ in range(size)]
    if size > 2 and rng.random() < 0.4:
        found[-1] = found[0]
    return found


def _word(rng: random.Random, size: int) -> str:
    word = "".join(rng.choices(_ALPHABET, k=size))
    if rng.random() < 0.3:
        word = word.upper() if rng.random() < 0.3 else word.capitalize()
    if rng.random() < 0.2:
        word = rng.choice((f" {word}", f"{word} ", f" {word} "))
    return word


class InputMaker:
    """Draws the arguments of one problem.

    Args:
        params: parameter names of the function; the name decides the type.
        constants: constants of the specification.
        rng: source of randomness.
        signed: n may be far below zero (piecewise functions).
    """

    def __init__(self, params: Sequence[str], constants: Sequence[Constant], rng: random.Random, signed: bool) -> None:
        self.params, self.rng, self.signed = params, rng, signed
        self.near = [value for value in constants if isinstance(value, int)]
        self.keys = [_word(rng, rng.randint(1, 6)).strip() for _ in range(8)]

    def _xs(self, size: int) -> list[int]:
        return _numbers(self.rng, self.near, size)

    def _n(self, size: int) -> int:
        if not self.signed:
            return size + self.rng.choice((0, 0, 0, 3, 8))
        return _numbers(self.rng, self.near, 1)[0]

    def _words(self, size: int) -> list[str]:
        rng = self.rng
        return [rng.choice(self.keys) if rng.random() < 0.4 else _word(rng, rng.randint(1, 7)) for _ in range(size)]

    def _s(self, size: int) -> str:
        text = self.rng.choice((" ", " ", ",")).join(self._words(max(size // 2, min(size, 1))))
        return text if self.rng.random() < 0.7 else f" {text} "

    def _d(self, size: int) -> dict[str, int]:
        return dict(zip(self.rng.sample(self.keys, k=min(size, 7)), self._xs(size), strict=False))

    def _rows(self, size: int) -> list[list[int]]:
        return [self._xs(self.rng.randint(1, 5)) for _ in range(min(size, 5))]

    def draw(self, size: int) -> tuple[Any, ...]:
        """One argument per parameter, of about `size` elements."""
        makers: dict[str, Callable[[int], Any]] = {
            "xs": self._xs,
            "ys": self._xs,
            "n": self._n,
            "words": self._words,
            "s": self._s,
            "d": self._d,
            "rows": self._rows,
        }
        return tuple(makers[name](size) for name in self.params)

    def inputs(self) -> list[tuple[Any, ...]]:
        """Arguments of `INPUTS` tests: empty, one and two elements, then more."""
        sizes = [0, 1, 1, 2, 3] + [self.rng.randint(3, 9) for _ in range(INPUTS - 5)]
        return [self.draw(size) for size in sizes]


class OrderedSet(dict[Any, None]):
    """Stands for `set` in trusted runs: iterates in the order of insertion.

    The order of a real set of strings changes with the process's hash seed, and with it whether a
    mutant such as `sorted(set(words), key=len)` fails: problem sets would differ between processes.
    """

    def __init__(self, values: Iterable[Any] = ()) -> None:
        super().__init__(dict.fromkeys(values))

    def add(self, value: Any) -> None:
        """As `set.add`."""
        self[value] = None


class Raised:
    """Stands for the result of a call that raised; equal to nothing."""


def run_trusted(source: str, entry_point: str, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Results of the world's own code on copies of `calls`; `Raised()` where a call raised.

    Only for programs that the world wrote or the corruption engine made from them: they hold no
    `while`, no recursion and no imports. Model answers never come here.
    """
    space: dict[str, Any] = {"set": OrderedSet}
    exec(compile(source, "<world>", "exec"), space)
    results: list[Any] = []
    for call in calls:
        try:
            results.append(space[entry_point](*copy.deepcopy(call)))
        except (ArithmeticError, AttributeError, LookupError, NameError, TypeError, ValueError):
            results.append(Raised())
    return results
