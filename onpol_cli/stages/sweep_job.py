"""One job of a sweep: train, evaluate, score, in processes of its own. Imported by Hydra's launchers.

`job` must stay a module-level function of a light module: joblib, submitit and Ray pickle it by name and
import it wherever the job runs. It never raises for a failed job, so that the others go on; what happened
is in the job's record.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onpol_cli.core.console import error_in
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.files import sha256_text, write_json
from onpol_cli.core.processes import end_with_parent, kill_all
from onpol_cli.runs.rundir import read_manifest

PLAN = "sweep.json"
JOBS = "jobs"
SAVING_S = 600.0
"""How long an interrupted job may take to save its state before it is killed."""
LABELLED = ("method", "tutor", "seed")
"""Settings that tables tell apart by themselves."""
DONE, FAILED = "done", "failed"


@dataclass(frozen=True)
class SweepPlan:
    """What all jobs of a sweep share; `sweep.json` of its folder.

    Attributes:
        command: words of the command, `["distill", "student"]`.
        words: the sweep's overrides, `latest:` resolved.
        varied: settings that take several values.
        runs: absolute folder of run directories.
        cwd: where the sweep was started; jobs run there.
    """

    command: list[str]
    words: list[str]
    varied: list[str]
    runs: str
    cwd: str


@dataclass(frozen=True)
class JobRecord:
    """How one job ended; `jobs/NAME.json` of the sweep's folder. `score` is the first bench's first metric."""

    name: str
    overrides: list[str]
    status: str
    score: float | None
    seconds: float
    log: str
    error: str = ""


def job(_: Any) -> float:
    """Hydra's task function: the score, 0 for a failed job (sweepers that search maximise it)."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    record = run_job(Path(hydra.sweep.dir), list(hydra.overrides.task))
    return record.score if record.score is not None else 0.0


def read_plan(folder: Path) -> SweepPlan:
    """The plan that `write_plan` left."""
    return SweepPlan(**json.loads((folder / PLAN).read_text(encoding="utf-8")))


def job_name(command: Sequence[str], overrides: Sequence[str]) -> str:
    """`<verb>-<method>-<tutor>-s<seed>-<hash>`, as far as given; the hash is of all overrides, in whatever order."""
    values = dict(word.split("=", 1) for word in overrides)
    seed = f"s{values['seed']}" if "seed" in values else ""
    parts = [values.get("method", ""), Path(values.get("tutor", "")).name, seed]
    plain = ["".join(c if c.isalnum() or c in ".-_" else "-" for c in part)[:40] for part in parts if part]
    return "-".join([command[0], *plain, sha256_text("\0".join([*command, *sorted(overrides)]))[:8]])


def run_job(folder: Path, overrides: Sequence[str]) -> JobRecord:
    """Train and evaluate one combination, whatever of it is not done yet; returns and writes its record."""
    plan = read_plan(folder)
    name = job_name(plan.command, overrides)
    log = folder / JOBS / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    error = ""
    try:
        for words in (train_words(plan, name, overrides), eval_words(plan, name, overrides)):
            if not error and words is not None and (code := call(words, plan, log)):
                error = f"exit {code}: {last_words(log)}"
    except OnpolError as refused:  # a combination that does not compose; the others do
        log.touch()
        error = str(refused)
    status = FAILED if error else DONE
    seconds = round(time.perf_counter() - start, 1)
    record = JobRecord(name, list(overrides), status, score(plan, name), seconds, str(log), error)
    write_json(folder / JOBS / f"{name}.json", asdict(record))
    return record


def run_status(plan: SweepPlan, name: str) -> str | None:
    """Status of a run of the sweep, None before it has started."""
    value = read_manifest(Path(plan.runs) / name).get("status")
    return None if value is None else str(value)


def train_words(plan: SweepPlan, name: str, overrides: Sequence[str]) -> list[str] | None:
    """The command that trains, None if that is done."""
    if run_status(plan, name) == DONE:
        return None
    own = [*label_words(plan, overrides), f"paths.runs={plan.runs}", f"run.name={name}"]
    return [*plan.command, *overrides, *own, *_resume(plan, name)]


def label_words(plan: SweepPlan, overrides: Sequence[str]) -> list[str]:
    """A label that keeps jobs apart which method, tutor and seed do not: `OPD lr=1e-06`."""
    from onpol_cli.core.compose import compose

    pairs = [word.lstrip("+").split("=", 1) for word in overrides]
    apart = [f"{key.rsplit('.', 1)[-1]}={value}" for key, value in pairs if key in plan.varied and key not in LABELLED]
    method = compose(overrides).method
    return [f'method.label="{method.label or method.variant} {" ".join(apart)}"'] if apart else []


def eval_words(plan: SweepPlan, name: str, overrides: Sequence[str]) -> list[str] | None:
    """The command that evaluates on the configuration's benches, None if that is done."""
    from onpol_cli.core.compose import compose

    if run_status(plan, f"eval-{name}") == DONE:
        return None
    benches = [word for bench in compose(overrides).eval.benches for word in ("--bench", bench)]
    model = ["--model", str(Path(plan.runs) / name)]
    own = [f"paths.runs={plan.runs}", f"run.name=eval-{name}"]
    return ["eval", *benches, *model, *overrides, *own, *_resume(plan, f"eval-{name}")]


def _resume(plan: SweepPlan, name: str) -> list[str]:
    return ["--resume"] if (Path(plan.runs) / name).is_dir() else []


def call(words: Sequence[str], plan: SweepPlan, log: Path) -> int:
    """Run `onpol WORDS` in its own process, output into `log`; returns the exit status.

    It is in a session of its own: the terminal's Ctrl-C would be its first signal and ours a second one, which stops
    several processes at once, with nothing saved. It is given time to save before the sweep stops; a second Ctrl-C, or
    none left of that time, ends all of its processes. It does not outlive the sweep.
    """
    command = [sys.executable, "-m", "onpol_cli.cli", *words]
    with log.open("a", encoding="utf-8") as output:
        output.write(f"$ onpol {' '.join(words)}\n")
        output.flush()
        child = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=plan.cwd, env={**os.environ, "ONPOL_PLAIN": "1"},
            start_new_session=True, preexec_fn=end_with_parent,
        )  # fmt: skip
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            try:
                child.wait(SAVING_S)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                kill_all(child.pid)
            raise


def last_words(log: Path) -> str:
    """The last line of onpol's own messages in a log, which says why a job failed."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    own = [error for line in lines for error in error_in(line)]
    return (own or lines or ["no output"])[-1][:300]


def score(plan: SweepPlan, name: str) -> float | None:
    """The first metric of the first bench of the job's evaluation."""
    file = Path(plan.runs) / f"eval-{name}" / "summary.json"
    if not file.is_file():
        return None
    benches = json.loads(file.read_text(encoding="utf-8"))
    metrics = next(iter(benches.values()))["metrics"]
    value = next(iter(metrics.values()))["value"]
    return None if value is None else float(value)
