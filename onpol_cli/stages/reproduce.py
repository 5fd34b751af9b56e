"""`onpol reproduce EXPERIMENT`: every row of the experiment's matrix, trained, evaluated, compared.

Rows form a graph (a student needs its tutor); rows that are ready run side by side in worker processes,
one thread each, because a model this small does not fill two cores. Runs have fixed names, so finished
parts are kept and interrupted ones go on.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from onpol_cli.core.compose import compose
from onpol_cli.core.config import Config, RowConfig
from onpol_cli.core.console import say, show_json, show_text
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.runs.rundir import read_manifest

PLAIN = "ONPOL_PLAIN"
"""Set in workers: no live display, several write to one terminal."""
PR_SET_PDEATHSIG = 1
"""prctl(2), Linux: the signal that a process gets when its parent dies."""
BASE, TUTOR, STUDENT = "base", "train tutor", "distill student"


@dataclass
class ReproduceRequest:
    """What the command line asked for."""

    experiment: str
    overrides: Sequence[str] = ()
    quick: bool = False
    only: str | None = None
    start: str | None = None
    until: str | None = None
    dry_run: bool = False
    as_json: bool = False

    @property
    def stem(self) -> str:
        """Start of every run name."""
        return self.experiment + ("-quick" if self.quick else "")


@dataclass(frozen=True)
class Job:
    """One row at one seed.

    Attributes:
        key: (row name, seed).
        needs: key of its tutor.
        words: overrides of its configuration.
        command: base, train tutor or distill student.
        train_name: name of its training run ("" for the base).
        eval_name: name of its evaluation.
    """

    key: tuple[str, int]
    needs: tuple[str, int] | None
    words: tuple[str, ...]
    command: str
    train_name: str
    eval_name: str


def run_reproduction(request: ReproduceRequest) -> None:
    """Plan, run, compare, show."""
    config = compose([f"experiment={request.experiment}", *request.overrides])
    jobs = plan(request, config)
    if request.dry_run:
        show_plan(jobs, request)
        return
    start = time.perf_counter()
    run_jobs(jobs, workers(config))
    from onpol_cli.stages.compare import CompareRequest, run_comparison

    root = Path(config.paths.runs)
    out = root.parent / f"compare-{request.stem}-seeds{'-'.join(map(str, config.matrix.seeds))}"
    seconds = time.perf_counter() - start
    say(f"All rows done in {seconds:.0f} s. Comparing.")
    comparison = CompareRequest(
        [str(root / job.eval_name) for job in jobs], out / "report.html", out, "csv,md,json,tex,png,svg",
        as_json=request.as_json, note=_note(request, seconds), claims=config.matrix.claims,
    )  # fmt: skip
    run_comparison(comparison)


def _note(request: ReproduceRequest, seconds: float) -> str:
    quick = "QUICK RUN (fewer steps and problems; not the experiment). " if request.quick else ""
    words = " ".join(
        ["onpol reproduce", request.experiment, *request.overrides, *(["--quick"] if request.quick else [])]
    )
    return f"{quick}{words}, {seconds:.0f} s."


def workers(config: Config) -> int:
    """Rows made side by side."""
    if config.matrix.jobs:
        return config.matrix.jobs
    return len(os.sched_getaffinity(0)) if config.rollout.engine.value == "hf" and not _has_gpu() else 1


def _has_gpu() -> bool:
    return Path("/dev/nvidia0").exists()


def plan(request: ReproduceRequest, config: Config) -> list[Job]:
    """All jobs in an order in which tutors come before their students.

    Raises:
        OnpolError: no matrix, an unknown row, or a student whose tutor is no row.
    """
    rows = config.matrix.rows
    if not rows:
        raise OnpolError(f"experiment={request.experiment} has no matrix.rows: nothing to reproduce.")
    chosen = choose(rows, request)
    names = {row.name for row in rows}
    jobs = []
    for seed in config.matrix.seeds:
        for row in chosen:
            if row.tutor and row.tutor not in names:
                raise OnpolError(f"Row {row.name!r} wants tutor {row.tutor!r}, which is no row of the matrix.")
            jobs.append(make_job(row, seed, request, config))
    return jobs


def choose(rows: Sequence[RowConfig], request: ReproduceRequest) -> list[RowConfig]:
    """Rows left by --only, --from and --until, tutors of chosen students included."""
    names = [row.name for row in rows]
    asked = [name.strip() for name in (request.only or "").split(",") if name.strip()]
    for name in [*asked, *(n for n in (request.start, request.until) if n)]:
        if name not in names:
            raise OnpolError(f"No row {name!r} in this experiment. Rows: {', '.join(names)}.")
    low = names.index(request.start) if request.start else 0
    high = names.index(request.until) + 1 if request.until else len(names)
    chosen = {row.name for row in rows[low:high] if not asked or row.name in asked}
    by_name = {row.name: row for row in rows}
    for name in list(chosen):
        tutor = by_name[name].tutor
        if tutor:
            chosen.add(tutor)
    return [row for row in rows if row.name in chosen]


def make_job(row: RowConfig, seed: int, request: ReproduceRequest, config: Config) -> Job:
    """The job of one row at one seed."""
    stem, tail = request.stem, f"s{seed}"
    words = [f"experiment={request.experiment}", f"seed={seed}", *row.overrides]
    words += [*config.matrix.quick, *config.matrix.quick_rows.get(row.name, [])] if request.quick else []
    words += [word for word in request.overrides if not word.startswith(("matrix.", "experiment="))]
    if row.tutor:
        words.append(f"tutor={config.paths.runs}/{stem}-{row.tutor}-{tail}")
    if workers(config) > 1:
        words += ["learner.threads=1", "sandbox.workers=1"]
    train = "" if row.command == BASE else f"{stem}-{row.name}-{tail}"
    needs = (row.tutor, seed) if row.tutor else None
    return Job((row.name, seed), needs, tuple(words), row.command, train, f"eval-{stem}-{row.name}-{tail}")


def show_plan(jobs: Sequence[Job], request: ReproduceRequest) -> None:
    """What would run, one line a job."""
    if request.as_json:
        show_json(
            {
                "jobs": [
                    {"row": j.key[0], "seed": j.key[1], "command": j.command, "overrides": list(j.words)} for j in jobs
                ]
            }
        )
        return
    for job in jobs:
        show_text(f"{job.train_name or job.eval_name}: onpol {job.command} {' '.join(job.words)}")


def run_jobs(jobs: Sequence[Job], count: int) -> None:
    """Run all jobs, tutors before students, `count` at a time.

    Raises:
        RunFailed: a row failed; rows that do not need it were finished first.
    """
    waiting = list(jobs)
    keys = {job.key for job in jobs}
    done: set[tuple[str, int]] = set()
    failed: dict[tuple[str, int], str] = {}
    running: dict[Future[float], Job] = {}
    environment = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} if count > 1 else {}
    with _environment({PLAIN: "1", **environment}), ProcessPoolExecutor(
        count, mp_context=get_context("spawn"), initializer=end_with_parent
    ) as pool:
        while waiting or running:
            for job in [j for j in waiting if j.needs is None or j.needs in done or j.needs not in keys]:
                if len(running) >= count:
                    break
                waiting.remove(job)
                running[pool.submit(run_job, job)] = job
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                _collect(future, running.pop(future), done, failed)
                say(f"[{len(done)}/{len(jobs)}] done, {len(running)} running, {len(failed)} failed")
            waiting = [job for job in waiting if job.needs not in failed]
    if failed:
        parts = "; ".join(f"{row} (seed {seed}): {message}" for (row, seed), message in failed.items())
        raise RunFailed(f"Rows failed: {parts}. The same command goes on with the rest.")


def _collect(future: Future[float], job: Job, done: set[tuple[str, int]], failed: dict[tuple[str, int], str]) -> None:
    error = future.exception()
    if error is None:
        done.add(job.key)
        say(f"{job.eval_name}: done in {future.result():.0f} s")
    elif isinstance(error, OnpolError):
        failed[job.key] = str(error)
    else:
        raise error


class _environment:
    """Variables set for the worker processes and taken back afterwards; a user's own values win."""

    def __init__(self, values: dict[str, str]) -> None:
        self.values = {name: value for name, value in values.items() if name not in os.environ}

    def __enter__(self) -> None:
        os.environ.update(self.values)

    def __exit__(self, *_: Any) -> None:
        for name in self.values:
            os.environ.pop(name, None)


