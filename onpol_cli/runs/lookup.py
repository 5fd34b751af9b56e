"""Finding runs by name, unique prefix, path, or `latest:<method>`."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onpol_cli.core.errors import OnpolError
from onpol_cli.runs.rundir import MANIFEST, is_locked, read_manifest

LATEST = "latest:"


@dataclass(frozen=True)
class RunInfo:
    """A run directory seen from outside."""

    path: Path
    manifest: dict[str, Any]

    @property
    def name(self) -> str:
        """Directory name."""
        return self.path.name

    @property
    def status(self) -> str:
        """running, done, failed, interrupted; damaged where the manifest cannot be read."""
        return str(self.manifest.get("status", "unknown"))

    @property
    def state(self) -> str:
        """The status, but `died` for a run that says `running` while no process holds its lock."""
        return "died" if self.status == "running" and not is_locked(self.path) else self.status

    @property
    def has_checkpoint(self) -> bool:
        """Whether it holds final weights."""
        return (self.path / "checkpoint" / "config.json").is_file()


def list_runs(root: Path) -> list[RunInfo]:
    """All runs under `root`, oldest first by start time. An unreadable manifest makes a run `damaged`."""
    if not root.is_dir():
        return []
    found = [_info(file.parent) for file in root.rglob(MANIFEST)]
    return sorted(found, key=lambda info: (str(info.manifest.get("started", "")), info.name))


def _info(path: Path) -> RunInfo:
    try:
        return RunInfo(path, read_manifest(path))
    except OnpolError:
        return RunInfo(path, {"status": "damaged"})


def find_run(spec: str, root: Path) -> RunInfo:
    """The run that `spec` names: path, name, unique prefix, or `latest:<method>`.

    Raises:
        OnpolError: none or several fit; the message lists the candidates.
    """
    path = Path(spec)
    if (path / MANIFEST).is_file():
        return RunInfo(path, read_manifest(path))
    runs = list_runs(root)
    if spec.startswith(LATEST):
        return _latest(spec.removeprefix(LATEST), runs, root)
    exact = [info for info in runs if info.name == spec]
    matches = exact or [info for info in runs if info.name.startswith(spec)]
    if len(matches) == 1:
        return RunInfo(matches[0].path, read_manifest(matches[0].path))
    if matches:
        raise OnpolError(f"Run {spec!r} is ambiguous: {', '.join(m.name for m in matches[:8])}. Give more letters.")
    names = [info.name for info in runs]
    close = difflib.get_close_matches(spec, names, n=3) or names[-3:]
    hint = f" Nearest: {', '.join(close)}." if close else f" There are no runs in {root} yet."
    raise OnpolError(f"No run named {spec!r} in {root}.{hint} See 'onpol runs list'.")


def _latest(method: str, runs: list[RunInfo], root: Path) -> RunInfo:
    fitting = [
        info
        for info in runs
        if info.has_checkpoint and info.status == "done" and method == info.manifest.get("method_choice")
    ]
    if not fitting:
        known = sorted({str(i.manifest.get("method_choice")) for i in runs if i.has_checkpoint and i.status == "done"})
        raise OnpolError(
            f"No finished {method!r} run in {root}. "
            + (f"There are: {', '.join(known)}." if known else f"Train one: onpol train tutor method={method}.")
        )
    return fitting[-1]
