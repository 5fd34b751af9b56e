"""Files that cannot be written whole (a limit on their size stands for a full disk): one line, nothing half-written."""

import subprocess
import sys
from pathlib import Path

import pytest

LIMITED = """
import resource, signal, sys
from onpol_cli import cli
from onpol_cli.process import run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(run(cli.app, sys.argv[2:]))
"""
WORDS = (
    *("train", "tutor", "method=sft", "method.steps=1", "method.epochs=0", "method.batch=2", "task.problems=8"),
    *("learner.threads=1", "sandbox.workers=1", "run.name=run"),
)


@pytest.mark.parametrize(
    ("limit_mb", "words", "folder"),
    [
        pytest.param(8, ["run.save_every=1"], "state/step-0000001", id="learner.pt"),
        pytest.param(2, [], "checkpoint", id="model.safetensors"),
    ],
)
def test_a_full_disk_is_said_to_be_one(tmp_path: Path, limit_mb: int, words: list[str], folder: str) -> None:
    """The model has 4 MB in bf16, its state 26 MB."""
    command = [sys.executable, "-c", LIMITED, str(limit_mb << 20), *WORDS, *words, f"paths.runs={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    place = tmp_path / "run" / folder
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"onpol: Cannot write checkpoint {place}: File too large. Free space, then repeat with --resume."
    )
    left = [item.name for item in place.parent.iterdir()] if place.parent.name == "state" else []
    assert left == [] and not (tmp_path / "run" / "checkpoint").exists()
    assert not [item for item in (tmp_path / "run").rglob("*") if item.name.endswith((".tmp", ".old"))]
