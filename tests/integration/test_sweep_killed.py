"""A sweep of which one job is killed: the other finishes, the same command completes what is missing, once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onpol_cli.runs.rundir import last_line, read_manifest

STEPS = 800
PATIENCE_S = 900


def command(root: Path) -> list[str]:
    """Two seeds of a short SFT, evaluated on four problems."""
    words = [
        "method=sft", "seed=1,2", f"method.steps={STEPS}", "method.epochs=0", "method.batch=2", "task.problems=8",
        "eval.problems=4", "eval.kl=false", "eval.benches=[tiny-codegen]", "eval.temperatures=[1.0]",
        "learner.threads=1", "sandbox.workers=1", f"paths.runs={root}",
    ]  # fmt: skip
    return [sys.executable, "-m", "onpol_cli.cli", "sweep", "train tutor", *words, "--json"]


def kill_first(root: Path) -> Path:
    """Wait for the first steps of seed 1 and kill the process that makes them."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        for run in root.glob("train-sft-s1-*"):
            if last_line(run / "metrics.jsonl"):
                os.kill(int((run / ".lock").read_text()), signal.SIGKILL)
                return run
        time.sleep(0.02)
    raise AssertionError("the first job never made a step")


def statuses(root: Path) -> dict[str, str]:
    """How each job ended, by name."""
    files = root.glob("sweeps/*/jobs/*.json")
    return {record["name"]: record["status"] for record in (json.loads(file.read_text()) for file in files)}


@pytest.mark.full
def test_a_killed_job_is_completed_by_the_same_command(tmp_path: Path) -> None:
    first = subprocess.Popen(command(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killed = kill_first(tmp_path)
    out, err = first.communicate(timeout=PATIENCE_S)
    (other,) = tmp_path.glob("train-sft-s2-*")
    assert first.returncode == 1 and f"1 of 2 jobs failed: {killed.name}" in err
    assert statuses(tmp_path) == {killed.name: "failed", other.name: "done"}
    assert json.loads(out), "the finished job is compared"
    before = read_manifest(other)
    again = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert again.returncode == 0, again.stderr
    assert statuses(tmp_path) == {killed.name: "done", other.name: "done"}
    assert read_manifest(other) == before and read_manifest(killed)["status"] == "done"
    assert last_line(killed / "metrics.jsonl")["step"] == STEPS - 1
