"""Memory of this process: its peak, and the C allocator's habits."""

from __future__ import annotations

import ctypes
import ctypes.util
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's `mallopt` parameters."""


def keep_freed_memory() -> None:
    """Let glibc reuse large freed blocks instead of returning them to the system.

    A training step allocates the same few megabytes hundreds of times; each return costs a page fault
    per 4 KiB on the next use (17,000 faults and a sixth of the CPU time of a tiny step). Elsewhere than
    on glibc nothing is done.
    """
    if sys.platform != "linux":
        return
    library = ctypes.util.find_library("c")
    mallopt = getattr(ctypes.CDLL(library), "mallopt", None) if library else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, 1 << 30)
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


def forget_peak(device: torch.device) -> None:
    """Let the peak begin at what is held now: that of a run, not of what the process did before."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):  # Linux: VmHWM becomes VmRSS
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory since `forget_peak`, MiB: allocated by torch on a GPU, else resident.

    Where /proc does not tell, it is the process's from its start (and on Linux at least its parent's).
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes
