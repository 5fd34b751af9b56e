"""`onpol sweep "COMMAND" key=a,b`: many runs through Hydra's own multirun, then one comparison.

Owns the plan (which jobs, under which names), the call of Hydra, and the report. Launchers and sweepers are
Hydra's: `hydra/launcher=joblib|submitit_local|submitit_slurm|ray`, `hydra/sweeper=optuna`.
"""

from __future__ import annotations

import itertools
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from onpol_cli.core.compose import compose, register_schema
from onpol_cli.core.console import say, show_json, show_text
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.core.files import sha256_text, write_json
from onpol_cli.core.overrides import check_grammar, check_overrides, explain, for_hydra, split_values
from onpol_cli.core.settings import ROOT_CONFIG, conf_dir
from onpol_cli.runs.lookup import LATEST, find_run
from onpol_cli.stages.launch import with_default_method
from onpol_cli.stages.sweep_job import DONE, JOBS, PLAN, JobRecord, SweepPlan, job, job_name, read_plan, run_status

COMMANDS: dict[tuple[str, ...], str] = {("train", "tutor"): "tutor", ("distill", "student"): "student"}
OUTPUTS = "csv,md,json,png"


def run_sweep(command: str, overrides: Sequence[str], *, dry_run: bool, as_json: bool) -> None:
    """Run every combination that is not done yet, compare what is done.

    Raises:
        OnpolError: a command or override that cannot be meant; nothing was started.
        RunFailed: some jobs failed; the others were finished and compared first.
    """
    plan, folder = make_plan(command, overrides)
    if dry_run:
        return show_plan(plan, folder, as_json)
    write_json(folder / PLAN, asdict(plan))
    say(f"Sweep {folder.name}: {count_text(plan)}; logs in {folder / JOBS}")
    call_hydra(plan, folder)
    return report(plan, folder, as_json)


def make_plan(command: str, overrides: Sequence[str]) -> tuple[SweepPlan, Path]:
    """The plan and its folder; a sweep that was started before keeps the tutors that it resolved then."""
    first, rest = shlex.split(command)[:2], shlex.split(command)[2:]
    role = COMMANDS.get(tuple(first))
    if role is None:
        allowed = " or ".join(repr(" ".join(words)) for words in COMMANDS)
        raise OnpolError(f"Cannot sweep over {command!r}: the command is {allowed}, in quotes. Overrides follow it.")
    words = with_default_method(role, [*rest, *overrides])
    check_overrides(words, sweep=True)
    check_grammar(for_hydra(words))
    if any(word.startswith("run.name=") for word in words):
        raise OnpolError("Jobs of a sweep name themselves after their overrides: leave run.name out.")
    config = compose([first_value(word) for word in words if not is_hydra(word)])
    runs = Path(config.paths.runs).expanduser().resolve()
    folder = runs / "sweeps" / f"{first[0]}-{sha256_text(' '.join([*first, *sorted(words)]))[:8]}"
    if (folder / PLAN).is_file():
        return read_plan(folder), folder
    own = [resolved(word, runs) for word in words]
    varied = [word.lstrip("+").partition("=")[0] for word in own if is_varied(word)]
    return SweepPlan(first, own, varied, str(runs), os.getcwd()), folder


def is_hydra(word: str) -> bool:
    """Whether an override is Hydra's own (launcher, sweeper)."""
    return word.lstrip("+").startswith(("hydra/", "hydra."))


def first_value(word: str) -> str:
    """`seed=1,2` as `seed=1`: one combination, to see that the rest composes."""
    return expanded(word)[0]


def is_varied(word: str) -> bool:
    """Whether an override of the experiment takes several values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return not is_hydra(word) and bool(
        OverridesParser.create().parse_override(for_hydra([word])[0]).is_sweep_override()
    )


def expanded(word: str) -> list[str]:
    """One override as the overrides of single jobs, spelt as Hydra's basic sweeper spells them (`1e-6` as `1e-06`).

    An `interval()`, which only a searching sweeper can take, stands for itself with its lower end.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import IntervalSweep

    parsed = OverridesParser.create().parse_override(for_hydra([word])[0])
    key, value = parsed.get_key_element(), parsed.value()
    if isinstance(value, IntervalSweep):
        return [f"{key}={value.start}"]
    if parsed.is_sweep_override():
        return [f"{key}={item}" for item in parsed.sweep_string_iterator()]
    return [f"{key}={parsed.get_value_element_as_str()}"]


