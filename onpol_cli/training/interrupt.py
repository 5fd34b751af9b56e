"""Ctrl-C, SIGTERM and SIGHUP: the loop obeys at the next step boundary, with a checkpoint; all else ends in order."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from onpol_cli.core.console import say

Handler = Callable[[int, FrameType | None], None]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends a command from outside: Ctrl-C, a scheduler, a terminal that closes."""


class Interrupted(KeyboardInterrupt):
    """The run stopped on request after saving its state. The command line exits 130."""


def handle(numbers: tuple[signal.Signals, ...], handler: Handler) -> Callable[[], None]:
    """Have `handler` called for signals `numbers`, SIGHUP not where it is ignored (`nohup`); only the main thread can.

    Returns:
        What puts the handlers from before back.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    before: dict[int, Any] = {number: signal.signal(number, handler) for number in numbers if number not in ignored}

    def restore() -> None:
        for number, old in before.items():
            signal.signal(number, old)

    return restore


@contextmanager
def ended_in_order() -> Iterator[None]:
    """A context in which SIGTERM and SIGHUP unwind like Ctrl-C, so that servers are stopped and the status is written.

    What unwinds already is left to end: torchrun sends SIGTERM to the processes that are still closing their parts
    when the first of them has ended after a failure of all.
    """

    def end(number: int, frame: FrameType | None) -> None:
        if sys.exc_info()[0] is None:
            raise KeyboardInterrupt(f"Ended by {signal.Signals(number).name}.")

    restore = handle((signal.SIGTERM, signal.SIGHUP), end)
    try:
        yield
    finally:
        restore()


class StopRequest:
    """A context in which the signals set `asked`; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.asked = False
        self._restore: Callable[[], None] = lambda: None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        say("Stopping after this step; its state will be saved. Ctrl-C again stops at once.")

    def __enter__(self) -> StopRequest:
        self._restore = handle(SIGNALS, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
