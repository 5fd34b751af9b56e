"""`onpol reproduce` through the command line: a row in two processes is the row of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from onpol_cli.runs.rundir import read_lines, read_manifest

SMALL = (
    "debug=short", "task.problems=8", "eval.problems=3", "eval.benches=[tiny-codegen]", "eval.temperatures=[1.0]",
    "eval.kl=false", "sandbox.workers=1", "matrix.jobs=1",
)  # fmt: skip
STEADY = ("loss/total", "grad_norm", "tokens/trained", "lr")


def reproduced(root: Path, *words: str) -> dict:
    """The comparison of the tutor of two steps, from stdout."""
    command = [sys.executable, "-m", "onpol_cli.cli", "reproduce", "tiny", *SMALL, f"paths.runs={root}", *words]
    done = subprocess.run([*command, "--only", "sft", "--json"], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_a_row_trains_in_as_many_processes_as_asked_for_and_is_evaluated_once(tmp_path):
    shown = {nproc: reproduced(tmp_path / str(nproc), f"parallel.nproc={nproc}") for nproc in (1, 2)}
    runs = {nproc: tmp_path / str(nproc) / "tiny-sft-s0" for nproc in (1, 2)}
    assert {nproc: read_manifest(run)["processes"] for nproc, run in runs.items()} == {1: 1, 2: 2}
    one, two = (list(read_lines(run / "metrics.jsonl")) for run in runs.values())
    assert [row["step"] for row in one] == [row["step"] for row in two] == [0, 1]
    for name in STEADY:
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-4), name
    for nproc in (1, 2):
        evaluation = tmp_path / str(nproc) / "eval-tiny-sft-s0"
        assert read_manifest(evaluation)["status"] == "done" and shown[nproc]
        assert len(list(read_lines(evaluation / "samples.jsonl"))) == 3, "by one process, each problem once"
