"""Training in several processes: starting torchrun or joining what started this one, and stopping them together.

Rank 0 owns the run; the others follow: they read its path and write nothing.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, MutableMapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from onpol_cli.core.config import Config
from onpol_cli.core.console import say
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.core.processes import kill_all
from onpol_cli.learner.parallel import torchrun_words, under_torchrun
from onpol_cli.runs.rundir import RunDir, read_manifest
from onpol_cli.training.interrupt import SIGNALS, Interrupted, handle

FIRST_PORT, PORTS = 20000, 10000
"""Where processes of a Slurm step meet: a port by the job's number, unless MASTER_PORT is set."""


def adopt_processes(config: Config, environment: MutableMapping[str, str] = os.environ) -> None:
    """Let `parallel` say what torchrun or a Slurm step (`srun`) has started this process among.

    A Slurm step is told in torchrun's variables, which everything else reads.

    Raises:
        OnpolError: `parallel.nproc` x `parallel.nnodes` asks for another number of processes.
    """
    if not under_torchrun(environment):
        _adopt_slurm(environment)
    if not under_torchrun(environment):
        return
    size, asked = int(environment["WORLD_SIZE"]), config.parallel.nproc * config.parallel.nnodes
    if asked == 1:
        config.parallel.nproc = min(size, int(environment.get("LOCAL_WORLD_SIZE", size)))
        config.parallel.nnodes = max(1, size // config.parallel.nproc)
    elif asked != size:
        raise OnpolError(
            f"parallel.nproc={config.parallel.nproc} and parallel.nnodes={config.parallel.nnodes} ask for {asked} "
            f"processes, and this is one of {size} (WORLD_SIZE of torchrun or Slurm). Leave them out under torchrun or "
            "srun, or unset RANK and WORLD_SIZE to have onpol start torchrun."
        )


def _adopt_slurm(environment: MutableMapping[str, str]) -> None:
    """torchrun's variables for a task of `srun` with several. A batch script itself is no task of that kind."""
    size = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if size == 1 or "SLURM_PROCID" not in environment:
        return
    nodes = environment.get("SLURM_STEP_NODELIST", environment.get("SLURM_JOB_NODELIST", "127.0.0.1"))
    found = {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": str(size // int(environment.get("SLURM_STEP_NUM_NODES", "1"))),
        "MASTER_ADDR": first_host(nodes),
        "MASTER_PORT": str(FIRST_PORT + int(environment.get("SLURM_JOB_ID", "0")) % PORTS),
    }
    for name, value in found.items():
        environment.setdefault(name, value)


def first_host(nodes: str) -> str:
    """The first of a Slurm node list: `gpu[07-09,12],cpu1` -> `gpu07`."""
    found = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes


def launch_processes(
    config: Config, words: Sequence[str], *, resume: bool, as_json: bool, output: int | None = None
) -> None:
    """Run `onpol WORDS` under torchrun with `parallel.*`. Ctrl-C and SIGTERM reach all of its processes.

    Hub models are fetched before, by this process alone.

    Args:
        output: descriptor that all output goes to; default: stdout and stderr are this process's.

    Raises:
        Interrupted: it was told to stop.
        RunFailed: a process failed; its message is above.
    """
    from onpol_cli.stages.build import fetch_hub_models

    fetch_hub_models(config)
    options = (["--resume"] if resume else []) + (["--json"] if as_json else [])
    command = torchrun_words(config.parallel, ["onpol_cli.cli", *words, *options])
    # torchrun kills what has not ended so long after a signal; without this variable (or before torch knew it) 30 s.
    patience = str(round(60 * config.parallel.timeout_minutes))
    environment = {"OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": patience, **os.environ}
    children = Forwarded(command, environment, output)
    status = children.wait()
    if children.asked:
        raise Interrupted("Stopped; what was saved is said above. Go on with --resume.")
    if status != 0:
        raise RunFailed(f"torchrun ended with status {status}; the message of the process that failed is above.")


class Forwarded:
    """A command in a session of its own that is passed the signals of this process: a second one kills it.

    The terminal's Ctrl-C would reach torchrun and its workers twice, which is once too often to save anything.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str], output: int | None = None) -> None:
        self.asked = False
        self._process: subprocess.Popen[bytes] | None = None
        self._restore = handle(SIGNALS, self._handle)
        self._process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )  # fmt: skip
        if self.asked:  # told so before there was anybody to tell
            self._process.terminate()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._process is None:
            self.asked = True
        elif not self.asked:
            self.asked = True
            self._process.terminate()
        else:
            say("Stopping at once; what was not saved is lost.")
            kill_all(self._process.pid)

    def wait(self) -> int:
        """Status of the command, once it has ended."""
        assert self._process is not None
        try:
            return self._process.wait()
        finally:
            self._restore()


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
