"""Which originals of an edit file pass in this environment: remembered, or found out by running them once.

Owns the file that remembers it, one per data file (by content) and environment (Python and installed
packages), under $ONPOL_CACHE, else in the user's cache folder. `onpol data verify` and evaluations write it;
`data.read_problems` reads it into `meta["original_passes"]`.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from onpol_cli.core.errors import RunFailed
from onpol_cli.core.files import sha256_file, sha256_text, write_json
from onpol_cli.core.types import Problem
from onpol_cli.sandbox.jobs import Verdict
from onpol_cli.tasks.programs import Runner

log = logging.getLogger(__name__)

CACHE_ENV = "ONPOL_CACHE"


def remembered(path: Path) -> dict[str, bool]:
    """By problem id, whether the original passed, as far as it is known here."""
    try:
        found = json.loads(_file(path).read_text("utf-8"))
        return {str(name): bool(passed) for name, passed in found["passes"].items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return {}  # never run here, or written by something else


def remember(path: Path, passes: Mapping[str, bool]) -> None:
    """Add to what is known of the data file `path`; a cache that cannot be written is only a warning."""
    try:
        write_json(_file(path), {"data": path.name, "passes": {**remembered(path), **passes}})
    except RunFailed as error:
        log.warning("Which originals pass here is not kept for the next time: %s", error)


def run_originals(
    path: Path, problems: Sequence[Problem], sandbox: Runner, progress: Callable[[int, int], None] | None = None
) -> None:
    """Run the originals of `problems` and remember which pass; an interruption keeps those that ran.

    Args:
        path: their data file.
        problems: those that are not known yet.
        sandbox: where they run.
        progress: told (done, all).
    """
    passes: dict[str, bool] = {}

    def tell(index: int, verdict: Verdict) -> None:
        passes[problems[index].problem_id] = verdict.passed
        if progress:
            progress(len(passes), len(problems))

    try:
        sandbox.run([problem.tests.job(problem.original or "") for problem in problems], on_verdict=tell)
    finally:
        remember(path, passes)


def _file(path: Path) -> Path:
    base = os.environ.get(CACHE_ENV) or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "onpol")
    return Path(base).expanduser() / "originals" / f"{sha256_file(path)[:24]}-{environment()}.json"


@functools.cache
def environment() -> str:
    """A short name of this Python and the packages installed for it: what decides which originals pass."""
    folders = [folder for folder in sys.path if os.path.basename(folder) in ("site-packages", "dist-packages")]
    names = {name for folder in folders if os.path.isdir(folder) for name in os.listdir(folder)}
    packages = sorted(name for name in names if name.endswith((".dist-info", ".egg-info")))
    return sha256_text("\n".join([platform.python_version(), platform.machine(), *packages]))[:12]
