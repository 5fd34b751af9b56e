"""Several processes (gloo, CPU): the same losses and weights as one, through the command line's own path."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from onpol_cli.runs.rundir import read_lines

WORKER = Path(__file__).with_name("parallel_worker.py")
TOLERANCE = 1e-5


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_worker(nproc: int, case: str, out: Path, steps: int) -> dict:
    """Losses of `case` over `steps` steps on recorded examples in `nproc` processes."""
    words = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={nproc}", "--nnodes=1"]
    words += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", str(WORKER)]
    words += [case, str(out), str(steps), str(nproc)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=400, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text())


def compare(case: str, sizes: tuple[int, ...], tmp_path: Path, steps: int) -> None:
    results = {size: run_worker(size, case, tmp_path / f"{case}-{size}.json", steps) for size in sizes}
    alone = results[sizes[0]]
    assert len(set(alone["losses"])) > 1, "a curve that does not move would agree with anything"
    for size in sizes[1:]:
        assert results[size]["losses"] == pytest.approx(alone["losses"], rel=TOLERANCE, abs=TOLERANCE)
        assert results[size]["norm"] == pytest.approx(alone["norm"], rel=1e-4)


@pytest.mark.full
@pytest.mark.parametrize("case", ["sft", "opd"])
def test_two_processes_follow_one(case, tmp_path):
    compare(case, (1, 2), tmp_path, steps=5)


@pytest.mark.full
@pytest.mark.parametrize("case", ["sft", "rl", "opd", "sft-lora", "rl-lora", "opd-lora"])
def test_two_and_four_processes_follow_one_over_twenty_steps(case, tmp_path):
    compare(case, (1, 2, 4), tmp_path, steps=20)


def train(root: Path, name: str, nproc: int, *more: str) -> list[dict]:
    words = [sys.executable, "-m", "onpol_cli.cli", "train", "tutor", f"paths.runs={root}", f"run.name={name}"]
    words += ["method=sft", "method.steps=3", "method.epochs=0", "method.batch=4", "task.problems=16"]
    words += ["learner.threads=1", "sandbox.workers=1", f"parallel.nproc={nproc}", *more]
    done = subprocess.run(words, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    return list(read_lines(root / name / "metrics.jsonl"))


def test_the_command_line_starts_processes_and_writes_one_run(tmp_path):
    from safetensors.torch import load_file

    one, two = train(tmp_path, "one", 1), train(tmp_path, "two", 2)
    assert [row["step"] for row in two] == [0, 1, 2]
    assert [row["loss/total"] for row in two] == pytest.approx([row["loss/total"] for row in one], abs=TOLERANCE)
    assert [row["tokens/trained"] for row in two] == [row["tokens/trained"] for row in one]
    weights = [load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert (value.float() - weights[1][name].float()).abs().max() < 1e-2