def end_with_parent() -> None:
    """A worker whose parent is killed gets SIGTERM, as the user would send it: it saves its state and stops."""
    import ctypes
    import signal

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def run_job(job: Job) -> float:
    """Train (unless done) and evaluate (unless done) one row in this process; returns seconds."""
    from onpol_cli.core.console import setup_logging
    from onpol_cli.stages.evaluate import EvalRequest, evaluate
    from onpol_cli.stages.train import train_model

    setup_logging()
    start = time.perf_counter()
    words = list(job.words)
    if job.train_name:
        config = compose([*words, f"run.name={job.train_name}"])
        role = "student" if job.command == STUDENT else "tutor"
        if status(config, job.train_name) != "done":
            command = ["onpol", *job.command.split(), *words, f"run.name={job.train_name}"]
            train_model(config, role=role, command=command, resume=_exists(config, job.train_name))
    config = compose([*words, f"run.name={job.eval_name}"])
    if status(config, job.eval_name) != "done":
        model = job.train_name or None
        request = EvalRequest(config.eval.benches, words, model, resume=_exists(config, job.eval_name))
        evaluate(config, request)
    return time.perf_counter() - start


def status(config: Config, name: str) -> str | None:
    """Status of a named run, None if it does not exist."""
    value = read_manifest(Path(config.paths.runs) / name).get("status")
    return None if value is None else str(value)


def _exists(config: Config, name: str) -> bool:
    return (Path(config.paths.runs) / name).is_dir()
