"""Sweeps: which jobs there are, how they are named, what is skipped, and that failures stay alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.core.files import write_json
from onpol_cli.runs.rundir import RunDir
from onpol_cli.stages import sweep_job
from onpol_cli.stages.sweep import combinations, expanded, make_plan, records, report, run_sweep
from onpol_cli.stages.sweep_job import (
    JOBS,
    PLAN,
    JobRecord,
    SweepPlan,
    eval_words,
    job_name,
    label_words,
    last_words,
    run_job,
    score,
    train_words,
)


def finished(root: Path, name: str, **facts: object) -> None:
    """A run that is done."""
    with RunDir.open(root / name, resume=False) as run:
        run.update_manifest(run=name, status="done", **facts)


def tutor(root: Path, name: str, method: str, started: str) -> None:
    """A finished tutor."""
    finished(root, name, method_choice=method, started=started, model_role="tutor")
    (root / name / "checkpoint").mkdir()
    (root / name / "checkpoint" / "config.json").write_text("{}")


@pytest.fixture
def plan(tmp_path: Path) -> SweepPlan:
    """Two seeds of an OPD student."""
    tutor(tmp_path, "sft-a", "sft", "2026-01-01")
    words = ["tutor=latest:sft", "seed=1,2", f"paths.runs={tmp_path}"]
    return make_plan("distill student", words)[0]


def test_every_combination_is_a_job(plan: SweepPlan, tmp_path: Path) -> None:
    jobs = combinations(plan)
    assert [[word for word in job if word.startswith("seed")] for job in jobs] == [["seed=1"], ["seed=2"]]
    assert all("method=opd" in job and f"tutor={tmp_path / 'sft-a'}" in job for job in jobs)


def test_latest_is_resolved_once_and_remembered(plan: SweepPlan, tmp_path: Path) -> None:
    words = ["tutor=latest:sft", "seed=1,2", f"paths.runs={tmp_path}"]
    _, folder = make_plan("distill student", words)
    write_json(folder / PLAN, asdict(plan))
    tutor(tmp_path, "sft-b", "sft", "2026-02-02")
    again, same = make_plan("distill student", words)
    assert same == folder and f"tutor={tmp_path / 'sft-a'}" in again.words


def test_names_depend_on_the_overrides_and_not_on_their_order() -> None:
    command = ["distill", "student"]
    first = job_name(command, ["method=opd", "seed=1", "tutor=/runs/sft-a"])
    assert first == job_name(command, ["tutor=/runs/sft-a", "seed=1", "method=opd"])
    assert first.startswith("distill-opd-sft-a-s1-") and first != job_name(command, ["method=opd", "seed=2"])


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("seed=1", ["seed=1"]),
        ("seed=1,2", ["seed=1", "seed=2"]),
        ("seed=range(1,3)", ["seed=1", "seed=2"]),
        ("method=choice(rl,sft)", ["method=rl", "method=sft"]),
        ("optim.lr=1e-6", ["optim.lr=1e-06"]),
        ("eval.benches=[a,b]", ["eval.benches=[a,b]"]),
        ("optim.lr=interval(0.1,0.2)", ["optim.lr=0.1"]),
    ],
)
def test_values_are_spelt_as_hydra_spells_them(word: str, values: list[str]) -> None:
    assert expanded(word) == values


def test_swept_settings_tell_labels_apart(tmp_path: Path) -> None:
    plan, _ = make_plan("train tutor", ["method=rl", "optim.lr=1e-6,3e-6", "seed=1,2", f"paths.runs={tmp_path}"])
    assert plan.varied == ["optim.lr", "seed"]
    assert label_words(plan, combinations(plan)[0]) == ['method.label="RL lr=1e-06"']


def test_finished_parts_are_left_out_and_interrupted_ones_go_on(plan: SweepPlan, tmp_path: Path) -> None:
    overrides = combinations(plan)[0]
    name = job_name(plan.command, overrides)
    fresh = train_words(plan, name, overrides)
    assert fresh is not None and "--resume" not in fresh and f"run.name={name}" in fresh
    with RunDir.open(tmp_path / name, resume=False) as run:
        run.update_manifest(run=name, status="interrupted")
    again = train_words(plan, name, overrides)
    assert again is not None and again[-1] == "--resume"
    finished(tmp_path, f"eval-{name}")
    with RunDir.open(tmp_path / name, resume=True) as run:
        run.update_manifest(status="done")
    assert train_words(plan, name, overrides) is None and eval_words(plan, name, overrides) is None


def test_a_finished_job_starts_no_process_and_has_its_score(
    plan: SweepPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = combinations(plan)[0]
    name = job_name(plan.command, overrides)
    for run in (name, f"eval-{name}"):
        finished(tmp_path, run)
    metric = {"pass@1": {"value": 0.25, "low": 0.1, "high": 0.4}}
    write_json(tmp_path / f"eval-{name}" / "summary.json", {"tiny-edit-ood": {"n": 4, "metrics": metric}})
    write_json(tmp_path / "sweep" / PLAN, asdict(plan))
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    record = run_job(tmp_path / "sweep", overrides)
    assert (record.status, record.score, record.error) == ("done", 0.25, "")
    assert score(plan, name) == 0.25 and records(tmp_path / "sweep") == [record]


def test_a_failing_job_is_recorded_with_its_own_words(plan: SweepPlan, tmp_path: Path) -> None:
    write_json(tmp_path / "sweep" / PLAN, asdict(plan))
    record = run_job(tmp_path / "sweep", ["method=opd", "tutor=/no/such/tutor", f"paths.runs={tmp_path}"])
    assert record.status == "failed" and record.score is None
    assert record.error.startswith("exit 2: ") and "/no/such/tutor" in record.error


TOLD = """#!{python}
import os, signal, sys, time
from pathlib import Path
file = Path(os.environ["TOLD"])
def note(number, frame):
    with file.open("a") as lines:
        lines.write(signal.Signals(number).name + "\\n")
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, note)
file.write_text("")
end = time.monotonic() + 60
while not file.read_text() and time.monotonic() < end:
    time.sleep(0.02)
time.sleep(1)
"""
WAITING = """
import signal, sys
from pathlib import Path
from onpol_cli.stages.sweep_job import SweepPlan, call
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.executable = sys.argv[1]
call(["train"], SweepPlan([], [], [], ".", "."), Path(sys.argv[2]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_job_is_told_once_to_stop_however_the_sweep_ends(tmp_path: Path, number: int) -> None:
    """Ctrl-C reaches the sweep's whole process group; a second signal would stop a job before it has saved."""
    told, job = tmp_path / "told", tmp_path / "job"
    job.write_text(TOLD.format(python=sys.executable))
    job.chmod(0o755)
    words = [sys.executable, "-c", WAITING, str(job), str(tmp_path / "log")]
    sweep = subprocess.Popen(words, env={**os.environ, "TOLD": str(told)}, start_new_session=True)
    wait_until(told.is_file)
    if number == signal.SIGINT:
        os.killpg(sweep.pid, number)
    else:
        sweep.kill()
    sweep.wait(60)
    wait_until(lambda: told.read_text() != "")
    time.sleep(1.5)
    assert told.read_text().split() == ["SIGTERM"]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_combination_that_is_refused_fails_alone(tmp_path: Path) -> None:
    plan, folder = make_plan("train tutor", ["optim.lr=1e-3,-1", f"paths.runs={tmp_path}"])
    write_json(folder / PLAN, asdict(plan))
    record = run_job(folder, combinations(plan)[1])
    assert (record.status, record.error) == ("failed", "optim.lr must be >= 0, got -1.0.")
    assert Path(record.log).is_file() and records(folder) == [record]


def test_the_last_words_of_a_log_are_onpols_own(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    log.write_text("$ onpol train tutor\nonpol: WARNING: slow\nonpol: Unknown setting 'no.such'.\nprogress\n")
    assert last_words(log) == "Unknown setting 'no.such'."


def test_failed_jobs_are_an_error_that_names_their_log(plan: SweepPlan, tmp_path: Path) -> None:
    bad = JobRecord("job-a", ["seed=1"], "failed", None, 1.0, "/logs/job-a.log", "exit 2: No such tutor.")
    write_json(tmp_path / "sweep" / JOBS / "job-a.json", asdict(bad))
    with pytest.raises(RunFailed, match=r"1 of 1 jobs failed: job-a \(exit 2: No such tutor\.; log /logs/job-a\.log\)"):
        report(plan, tmp_path / "sweep", as_json=False)


def test_dry_run_lists_the_jobs_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_sweep("train tutor", ["method=sft,rl", "seed=1,2", f"paths.runs={tmp_path}"], dry_run=True, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert len(shown["jobs"]) == 4 and len({job["name"] for job in shown["jobs"]}) == 4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "words", "text"),
    [
        ("train tutorr", [], "Cannot sweep over 'train tutorr': the command is 'train tutor' or 'distill student'"),
        ("eval", [], "Cannot sweep over 'eval'"),
        ("train tutor", ["method=sft,rll"], "No method named 'rll'"),
        ("train tutor", ["run.name=x"], "leave run.name out"),
        ("train tutor", ["optim.lr=fast,slow"], "optim.lr=fast is not a number"),
    ],
)
def test_mistakes_start_nothing(tmp_path: Path, command: str, words: list[str], text: str) -> None:
    with pytest.raises(OnpolError, match=text):
        run_sweep(command, [*words, f"paths.runs={tmp_path}"], dry_run=False, as_json=False)
    assert list(tmp_path.iterdir()) == []


def test_the_task_function_is_picklable_by_name() -> None:
    import pickle

    assert pickle.loads(pickle.dumps(sweep_job.job)) is sweep_job.job
