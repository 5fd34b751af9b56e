"""Items of the world: a specification written in one style, with checked tests, in its split.

Owns the split (by skeleton: programs that differ only in constants or in style never lie in two
splits), the checks that make an item usable, and mutants that provably fail.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from onpol_cli.core.seeding import derive_rng
from onpol_cli.tasks.minimal_edit.families import Corruption, corrupt
from onpol_cli.tasks.world.inputs import InputMaker, Raised, run_trusted
from onpol_cli.tasks.world.render import ENTRY_POINT, render
from onpol_cli.tasks.world.spec import Piecewise, Spec, draw_spec
from onpol_cli.tasks.world.style import draw_style

SPLITS = ("train", "validation", "test")
_VALIDATION_PERCENT, _TEST_PERCENT = 8, 12
_MAX_CHARACTERS = 320
_TRIES = 6


@dataclass(frozen=True)
class Item:
    """A usable program.

    Attributes:
        spec: what it does.
        source: the program in its style.
        calls: arguments of each test.
        expected: result of each test.
    """

    spec: Spec
    source: str
    calls: tuple[tuple[Any, ...], ...]
    expected: tuple[Any, ...]

    @property
    def item_id(self) -> str:
        """Identity of the program, style apart."""
        return hashlib.sha256(self.spec.identity.encode()).hexdigest()[:12]


def split_of(spec: Spec) -> str:
    """The split that `spec` belongs to, by its skeleton: whatever the seed, constants or style."""
    bucket = int.from_bytes(hashlib.sha256(spec.skeleton.encode()).digest()[:4], "big") % 100
    if bucket < _TEST_PERCENT:
        return "test"
    return "validation" if bucket < _TEST_PERCENT + _VALIDATION_PERCENT else "train"


def draw_spec_of(split: str, rng: random.Random) -> Spec:
    """A random specification of `split`."""
    while True:
        spec = draw_spec(rng)
        if split_of(spec) == split:
            return spec


def _telling(expected: Sequence[Any]) -> bool:
    """Whether the results vary enough to tell programs apart, and none is an exception."""
    if any(isinstance(value, Raised) for value in expected):
        return False
    shown = [repr(value) for value in expected]
    return len(set(shown)) > 1 and max(map(shown.count, set(shown))) <= 0.8 * len(shown)


def try_item(spec: Spec, rng: random.Random) -> Item | None:
    """`spec` in a random style with tests; None if it is too long or its tests tell too little."""
    source = render(spec, draw_style(rng))
    if len(source) > _MAX_CHARACTERS:
        return None
    calls = InputMaker(spec.params, spec.values(), rng, isinstance(spec, Piecewise)).inputs()
    expected = run_trusted(source, ENTRY_POINT, calls)
    return Item(spec, source, tuple(calls), tuple(expected)) if _telling(expected) else None


def fails(item: Item, source: str) -> bool:
    """Whether `source`, made from the item's own by the corruption engine, fails one of its tests."""
    try:
        results = run_trusted(source, ENTRY_POINT, item.calls)
    except SyntaxError:
        return False
    return any(isinstance(got, Raised) or got != want for got, want in zip(results, item.expected, strict=True))


def failing_mutant(item: Item, families: Sequence[str], rng: random.Random) -> Corruption | None:
    """A mutant with one edit from `families` that fails a test of `item`; None if none was found."""
    for _ in range(_TRIES):
        mutant = corrupt(item.source, families, rng)
        if mutant is None:
            return None
        if fails(item, mutant.source):
            return mutant
    return None


def draw_items(seed: int, split: str, stream: str) -> Iterator[Item]:
    """Endless distinct items of `split`; item `i` depends on nothing but the arguments and earlier items."""
    rng = derive_rng(seed, "world", split, stream)
    seen: set[str] = set()
    while True:
        spec = draw_spec_of(split, rng)
        if spec.identity in seen:
            continue
        item = try_item(spec, rng)
        if item is not None:
            seen.add(spec.identity)
            yield item
