"""Rows of a reproduction: which process makes each, what of its children's words is kept, what is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from onpol_cli.core.compose import compose
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.runs.rundir import RunDir
from onpol_cli.stages import reproduce, torchrun
from onpol_cli.stages.reproduce import (
    Job,
    ReproduceRequest,
    overheard,
    plan,
    run_jobs,
    run_reproduction,
    train_row,
    workers,
)

BALLAST_MB = 300


def row(name: str, *words: str) -> Job:
    """A row that needs no other."""
    return Job((name, 0), None, words, "train tutor", name, f"eval-{name}")


def note_process(job: Job) -> float:
    """Stands in for `run_job`: its process and that one's peak memory into a file; the row `large` holds more."""
    ballast = bytearray(BALLAST_MB * 2**20) if job.key[0] == "large" else b""
    (peak,) = (line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    Path(job.words[0], job.key[0]).write_text(f"{os.getpid()} {int(peak) // 1024}")
    return float(len(ballast))


def kill_one(job: Job) -> float:
    """Stands in for `run_job`: the row `killed` ends as one does that the kernel kills for its memory."""
    if job.key[0] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return note_process(job)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_each_row_has_a_process_and_a_peak_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "run_job", note_process)
    run_jobs([row(name, str(tmp_path)) for name in ("small", "large", "after")], 1)
    found = {name: list(map(int, (tmp_path / name).read_text().split())) for name in ("small", "large", "after")}
    assert len({process for process, _ in found.values()} | {os.getpid()}) == 4
    peaks = {name: peak for name, (_, peak) in found.items()}
    assert peaks["large"] > peaks["small"] + BALLAST_MB - 50 and peaks["after"] < peaks["large"] - BALLAST_MB + 50


def test_a_row_that_is_killed_fails_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "run_job", kill_one)
    jobs = [row("killed", str(tmp_path)), row("other", str(tmp_path)), replace(row("student"), needs=("killed", 0))]
    with pytest.raises(RunFailed, match=r"^Rows failed: killed \(seed 0\): its process was killed.*goes on with the"):
        run_jobs(jobs, 1)
    assert (tmp_path / "other").is_file()


def test_a_row_of_several_processes_is_its_own_command_under_torchrun(tmp_path, monkeypatch):
    """`plan` gives the row, `train_row` what is called; a run that exists goes on."""
    called = []
    monkeypatch.setattr(torchrun, "launch_processes", lambda config, words, **more: called.append((words, more)))
    words = [f"paths.runs={tmp_path}", "parallel.nproc=2", "method.steps=1"]
    request = ReproduceRequest("tiny", words, only="opd-sft")
    sft, opd = plan(request, compose(["experiment=tiny", *words]))
    for job in (sft, opd):
        train_row(job, compose([*job.words, f"run.name={job.train_name}"]))
    with RunDir.open(tmp_path / "tiny-sft-s0", resume=False):
        train_row(sft, compose(sft.words))
    (first, one), (second, _), (_, again) = called
    assert first[:2] == ["train", "tutor"] and second[:2] == ["distill", "student"]
    assert {"run.name=tiny-opd-sft-s0", f"tutor={tmp_path}/tiny-sft-s0", *words} <= set(second)
    asked = [{name: more[name] for name in ("resume", "as_json")} for more in (one, again)]
    assert asked == [{"resume": False, "as_json": False}, {"resume": True, "as_json": False}]


BROKEN = """
import sys
print("a path")
print("onpol: WARNING: slow", file=sys.stderr)
print("onpol: It broke at step 2.", file=sys.stderr)
print("onpol: Stopped.", file=sys.stderr)
sys.exit(3)
"""


def test_a_row_of_several_processes_fails_with_the_words_of_the_first_that_did(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(torchrun, "torchrun_words", lambda *_: [sys.executable, "-c", BROKEN])
    job = row("sft", f"paths.runs={tmp_path}", "parallel.nproc=2")
    with pytest.raises(RunFailed, match=r"^It broke at step 2\. \(torchrun ended with status 3\)$"):
        train_row(job, compose(job.words))
    told = capfd.readouterr()
    assert told.out == "", "stdout is the comparison's"
    assert {"a path", "onpol: WARNING: slow", "onpol: Stopped."} <= set(told.err.splitlines())


def test_what_children_say_goes_to_stderr_and_this_process_is_not_overheard(capfd):
    with overheard() as (sink, errors):
        subprocess.run([sys.executable, "-c", "import os; os.write(1, b'onpol: no\\n')"], check=True, stdout=sink)
        os.write(1, b"onpol: mine\n")
    os.write(1, b"out\n")
    os.write(2, b"err\n")
    told = capfd.readouterr()
    assert errors == ["no"] and told.out == "onpol: mine\nout\n" and told.err == "onpol: no\nerr\n"


def test_several_nodes_are_refused_before_anything_starts(tmp_path):
    words = [f"paths.runs={tmp_path}", "parallel.nproc=8", "parallel.nnodes=2", "parallel.rendezvous=host:1"]
    for dry_run in (False, True):
        with pytest.raises(OnpolError, match=r"parallel\.nnodes=2: .* on its own machine only .*--dry-run names"):
            run_reproduction(ReproduceRequest("tiny", words, dry_run=dry_run))
    assert list(tmp_path.iterdir()) == []


def test_rows_of_several_processes_share_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(reproduce, "_has_gpu", lambda: False)
    asked = {1: 8, 3: 2, 16: 1}
    assert {nproc: workers(compose([f"parallel.nproc={nproc}"])) for nproc in asked} == asked
    assert workers(compose(["parallel.nproc=3", "matrix.jobs=5"])) == 5


@pytest.mark.parametrize(("names", "there"), [((), False), (("nvidiactl", "nvidia-uvm"), False), (("nvidia3",), True)])
def test_any_gpu_of_the_machine_counts(names, there, tmp_path, monkeypatch):
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.setattr(reproduce, "DEVICES", tmp_path, raising=False)
    assert reproduce._has_gpu() is there
