"""Which problems a step sees: a pure function of seed and step, so that a resume needs no data position."""

from __future__ import annotations

from functools import lru_cache

from onpol_cli.core.seeding import derive_rng


class Order:
    """Endless epochs over `size` items, each epoch shuffled by its own derived seed."""

    def __init__(self, size: int, seed: int) -> None:
        assert size > 0
        self.size = size
        self.seed = seed

    def take(self, step: int, count: int) -> list[int]:
        """Indices of the `count` items of 0-based `step`."""
        start = step * count
        return [self._epoch(place // self.size)[place % self.size] for place in range(start, start + count)]

    @lru_cache(maxsize=2)  # noqa: B019 - one order lives as long as its run
    def _epoch(self, epoch: int) -> list[int]:
        items = list(range(self.size))
        derive_rng(self.seed, "order", epoch).shuffle(items)
        return items
