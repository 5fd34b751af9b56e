"""Shell completion of run names, benches, experiments and overrides. Reads files only; imports nothing heavy."""

from __future__ import annotations

import json
from pathlib import Path

DEFAULT_RUNS = Path("results/runs")
BENCHES = (
    "tiny-edit-ood", "tiny-edit-id", "tiny-codegen", "minimal-edit", "livecodebench",
    "humanevalfix", "quixbugs", "humaneval", "mbpp",
)  # fmt: skip


def runs(incomplete: str) -> list[str]:
    """Names of runs, and `latest:<method>` for the methods that have a finished one."""
    found = sorted(file.parent for file in DEFAULT_RUNS.glob("**/manifest.json"))
    names = [folder.name for folder in found] + sorted({f"latest:{m}" for m in map(_method, found) if m})
    return [name for name in names if name.startswith(incomplete)]


def _method(folder: Path) -> str | None:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return str(manifest["method_choice"]) if manifest.get("method_choice") else None


def benches(incomplete: str) -> list[str]:
    """Bench names."""
    return [name for name in BENCHES if name.startswith(incomplete)]


def experiments(incomplete: str) -> list[str]:
    """Experiments of the configuration folder."""
    return [name for name in _choices("experiment") if name.startswith(incomplete)]


def overrides(incomplete: str) -> list[str]:
    """Setting names; after `group=` the choices of a config group; after `tutor=` runs."""
    from onpol_cli.core.settings import groups, keys

    name, equals, value = incomplete.partition("=")
    if not equals:
        return [f"{key}=" for key in [*groups(), *keys()] if key.startswith(incomplete)]
    if name in ("tutor", "model.path"):
        return [f"{name}={run}" for run in runs(value)]
    return [f"{name}={choice}" for choice in groups().get(name, []) if choice.startswith(value)]


def _choices(group: str) -> list[str]:
    from onpol_cli.core.settings import groups

    return groups().get(group, [])
