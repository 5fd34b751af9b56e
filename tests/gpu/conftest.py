"""What only a GPU can show. Without one every test here skips and says so.

    python -m pytest tests/gpu                           # on a machine with a GPU
    ONPOL_GPU_TESTS=cpu python -m pytest tests/gpu       # the CPU in its place: tries the tests, shows nothing of GPUs

vLLM, Liger and a second GPU are used where they are; what is missing is named in the reason of the skip.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from needed import wait_for

from onpol_cli.runs.rundir import read_lines

HERE = Path(__file__).parent
STAND_IN = os.environ.get("ONPOL_GPU_TESTS") == "cpu"
RUN_S = 900


def pytest_collection_modifyitems(items):
    """Every test of this folder carries the marker `gpu`."""
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device():
    """The GPU (or, if asked for, the CPU in its place)."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if STAND_IN:
        return torch.device("cpu")
    pytest.skip("needs a CUDA device, and torch sees none")


@pytest.fixture(scope="session")
def cuda(device):
    """A GPU and nothing in its place."""
    if device.type != "cuda":
        pytest.skip("CUDA itself is tested here: nothing can take its place")
    return device


SMALL = (
    *("task.problems=24", "method.prompts=4", "method.group=2", "rollout.sampling.max_new_tokens=48"),
    *("sandbox.workers=1", "rollout.max_context=384", "rollout.max_batch=16", "method.epochs=0", "method.batch=4"),
)


@pytest.fixture
def onpol(device, tmp_path):
    """`onpol(name, words...)` runs a training command under tmp_path and returns its metrics, one dict a step.

    With `stop_after=n` it is told to stop (SIGTERM) as soon as n steps are written.
    """

    def run(name, *words, resume=False, stop_after=0):
        settings = [f"paths.runs={tmp_path}", f"run.name={name}", f"model.device={device.type}", *SMALL]
        if device.type == "cpu":
            settings.append("learner.threads=1")
        command = [sys.executable, "-m", "onpol_cli.cli", *words, *settings, *(["--resume"] if resume else [])]
        metrics = tmp_path / name / "metrics.jsonl"
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            if stop_after:
                wait_for(lambda: sum(1 for _ in read_lines(metrics)) >= stop_after, process)
                process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=RUN_S)
        assert (process.returncode == 0) == (stop_after == 0), err[-3000:]
        return list(read_lines(metrics))

    return run
