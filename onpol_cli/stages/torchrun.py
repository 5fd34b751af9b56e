"""Starting a training command in several processes, and what ranks other than 0 see of the run directory.

Rank 0 owns the run; the others follow: they read its path and write nothing.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from onpol_cli.core.config import Config
from onpol_cli.core.errors import RunFailed
from onpol_cli.learner.parallel import torchrun_words
from onpol_cli.learner.parallel import under_torchrun as under_torchrun
from onpol_cli.runs.rundir import RunDir, read_manifest
from onpol_cli.stages.session import default_name


def rank() -> int:
    """Rank of this process, 0 outside torchrun."""
    return int(os.environ.get("RANK", "0"))


def launch_processes(config: Config, words: Sequence[str], *, resume: bool, as_json: bool) -> None:
    """Run `onpol WORDS` under torchrun with `parallel.*` and pass its exit status on.

    The run's name is fixed here, because every process must write of the same run.

    Raises:
        RunFailed: a process failed; its message is above.
    """
    name = [] if config.run.name else [f"run.name={default_name(words[0], config)}"]
    options = (["--resume"] if resume else []) + (["--json"] if as_json else [])
    command = torchrun_words(config.parallel, ["onpol_cli.cli", *words, *name, *options])
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    status = subprocess.run(command, env=environment, check=False).returncode
    if status != 0:
        raise RunFailed(f"torchrun ended with status {status}; the message of the process that failed is above.")


class FollowedRun(RunDir):
    """A run directory as ranks other than 0 see it: readable, never written, never locked."""

    def __init__(self, path: Path, resumed: bool) -> None:
        self.path = path
        self.resumed = resumed

    def manifest(self) -> dict[str, Any]:
        """The manifest as rank 0 wrote it."""
        return read_manifest(self.path)

    def update_manifest(self, **facts: Any) -> None:
        """Nothing: rank 0 writes."""

    def append(self, file: str, rows: Iterable[dict[str, Any]]) -> None:
        """Nothing: rank 0 writes."""

    def keep_steps_before(self, step: int) -> None:
        """Nothing: rank 0 writes."""

    def close(self) -> None:
        """Nothing is open."""
