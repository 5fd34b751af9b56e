"""A learner process that its peers have left for good leaves too, even from a call that never returns.

When one process dies, torchrun sends SIGTERM to the others. One that waits for the dead one within NCCL does not come
back to Python to see it, and torchrun waits as long for it as for one that saves its state (see `launch_processes`).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from onpol_cli.core.console import say
from onpol_cli.core.processes import children

PATIENCE_S = 180.0
"""After the signal and the loss of a peer: time to close servers and to write how the run ended."""


def leave_when_left(patience: float = PATIENCE_S) -> None:
    """Start the watch, from the main thread of a process of torchrun or srun; needs /proc (Linux), else does nothing.

    Ends the process with status 1 once SIGTERM has come, a process that was started beside it is gone, and `patience`
    seconds later it is still here. A signal alone, with all peers alive, is a request to save: that may take its time.
    """
    peers = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if peers == 1 or not Path(f"/proc/{os.getppid()}/environ").exists():
        return
    told, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)  # written to at once, whatever the main thread is at
    threading.Thread(target=_watch, args=(told, os.getppid(), peers, patience), name="onpol-peers", daemon=True).start()


def _watch(told: int, parent: int, peers: int, patience: float) -> None:
    while signal.SIGTERM not in os.read(told, 64):
        continue
    while alive(parent) >= peers:
        time.sleep(1.0)
    time.sleep(patience)
    say("A process beside this one has ended, and this one still waits for it: it ends as well.")
    os._exit(1)


def alive(parent: int) -> int:
    """Children of process `parent` that were started as learner processes and have not ended."""
    return sum(map(_is_learner, children(parent)))


def _is_learner(pid: int) -> bool:
    try:
        return b"\0RANK=" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()  # empty of one that has ended
    except OSError:
        return False
