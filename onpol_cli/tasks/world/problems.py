"""Problem sets of the world, made on the fly and kept in memory.

Owns the sizes of the fixed sets and the turn from an item into a `Problem`. The sets of one split and
seed share their items, so that edit and generation benches ask about the same programs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.seeding import derive_rng
from onpol_cli.core.types import Problem
from onpol_cli.sandbox.jobs import CallJob
from onpol_cli.tasks.minimal_edit.families import Corruption
from onpol_cli.tasks.world.items import SPLITS, Item, draw_items, failing_mutant
from onpol_cli.tasks.world.render import ENTRY_POINT, signature

TEST_PROBLEMS = 1000
TRAIN_LIMIT = 20_000
"""Training problems when all are asked for; the world itself has no end."""


@dataclass(frozen=True)
class CallTests:
    """Calls and their right results, as the sandbox wants them."""

    calls: tuple[tuple[Any, ...], ...]
    expected: tuple[Any, ...]


class _Stream:
    """The items of one seed and split, drawn as far as anybody has asked."""

    def __init__(self, seed: int, split: str) -> None:
        self._source = draw_items(seed, split, "problems")
        self._items: list[Item] = []

    def __iter__(self) -> Iterator[Item]:
        position = 0
        while True:
            if position == len(self._items):
                self._items.append(next(self._source))
            yield self._items[position]
            position += 1


@lru_cache(maxsize=8)
def _stream(seed: int, split: str) -> _Stream:
    return _Stream(seed, split)


def set_size(split: str, train: int, validation: int) -> int:
    """Number of problems of `split`.

    Args:
        split: train, validation or test.
        train: training problems wanted; 0 is `TRAIN_LIMIT`.
        validation: validation problems wanted.

    Raises:
        OnpolError: unknown split.
    """
    sizes = {"train": train or TRAIN_LIMIT, "validation": validation, "test": TEST_PROBLEMS}
    if split not in sizes:
        raise OnpolError(f"Unknown split {split!r} of the procedural world. Allowed: {', '.join(SPLITS)}.")
    return sizes[split]


def _problem(item: Item, mutant: Corruption | None) -> Problem:
    meta: dict[str, Any] = {"skeleton": item.spec.skeleton, "signature": signature(item.spec)}
    if mutant is not None:
        meta["corruptions"] = list(mutant.sites)
    return Problem(
        problem_id=item.item_id,
        statement=item.spec.english(),
        tests=CallTests(item.calls, item.expected),
        original=item.source,
        corrupted=mutant.source if mutant else None,
        entry_point=ENTRY_POINT,
        families=mutant.families if mutant else (),
        meta=meta,
    )


@lru_cache(maxsize=32)
def generation_problems(seed: int, split: str, count: int) -> tuple[Problem, ...]:
    """The first `count` programs of `split`, to be written from their description."""
    return tuple(_problem(item, None) for item, _ in zip(_stream(seed, split), range(count), strict=False))


@lru_cache(maxsize=32)
def edit_problems(seed: int, split: str, families: tuple[str, ...], count: int) -> tuple[Problem, ...]:
    """The first `count` programs of `split` that `families` can break, each with one failing mutant.

    The mutant of a program depends on the seed, the families and the program only. Every family breaks
    at least one program in a hundred, so that any choice of families fills a set.
    """
    found: list[Problem] = []
    for item in _stream(seed, split):
        if len(found) == count:
            break
        mutant = failing_mutant(item, families, derive_rng(seed, "mutant", *families, item.item_id))
        if mutant is not None:
            found.append(_problem(item, mutant))
    return tuple(found)


def call_job(problem: Problem, code: str) -> CallJob:
    """The sandbox job that tests `code` against `problem`."""
    tests = problem.tests
    assert isinstance(tests, CallTests)
    return CallJob(source=code, entry_point=ENTRY_POINT, calls=tests.calls, expected=tests.expected)
