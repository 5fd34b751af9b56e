"""Which processes a command is among, and that signals reach those that it starts."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from onpol_cli.core.compose import compose
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.processes import descendants
from onpol_cli.stages.torchrun import Forwarded, adopt_processes, first_host

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}
SRUN = {
    "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_JOB_ID": "123456",
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [
        ((), {}, (1, 1)),
        (("parallel.nproc=8",), {}, (8, 1)),
        ((), TORCHRUN, (4, 2)),
        (("parallel.nproc=4", "parallel.nnodes=2", "parallel.rendezvous=a:1"), TORCHRUN, (4, 2)),
        ((), {"RANK": "0", "WORLD_SIZE": "1"}, (1, 1)),
        ((), {"RANK": "0", "WORLD_SIZE": "2"}, (2, 1)),
        ((), SRUN, (4, 2)),
        ((), SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, (1, 1)),
        (("parallel.nproc=2",), {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}, (2, 1)),
    ],
    ids=["alone", "asked", "torchrun", "agreed", "one", "bare", "srun", "srun of one", "batch script"],
)
def test_processes_are_those_of_whoever_started_this_one(words, environment, expected):
    config = compose([*words])
    adopt_processes(config, dict(environment))
    assert (config.parallel.nproc, config.parallel.nnodes) == expected


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN])
def test_another_number_of_processes_is_refused(environment):
    with pytest.raises(OnpolError, match="ask for 2 processes, and this is one of 8"):
        adopt_processes(compose(["parallel.nproc=2"]), dict(environment))


def test_a_task_of_srun_is_told_as_torchrun_tells():
    told = dict(SRUN)
    adopt_processes(compose([]), told)
    assert (told["RANK"], told["LOCAL_RANK"], told["WORLD_SIZE"], told["LOCAL_WORLD_SIZE"]) == ("5", "1", "8", "4")
    assert told["MASTER_ADDR"] == "gpu07" and 20000 <= int(told["MASTER_PORT"]) < 30000
    own = SRUN | {"MASTER_ADDR": "head", "MASTER_PORT": "1"}
    adopt_processes(compose([]), own)
    assert (own["MASTER_ADDR"], own["MASTER_PORT"]) == ("head", "1")


def test_the_first_host_of_a_node_list():
    lists = {"gpu[07-09,12],cpu1": "gpu07", "gpu12": "gpu12", "a-1,a-2": "a-1", "n[3]": "n3", "10.0.0.1": "10.0.0.1"}
    assert {nodes: first_host(nodes) for nodes in lists} == lists


PATIENT = """
import pathlib, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
while not asked or sys.argv[2] == "deaf":
    time.sleep(0.05)
child.kill()
sys.exit(7)
"""


@pytest.mark.parametrize("deaf", [False, True])
def test_signals_are_passed_on_and_a_second_one_ends_it(tmp_path: Path, deaf: bool):
    """The command may take its time after the first; after the second nothing of it is left."""
    file = tmp_path / "child"
    command = Forwarded([sys.executable, "-c", PATIENT, str(file), "deaf" if deaf else ""], {})

    def press() -> None:
        deadline = time.monotonic() + 30
        while not (file.is_file() and file.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(descendants(command._process.pid)) == 2
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        if deaf:
            time.sleep(0.5)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=press)
    thread.start()
    status = command.wait()
    thread.join()
    assert command.asked and status == (-signal.SIGKILL if deaf else 7)
    assert signal.getsignal(signal.SIGINT) is not command._handle and before == command._handle
    child = Path("/proc") / file.read_text()
    deadline = time.monotonic() + 10
    while child.exists() and "Z" not in (child / "stat").read_text().split()[2] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.exists() or (child / "stat").read_text().split()[2] == "Z"
