"""One batch ahead (`rollout.max_off_policy_steps=1`): the next step's groups are made while this one trains.

A `CompletionSource` around another; the importance ratio accounts for the one update of staleness, which
is logged. Whoever replaces the sampler's weights must call `settle` first.
"""

from __future__ import annotations

from collections.abc import Callable

from onpol_cli.methods.base import Group
from onpol_cli.rollout.overlap import Prefetcher
from onpol_cli.training.sources import CompletionSource, Metrics


class AheadSource:
    """Groups made one step ahead in a thread.

    Args:
        source: makes them; called from that thread.
        version: the sampler's weight version.
        steps: length of the run.
        timeout_s: bound on waiting for a batch.
    """

    def __init__(self, source: CompletionSource, version: Callable[[], int], steps: int, timeout_s: float) -> None:
        self.prefetcher: Prefetcher[tuple[list[Group], Metrics]] = Prefetcher(
            source.groups, version, steps, ahead=1, timeout_s=timeout_s
        )

    def groups(self, step: int) -> tuple[list[Group], Metrics]:
        """Groups of `step`, with how many updates ago their weights were current."""
        made = self.prefetcher.take(step)
        groups, metrics = made.value
        return groups, {**metrics, "rollout/staleness": float(made.staleness)}

    def settle(self) -> None:
        """Wait until nothing is being sampled."""
        self.prefetcher.settle()

    def close(self) -> None:
        """Stop producing."""
        self.prefetcher.close()
