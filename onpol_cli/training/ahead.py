"""One batch ahead (`rollout.max_off_policy_steps=1`): the next step's groups are made while this one trains.

A `CompletionSource` around another; the importance ratio accounts for the one update of staleness, which
is logged. Whoever replaces the sampler's weights must call `settle` first. The batch that waits was sampled with
weights that are gone after the update, so a state holds it (`pending`) and a resumed run gets it back (`put_back`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from onpol_cli.core.types import Problem
from onpol_cli.learner.parallel import World
from onpol_cli.methods.base import Group
from onpol_cli.rollout.overlap import Prefetcher
from onpol_cli.training.pending import groups_of, plain
from onpol_cli.training.sources import CompletionSource, Metrics, rollout_metrics

Made = tuple[list[Group], Metrics]


class AheadSource:
    """Groups made one step ahead in a thread; a context to be left before the sampler and the grader are closed.

    Args:
        source: makes them; called from that thread.
        version: the sampler's weight version.
        steps: length of the run.
        timeout_s: bound on waiting for a batch.
        problems: those that groups are of, to put saved groups together again.
    """

    def __init__(
        self,
        source: CompletionSource,
        version: Callable[[], int],
        steps: int,
        timeout_s: float,
        problems: Sequence[Problem] = (),
    ) -> None:
        self.prefetcher: Prefetcher[Made] = Prefetcher(source.groups, version, steps, ahead=1, timeout_s=timeout_s)
        self.problems = {problem.problem_id: problem for problem in problems}
        self.taken: tuple[int, Made, int] | None = None

    def groups(self, step: int) -> tuple[list[Group], Metrics]:
        """Groups of `step`, with how many updates ago their weights were current."""
        made = self.prefetcher.take(step)
        self.taken = step, made.value, made.staleness
        groups, metrics = made.value
        return groups, {**metrics, "rollout/staleness": float(made.staleness)}

    def pending(self, step: int, world: World) -> dict[str, Any] | None:
        """The batch of `step` as plain values, if it is made, taken or not. A collective call.

        Returns:
            `step`, `staleness`, `groups` of all processes in the order of one, `metrics` of each process.
        """
        found = self.taken if self.taken is not None and self.taken[0] == step else self.prefetcher.waiting(step)
        if found is None:  # on every process alike: they take the same steps
            return None
        _, (groups, metrics), staleness = found
        return {
            "step": step,
            "staleness": staleness,
            "groups": plain(world.join(groups)),
            "metrics": world.gather(metrics),
        }

    def put_back(self, pending: Mapping[str, Any], world: World) -> None:
        """Make the batch that `pending` gave the next one; the sampler may get its weights before or after."""
        groups = world.share(groups_of(pending["groups"], self.problems))
        everyone = pending["metrics"]
        metrics = everyone[world.rank % len(everyone)]
        if len(everyone) != world.size and "reward/mean" in metrics:  # other shares than those that were measured
            metrics |= rollout_metrics(groups)
        self.prefetcher.put(pending["step"], (groups, metrics), pending["staleness"])

    def settle(self) -> None:
        """Wait until nothing is being sampled."""
        self.prefetcher.settle()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the batch in the making. A Ctrl-C meanwhile ends the wait; `error`, if any, stays the first."""
        self.prefetcher.__exit__(kind, error, trace)
