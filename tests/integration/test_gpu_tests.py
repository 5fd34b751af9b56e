"""tests/gpu with the CPU in the GPU's place: its code runs and passes; nothing about GPUs is shown."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: tests/gpu itself runs")
QUICK = [f"tests/gpu/test_gpu_{name}.py" for name in ("losses", "learner", "sampler")]


def outcome(*words: str, stand_in: bool = True) -> tuple[dict[str, int], str]:
    """Numbers of tests by outcome, and what pytest printed."""
    environment = os.environ | {"ONPOL_GPU_TESTS": "cpu" if stand_in else ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    counts = re.findall(r"(\d+) (passed|failed|skipped|errors?)", done.stdout.strip().splitlines()[-1])
    return {kind: int(number) for number, kind in counts}, done.stdout


@pytest.mark.parametrize(
    ("files", "passed"), [(QUICK, 38), pytest.param(["tests/gpu"], 46, marks=pytest.mark.full)], ids=["quick", "all"]
)
def test_they_pass_on_the_cpu(files, passed):
    counts, printed = outcome(*files)
    assert counts["passed"] >= passed and not counts.keys() & {"failed", "error", "errors"}, printed[-3000:]
    reasons = set(re.findall(r"^SKIPPED \[\d+\] \S+ (.*)$", printed, re.MULTILINE))
    assert reasons == {"CUDA itself is tested here: nothing can take its place"}


def test_without_a_gpu_they_say_why_they_skip():
    counts, printed = outcome("tests/gpu/test_gpu_losses.py", stand_in=False)
    assert counts.keys() == {"skipped"} and "needs a CUDA device, and torch sees none" in printed
