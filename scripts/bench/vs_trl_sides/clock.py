"""Seconds by phase: wraps methods of a trainer and of ours alike, nested phases counted once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Clock:
    """Wall seconds by phase of each step; a phase entered inside another is taken out of the outer one."""

    def __init__(self) -> None:
        self.now: dict[str, float] = {}
        self.steps: list[dict[str, float]] = []
        self._stack: list[tuple[str, float]] = []
        self.start()

    def wrap(self, owner: Any, name: str, phase: str | Callable[..., str]) -> None:
        """Count the time inside `owner.name` as `phase` (or as what `phase(*args)` says)."""
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._enter(phase if isinstance(phase, str) else phase(*args))
            try:
                return inner(*args, **kwargs)
            finally:
                self._leave()

        setattr(owner, name, timed)

    def _enter(self, phase: str) -> None:
        self._charge()
        self._stack.append((phase, time.perf_counter()))

    def _leave(self) -> None:
        self._charge()
        self._stack.pop()
        if self._stack:
            self._stack[-1] = (self._stack[-1][0], time.perf_counter())

    def _charge(self) -> None:
        """Give the time since the last change to the innermost phase."""
        if self._stack:
            phase, since = self._stack[-1]
            self.now[phase] = self.now.get(phase, 0.0) + time.perf_counter() - since

    def start(self) -> None:
        """The first step begins here."""
        self.now, self._began, self._cpu = {}, time.perf_counter(), time.process_time()

    def step(self) -> None:
        """A step ends here and the next begins; what no phase covers is `other`, `cpu` is the process's CPU time."""
        total, cpu = time.perf_counter() - self._began, time.process_time() - self._cpu
        self.steps.append({**self.now, "other": total - sum(self.now.values()), "total": total, "cpu": cpu})
        self.start()
