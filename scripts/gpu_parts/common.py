"""What all parts share: the setting, clocks, peak memory, Qwen3 shapes and their arithmetic."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from onpol_cli.learner.shapes import QWEN3, Shape, hf_config

GIB = 2**30
Found = Iterator[tuple[str, Any]]
"""What a part yields: name and value, as soon as each is known, so that a later failure loses nothing."""


@dataclass(frozen=True)
class Setting:
    """Where and how large: `device` cpu or cuda; `small` shrinks every shape to what a CPU does in a second."""

    device: str
    small: bool

    @property
    def place(self) -> torch.device:
        """The device as torch has it."""
        return torch.device(self.device)

    def pick(self, full: Any, small: Any) -> Any:
        """The one of two values that fits the size."""
        return small if self.small else full


def synchronise(device: torch.device) -> None:
    """Wait for all kernels."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds of `work`, kernels included."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def best(work: Callable[[], Any], device: torch.device, repeats: int = 5, limit: float = 10.0) -> float:
    """Smallest of up to `repeats` timings after a warm-up; no new one begins after `limit` seconds."""
    work()
    times, start = [seconds(work, device)], time.perf_counter()
    while len(times) < repeats and time.perf_counter() - start < limit:
        times.append(seconds(work, device))
    return min(times)


class Peak:
    """Largest memory since it was made, GiB: torch's allocations on a GPU, resident size on Linux, else None."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self.start = torch.cuda.memory_allocated(device)
            return
        reset = Path("/proc/self/clear_refs")
        if reset.exists():
            reset.write_text("5")
        self.start = resident("VmRSS")

    def gib(self, above: bool = False) -> float | None:
        """The peak, or only what is `above` the start."""
        on_gpu = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.device) if on_gpu else resident("VmHWM")
        return round((peak - (self.start if above else 0)) / GIB, 4) if peak else None


def resident(field: str) -> int:
    """`VmRSS` or `VmHWM` of this process, bytes; 0 where there is no /proc."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), 0)


REAL_VOCABULARY = {"0.6b": 151669, "4b": 151669, "small": 1000}
"""Tokens of the tokenizer; the output matrix has more rows."""


SHAPES = {
    "0.6b": QWEN3["0.6B"],
    "4b": QWEN3["4B"],
    "small": Shape(64, 2, 2, 1, 32, 128, 1024, tied=True),
}
"""Sizes of the models that are measured."""


def qwen3(size: str) -> Any:
    """Configuration of Qwen3 `0.6b` or `4b`, or of a `small` one."""
    return hf_config(SHAPES[size])


def random_model(size: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Qwen3 of `size` with random weights, as the project makes them."""
    from onpol_cli.learner.model import random_model as build

    return build(qwen3(size), 0, dtype, device)


def step_flops(size: str, rows: int, prompt: int, completion: int, passes: int = 3) -> float:
    """Useful operations of a step over `rows` equal sequences, recomputation not counted.

    2 per weight and token for each of `passes` products (forward, and one backward each for inputs and
    weights: 3 for full training, 2 with frozen weights, 1 for scoring), the output matrix on completion
    tokens only; causal attention 2 x heads x width x length per layer and token, backward twice that.
    """
    shape = SHAPES[size]
    length = prompt + completion
    layers = shape.layers * shape.layer_parameters * length
    head = shape.vocab * shape.hidden * completion
    attention = 2 * shape.layers * shape.heads * shape.head_dim * length * length
    return rows * (2 * passes * (layers + head) + (1 if passes == 1 else 3) * attention)