def resolved(word: str, runs: Path) -> str:
    """`tutor=latest:sft` as the run that it means now, so that all jobs see the same tutor."""
    name, _, value = word.partition("=")
    if name not in ("tutor", "model.path") and not name.startswith("method.tutors."):
        return word
    values = [str(find_run(v, runs).path) if v.startswith(LATEST) else v for v in split_values(value)]
    return f"{name}={','.join(values)}"


def combinations(plan: SweepPlan) -> list[list[str]]:
    """The overrides of every job, in the order in which Hydra's basic sweeper makes them."""
    choices = [expanded(word) for word in plan.words if not is_hydra(word)]
    return [list(item) for item in itertools.product(*choices)]


def searches(plan: SweepPlan) -> bool:
    """Whether a sweeper chooses the combinations (Optuna) rather than the list."""
    return any(word.startswith("hydra/sweeper=") and not word.endswith("=basic") for word in plan.words)


def count_text(plan: SweepPlan) -> str:
    """How many jobs there are and how many of them are done."""
    if searches(plan):
        return "jobs as the sweeper chooses"
    names = [job_name(plan.command, words) for words in combinations(plan)]
    done = sum(run_status(plan, name) == DONE and run_status(plan, f"eval-{name}") == DONE for name in names)
    return f"{len(names)} jobs, {done} done already"


def show_plan(plan: SweepPlan, folder: Path, as_json: bool) -> None:
    """What would run."""
    jobs = [{"name": job_name(plan.command, words), "overrides": words} for words in combinations(plan)]
    if as_json:
        return show_json({"sweep": str(folder), "jobs": jobs, "dry_run": True})
    for item in jobs:
        show_text(f"{item['name']}: onpol {' '.join(plan.command)} {' '.join(item['overrides'])}")
    return None


def call_hydra(plan: SweepPlan, folder: Path) -> None:
    """Hydra's multirun over the plan's words.

    Raises:
        OnpolError: what Hydra refused, in one line.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    register_schema()
    words = [*for_hydra(plan.words), f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=."]
    if searches(plan) and not any(word.startswith("hydra.sweeper.direction=") for word in words):
        words.append("hydra.sweeper.direction=maximize")
    try:
        with _hydra_call(words):
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=ROOT_CONFIG)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise OnpolError(explain(error)) from error


@contextmanager
def _hydra_call(words: Sequence[str]) -> Iterator[None]:
    """`sys.argv` as Hydra reads it, and errors as exceptions rather than printed and exited upon."""
    from hydra.core.global_hydra import GlobalHydra

    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    GlobalHydra.instance().clear()
    sys.argv = ["onpol", "-m", *words]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        GlobalHydra.instance().clear()


def records(folder: Path) -> list[JobRecord]:
    """Every job's record, by name."""
    files = sorted((folder / JOBS).glob("*.json"))
    return [JobRecord(**json.loads(file.read_text(encoding="utf-8"))) for file in files]


def report(plan: SweepPlan, folder: Path, as_json: bool) -> None:
    """The comparison of the finished jobs on stdout; failed ones with their log, and an error if there are any."""
    from onpol_cli.stages.compare import CompareRequest, run_comparison

    found = records(folder)
    good = [record for record in found if record.status == DONE]
    failed = [record for record in found if record.status != DONE]
    shared = set.intersection(*(set(record.overrides) for record in found)) if len(found) > 1 else set()
    for record in good:
        points = "no score" if record.score is None else f"{record.score:.3f}"
        say(f"{record.name}: {points}  {' '.join(word for word in record.overrides if word not in shared)}")
    if good:
        names = [str(Path(plan.runs) / f"eval-{record.name}") for record in good]
        run_comparison(CompareRequest(names, out=folder / "comparison", formats=OUTPUTS, as_json=as_json, force=True))
    if failed:
        lines = "; ".join(f"{record.name} ({record.error}; log {record.log})" for record in failed)
        raise RunFailed(f"{len(failed)} of {len(found)} jobs failed: {lines}. The same command goes on with them.")
