"""`onpol reproduce EXPERIMENT`: every row of the experiment's matrix, trained, evaluated, compared.

Rows form a graph (a student needs its tutor); rows that are ready run side by side, each in a worker process of
its own (memory and what a library keeps end with the row), one thread each, because a model this small does not
fill two cores. With `parallel.nproc` the worker starts the row's training under torchrun. Runs have fixed names, so
finished parts are kept and interrupted ones go on; `stages.finished` says which may not.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from onpol_cli.core.compose import compose
from onpol_cli.core.config import Config, RowConfig
from onpol_cli.core.console import error_in, say, show_json, show_text
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.core.processes import end_with_parent
from onpol_cli.runs.rundir import read_manifest
from onpol_cli.stages.finished import check_evaluation, check_settings, check_training
from onpol_cli.stages.launch import with_default_method

PLAIN = "ONPOL_PLAIN"
"""Set in workers: no live display, several write to one terminal."""
DEVICES = Path("/dev")
LAST_WORDS_S = 10.0
"""How long the output of processes that have ended is waited for: one that they left behind may hold it open."""
BASE, TUTOR, STUDENT = "base", "train tutor", "distill student"
OWN = {
    "seed": "Give matrix.seeds=[0,1].",
    "method": (
        "Choose rows by --only ROWS, or give rows of your own: "
        """'matrix.rows=[{name:rl,overrides:["method=rl"]}]'."""
    ),
    "tutor": "Name a row as tutor in matrix.rows, or distil one student: onpol distill student tutor=RUN.",
}
"""What each row says for itself: on the command line it would beat every row's own. What to give instead."""


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

    @property
    def choice(self) -> list[str]:
        """--only, --from and --until as they were given."""
        given = {"--only": self.only, "--from": self.start, "--until": self.until}
        return [word for name, rows in given.items() if rows for word in (name, rows)]

    @property
    def part(self) -> str:
        """What tells a comparison of chosen rows from that of all, in the name of its folder."""
        return "".join(f"-{re.sub('[^A-Za-z0-9_]+', '-', word.lstrip('-'))}" for word in self.choice)


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
    check_settings(existing(jobs, Path(config.paths.runs)))
    run_jobs(jobs, workers(config))
    from onpol_cli.stages.compare import CompareRequest, run_comparison

    root = Path(config.paths.runs)
    out = root.parent / f"compare-{request.stem}{request.part}-seeds{'-'.join(map(str, config.matrix.seeds))}"
    seconds = time.perf_counter() - start
    say(f"All rows done in {seconds:.0f} s. Comparing.")
    comparison = CompareRequest(
        [str(root / job.eval_name) for job in jobs], out / "report.html", out, "csv,md,json,tex,png,svg",
        as_json=request.as_json, note=_note(request, seconds), claims=config.matrix.claims,
    )  # fmt: skip
    run_comparison(comparison)


def _note(request: ReproduceRequest, seconds: float) -> str:
    quick = "QUICK RUN (fewer steps and problems; not the experiment). " if request.quick else ""
    options = [*(["--quick"] if request.quick else []), *request.choice]
    return f"{quick}{' '.join(['onpol reproduce', request.experiment, *request.overrides, *options])}, {seconds:.0f} s."


def workers(config: Config) -> int:
    """Rows made side by side."""
    if config.matrix.jobs:
        return config.matrix.jobs
    if config.rollout.engine.value != "hf" or _has_gpu():
        return 1
    return max(1, len(os.sched_getaffinity(0)) // config.parallel.nproc)


def _has_gpu() -> bool:
    return any(DEVICES.glob("nvidia[0-9]*"))  # a container may be given any of a machine's GPUs, not the first


def plan(request: ReproduceRequest, config: Config) -> list[Job]:
    """All jobs in an order in which tutors come before their students.

    Raises:
        OnpolError: no matrix, an unknown row, a student whose tutor is no row, several nodes, or a word of `OWN`.
    """
    for word in request.overrides:
        name = word.lstrip("+").partition("=")[0]
        if name in OWN:
            raise OnpolError(f"{word}: onpol reproduce would give it to every row. {OWN[name]}")
    rows = config.matrix.rows
    if not rows:
        raise OnpolError(f"experiment={request.experiment} has no matrix.rows: nothing to reproduce.")
    if config.parallel.nnodes > 1:
        raise OnpolError(
            f"parallel.nnodes={config.parallel.nnodes}: onpol reproduce starts processes on its own machine only "
            "(parallel.nproc). Train the large rows on all nodes first: without parallel.nnodes, --dry-run names each "
            "row's run and command; give that command with run.name=NAME and parallel.* on every node. Then onpol "
            "reproduce without parallel.nnodes keeps them, and evaluates and compares."
        )
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
    if row.command != BASE:
        words = with_default_method(role_of(row.command), words)
    if row.tutor:
        words.append(f"tutor={config.paths.runs}/{stem}-{row.tutor}-{tail}")
    if workers(config) > 1:
        words += ["learner.threads=1", "sandbox.workers=1"]
    train = "" if row.command == BASE else f"{stem}-{row.name}-{tail}"
    needs = (row.tutor, seed) if row.tutor else None
    return Job((row.name, seed), needs, tuple(words), row.command, train, f"eval-{stem}-{row.name}-{tail}")


def role_of(command: str) -> str:
    """What a trained row becomes."""
    return "student" if command == STUDENT else "tutor"


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


def existing(jobs: Sequence[Job], root: Path) -> Iterator[tuple[str, Config]]:
    """Runs of `jobs` that are there, done or not, with the configuration that each would be made with now."""
    for job in jobs:
        names = [name for name in (job.train_name, job.eval_name) if name and (root / name).is_dir()]
        if names:
            config = compose(job.words)
            yield from ((name, config) for name in names)


def run_jobs(jobs: Sequence[Job], count: int) -> None:
    """Run all jobs, tutors before students, `count` at a time.

    Raises:
        RunFailed: a row failed; rows that do not need it were finished first.
    """
    waiting = list(jobs)
    keys = {job.key for job in jobs}
    done: set[tuple[str, int]] = set()
    failed: dict[tuple[str, int], str] = {}
    running: dict[Future[float], tuple[Job, ProcessPoolExecutor]] = {}
    environment = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} if count > 1 else {}
    with _environment({PLAIN: "1", **environment}), ExitStack() as stack:
        while waiting or running:
            for job in [j for j in waiting if j.needs is None or j.needs in done or j.needs not in keys]:
                if len(running) >= count:
                    break
                waiting.remove(job)
                pool = stack.enter_context(worker())
                running[pool.submit(run_job, job)] = job, pool
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, pool = running.pop(future)
                pool.shutdown()
                _collect(future, job, done, failed)
                say(f"[{len(done)}/{len(jobs)}] done, {len(running)} running, {len(failed)} failed")
            waiting = [job for job in waiting if job.needs not in failed]
    if failed:
        parts = "; ".join(f"{row} (seed {seed}): {message}" for (row, seed), message in failed.items())
        raise RunFailed(f"Rows failed: {parts}. The same command goes on with the rest.")


