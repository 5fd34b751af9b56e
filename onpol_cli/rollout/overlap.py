"""One batch ahead: generating and grading the next batch while the learner trains on the last one.

Owns the background thread, its hand-over, and how stale a batch is. What is produced is a callable's
business. With `rollout.max_off_policy_steps=1` the batch of step t + 1 is sampled from the weights
before update t, so that it is one update old when it is trained on; the importance ratio accounts for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch

from onpol_cli.core.console import LOGGER, say
from onpol_cli.core.errors import RunFailed

T = TypeVar("T")
PATIENCE_S = 2.0
"""`close` says what it waits for after this many seconds."""


@dataclass(frozen=True)
class Produced(Generic[T]):
    """A batch.

    Attributes:
        value: what `produce` returned.
        version: sampler weights it was made with.
        staleness: weight updates between its production and `take`.
        waited: whether `take` produced it itself, nothing having been prepared.
    """

    value: T
    version: int
    staleness: int
    waited: bool


class Prefetcher(Generic[T]):
    """Calls `produce(step)` one step ahead in a thread.

    Use: `take(step)` at the start of a step, `settle()` before the sampler's weights change; a context whose end
    waits for the batch in the making, so that what makes it must be closed after it.

    Args:
        produce: makes the batch of a step; called from one other thread at a time, on the CUDA device of the caller.
        version: the sampler's current weight version.
        steps: number of steps of the run; nothing is produced for `steps` or later.
        ahead: 1, or 0 to produce each batch when it is taken (strictly on-policy).
        timeout_s: bound on every wait.
    """

    def __init__(
        self, produce: Callable[[int], T], version: Callable[[], int], steps: int, ahead: int = 1,
        timeout_s: float = 3600.0,
    ) -> None:
        assert ahead in (0, 1), "one batch ahead at most"
        self.produce, self.version, self.steps, self.ahead, self.timeout_s = produce, version, steps, ahead, timeout_s
        self.pending: tuple[int, int, Future[T]] | None = None
        self.known: BaseException | None = None
        self.late = False
        self.restored: tuple[int, T, int] | None = None

    def take(self, step: int) -> Produced[T]:
        """The batch of `step`; starts on the one of `step + 1`.

        Raises:
            RunFailed: it was not ready in time.
        """
        if self.restored is not None and self.restored[0] == step:
            _, value, age = self.restored
            made_with, waited = self.version() - age, False
        elif self.pending is not None and self.pending[0] == step:
            _, made_with, future = self.pending
            value, waited = self._result(future), False
        else:
            self.settle()
            made_with, waited = self.version(), True
            value = self.produce(step)
        self.pending = self.restored = None
        now = self.version()
        if self.ahead and step + 1 < self.steps:
            self._begin(step + 1, now)
        return Produced(value, made_with, now - made_with, waited)

    def _begin(self, step: int, version: int) -> None:
        """Make a batch in a thread of its own, which does not keep a process alive that no longer waits for it.

        CUDA's current device is each thread's own and starts at 0; the engine of this process may be on another one.
        """
        future: Future[T] = Future()
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

        def fill() -> None:
            try:
                if device is not None:
                    torch.cuda.set_device(device)
                future.set_result(self.produce(step))
            except BaseException as error:  # raised where the batch is taken
                future.set_exception(error)

        self.pending = (step, version, future)  # before the start: whatever interrupts, `close` finds what runs
        threading.Thread(target=fill, name="onpol-rollouts", daemon=True).start()

    def waiting(self, step: int) -> tuple[int, T, int] | None:
        """`step`, its batch and its staleness by now, if that batch is made or being made (then waited for)."""
        if self.pending is None or self.pending[0] != step:
            return self.restored if self.restored is not None and self.restored[0] == step else None
        _, made_with, future = self.pending
        return step, self._result(future), self.version() - made_with

    def put(self, step: int, value: T, staleness: int) -> None:
        """Let `take(step)` give `value`, as old as it was in the process that made it."""
        self.restored = step, value, staleness

    def settle(self) -> None:
        """Wait until nothing is being produced: weights must not change under a batch."""
        if self.pending is not None:
            self._result(self.pending[2])

    def _result(self, future: Future[T]) -> T:
        wait([future], self.timeout_s)
        if future.done():
            self.known = future.exception()
            return future.result()
        self.late = True
        raise RunFailed(
            f"The next batch was not sampled and graded within {self.timeout_s:.0f} s. Look into the engine's log; "
            "--resume goes on from the newest state (run.save_every)."
        )

    def close(self) -> None:
        """Wait for the batch in the making, `timeout_s` at most, and drop it; its failure is only logged.

        Raises:
            KeyboardInterrupt: asked not to wait.
        """
        pending, self.pending = self.pending, None
        if pending is None or self.late:  # what was waited for in vain had its time
            return
        future = pending[2]
        if not wait([future], PATIENCE_S).done:
            say("Waiting for the batch that is being sampled and graded. Ctrl-C ends the wait.")
            wait([future], self.timeout_s)
        if not future.done():
            LOGGER.warning("the batch of step %d is still being made after %.0f s", pending[0], self.timeout_s)
        elif (error := future.exception()) is not None and error is not self.known:
            LOGGER.warning("the batch of step %d failed: %s: %s", pending[0], type(error).__name__, error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except KeyboardInterrupt:
            if error is None:
                raise
