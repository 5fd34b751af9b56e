"""Child processes: who they are, and that they end with this one. By /proc and prctl, which Linux has."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that a process gets when its parent dies."""


def children(pid: int) -> list[int]:
    """Processes that `pid` started; none where /proc does not tell."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # a thread that ended meanwhile
            found += map(int, file.read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """`pid` and all processes below it."""
    found = [pid]
    for parent in found:  # grows under way
        found += children(parent)
    return found


def kill_all(pid: int) -> None:
    """SIGKILL to `pid` and all processes below it."""
    for each in descendants(pid):
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def end_with_parent() -> None:
    """Called in a child: when its parent is killed it gets SIGTERM, as the user would send it, and can save."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