def worker() -> ProcessPoolExecutor:
    """A process of its own for one row: its peak memory is the row's, and a row that is killed fails alone."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=end_with_parent)


def _collect(future: Future[float], job: Job, done: set[tuple[str, int]], failed: dict[tuple[str, int], str]) -> None:
    error = future.exception()
    if error is None:
        done.add(job.key)
        say(f"{job.eval_name}: done in {future.result():.0f} s")
    elif isinstance(error, OnpolError):
        failed[job.key] = str(error)
    elif isinstance(error, BrokenProcessPool):
        failed[job.key] = "its process was killed; if memory ran out: onpol doctor --plan"
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


def run_job(job: Job) -> float:
    """Train (unless done) and evaluate (unless done) one row; returns seconds.

    Both happen in this process, training with `parallel.nproc` in others.

    Raises:
        OnpolError: what is done was made with other settings, or from other weights than there are now.
    """
    from onpol_cli.core.console import setup_logging
    from onpol_cli.stages.evaluate import EvalRequest, evaluate

    setup_logging()
    start = time.perf_counter()
    words = list(job.words)
    if job.train_name:
        config = compose([*words, f"run.name={job.train_name}"])
        if status(config, job.train_name) == "done":
            check_settings([(job.train_name, config)])
            check_training(job.train_name, config)
        else:
            train_row(job, config)
    config = compose([*words, f"run.name={job.eval_name}"])
    model = job.train_name or None
    if status(config, job.eval_name) == "done":
        check_settings([(job.eval_name, config)])
        check_evaluation(job.eval_name, model, config)
    else:
        request = EvalRequest(config.eval.benches, words, model, resume=_exists(config, job.eval_name))
        evaluate(config, request)
    return time.perf_counter() - start


def train_row(job: Job, config: Config) -> None:
    """Train a row, or go on with it: here, or by its own `onpol` command under torchrun if it wants several processes.

    Raises:
        RunFailed: started and could not finish, with the words of the process that failed.
    """
    from onpol_cli.stages.torchrun import launch_processes
    from onpol_cli.stages.train import train_model

    resume = _exists(config, job.train_name)
    words = [*job.command.split(), *job.words, f"run.name={job.train_name}"]
    if config.parallel.nproc == 1:
        train_model(config, role=role_of(job.command), command=["onpol", *words], resume=resume)
        return
    with overheard() as (sink, errors):
        try:
            launch_processes(config, words, resume=resume, as_json=False, output=sink)
            return
        except RunFailed as error:
            status = str(error).partition(";")[0]
    raise RunFailed(f"{' '.join(errors[:1]) or 'no message'} ({status})")


@contextmanager
def overheard() -> Iterator[tuple[int, list[str]]]:
    """A descriptor for the output of child processes, and the errors that they tell of there.

    All goes on to stderr, since a result on stdout would mix with that of this command. Complete when the context ends.
    """
    errors: list[str] = []
    source, sink = os.pipe()

    def listen() -> None:
        with os.fdopen(source, "rb") as lines:
            for line in lines:
                os.write(2, line)
                errors.extend(error_in(line.decode(errors="replace")))

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield sink, errors
    finally:
        os.close(sink)
        listener.join(LAST_WORDS_S)


def status(config: Config, name: str) -> str | None:
    """Status of a named run, None if it does not exist."""
    value = read_manifest(Path(config.paths.runs) / name).get("status")
    return None if value is None else str(value)


def _exists(config: Config, name: str) -> bool:
    return (Path(config.paths.runs) / name).is_dir()
