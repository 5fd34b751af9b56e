"""Files that cannot be written whole (a limit on their size stands for a full disk): one line, nothing half-written."""

import json
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
ENDED = """
import resource, signal, sys
from pathlib import Path
import typer
from onpol_cli.core.compose import compose
from onpol_cli.core.errors import RunFailed
from onpol_cli.process import run
from onpol_cli.stages.session import open_run
from onpol_cli.training.interrupt import Interrupted

def main(runs: Path, kind: str, limit: int) -> None:
    with open_run(compose([f"paths.runs={runs}"]), "run", ["test"], resume=False) as run:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        for step in range(100 if kind == "metrics" else 0):
            run.log({"step": step, "loss": 0.5, "entropy": 0.25, "time/step": 1.5})
        for error in (Interrupted, RunFailed, AssertionError):
            if kind == error.__name__:
                raise error("So it ends.")

app = typer.Typer()
app.command()(main)
sys.exit(run(app, sys.argv[1:]))
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


def end_without_room(runs: Path, kind: str, limit: int) -> tuple[int, list[str], str]:
    """Exit status, lines on stderr and the status in the manifest of a run that ends while files are limited."""
    command = [sys.executable, "-c", ENDED, str(runs), kind, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr and "Logging error" not in done.stderr, done.stderr
    status = json.loads((runs / "run" / "manifest.json").read_text())["status"]
    return done.returncode, done.stderr.splitlines(), status


@pytest.mark.parametrize(("limit", "status"), [(5000, "failed"), (10, "running")])
def test_metrics_without_room_are_said_to_be_so(tmp_path: Path, limit: int, status: str) -> None:
    """What could not be flushed is tried again when the file is closed; that failure is no news."""
    code, lines, found = end_without_room(tmp_path, "metrics", limit)
    place = tmp_path / "run" / "metrics.jsonl"
    assert (code, found) == (1, status)
    assert lines[-1] == f"onpol: Cannot write {place}: File too large. Free space, then repeat with --resume."


@pytest.mark.parametrize(
    ("kind", "code", "last"),
    [
        pytest.param("Interrupted", 130, "onpol: So it ends.", id="interrupted"),
        pytest.param("RunFailed", 1, "onpol: So it ends.", id="failed"),
        pytest.param("AssertionError", 1, "onpol: AssertionError: So it ends. (this is a bug of onpol", id="broken"),
        pytest.param("none", 1, "onpol: Cannot write {}: File too large. Free space or choose", id="done"),
    ],
)
def test_a_status_without_room_does_not_hide_what_the_run_ended_of(
    tmp_path: Path, kind: str, code: int, last: str
) -> None:
    """Nor does the run's log, which has no room either. The manifest says `running` still, so that the run has died."""
    manifest = tmp_path / "run" / "manifest.json"
    found, lines, status = end_without_room(tmp_path, kind, 10)
    assert (found, status) == (code, "running") and lines[-1].startswith(last.format(manifest))
    warned = any(line.startswith(f"onpol: WARNING: Cannot write {manifest}: File too large.") for line in lines)
    assert warned == (kind != "none")
