"""Run directories as the comparison sees them: evaluation runs with their answers, training runs.

Owns reading and checking the files of a run directory (manifest, samples, problems, kl, update,
metrics). Computes nothing from them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.types import Outcome
from onpol_cli.runs.rundir import read_lines, read_manifest

_OUTCOMES = frozenset(outcome.value for outcome in Outcome)
_REQUIRED = ("bench", "problem_id", "sample", "outcome", "reward", "completion")


@dataclass(frozen=True, slots=True)
class Answer:
    """One graded completion: a line of samples.jsonl."""

    bench: str
    problem_id: str
    sample: int
    temperature: float
    outcome: str
    reward: float
    completion: str
    code: str | None
    excess: float | None
    added_cc: float | None
    families: tuple[str, ...]
    exact_reversal: bool | None

    @property
    def passed(self) -> bool:
        """Whether all tests passed."""
        return self.outcome == "passed"


@dataclass(frozen=True)
class TrainRun:
    """A training run: manifest, per-step metrics, configuration text."""

    path: Path
    name: str
    manifest: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    config: str = ""


@dataclass(frozen=True)
class EvalRun:
    """One evaluated checkpoint."""

    path: Path
    name: str
    label: str
    method: str
    tutor_label: str | None
    seed: int
    manifest: Mapping[str, Any]
    answers: Sequence[Answer]
    problems: Mapping[tuple[str, str], Mapping[str, Any]]
    kl: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    update: Mapping[str, Any] = field(default_factory=dict)
    train: TrainRun | None = None
    config: str = ""

    @property
    def key(self) -> str:
        """Name of this checkpoint in tables: label and seed."""
        return f"{self.label} (seed {self.seed})"

    @property
    def is_base(self) -> bool:
        """Whether the untrained model was evaluated."""
        return self.method == "base" or self.label.lower() == "base"


def read_runs(paths: Iterable[Path]) -> tuple[list[EvalRun], list[TrainRun]]:
    """Evaluation runs among `paths`, and the training runs among them that no evaluation refers to.

    Raises:
        OnpolError: a path is no run directory, a file is damaged, or no evaluation is among them.
    """
    unique = list(dict.fromkeys(Path(p) for p in paths))
    evals: list[EvalRun] = []
    trains: list[TrainRun] = []
    for path in unique:
        if not path.is_dir() or not read_manifest(path):
            raise OnpolError(
                f"{path} is not a run directory (no manifest.json). Name runs as `onpol runs list` shows them."
            )
        manifest = read_manifest(path)
        if "answers" in manifest and "evaluates" not in manifest:
            raise OnpolError(
                f"{path} holds graded answers of a file (eval --answers), which compare with no other run: whose they "
                "are, and how they were sampled, is not known. Leave it out."
            )
        if (path / "samples.jsonl").is_file() and "evaluates" in manifest:
            evals.append(read_eval(path))
        else:
            trains.append(read_train(path))
    if not evals:
        raise OnpolError(
            f"Nothing to compare: none of the given runs ({', '.join(p.name for p in unique) or 'no runs'}) is an "
            "evaluation. Evaluate them first: onpol eval --model RUN --bench NAME."
        )
    used = {run.train.name for run in evals if run.train}
    return evals, [run for run in trains if run.name not in used]


def read_eval(path: Path) -> EvalRun:
    """The evaluation in `path`, with the training run behind it where that is still there."""
    manifest = read_manifest(path)
    about = manifest.get("evaluates")
    if not isinstance(about, Mapping) or "label" not in about:
        raise OnpolError(f"{path}/manifest.json has no evaluates.label (which model it evaluated). Evaluate again.")
    answers = [_answer(path, number, row) for number, row in enumerate(read_lines(path / "samples.jsonl"), 1)]
    if not answers:
        raise OnpolError(f"{path} holds no graded answers (empty samples.jsonl). Resume or repeat that evaluation.")
    problems = {(row["bench"], str(row["problem_id"])): row for row in read_lines(path / "problems.jsonl")}
    return EvalRun(
        path=path,
        name=str(manifest.get("run", path.name)),
        label=str(about["label"]),
        method=str(about.get("method") or manifest.get("method") or "unknown"),
        tutor_label=about.get("tutor_label"),
        seed=int(about.get("seed") or 0),
        manifest=manifest,
        answers=answers,
        problems=problems,
        kl=_read_object(path / "kl.json"),
        update=_read_object(path / "update.json"),
        train=_train_behind(path, about),
        config=_text(path / "config.yaml"),
    )


def read_train(path: Path) -> TrainRun:
    """The training run in `path`."""
    manifest = read_manifest(path)
    metrics = list(read_lines(path / "metrics.jsonl"))
    return TrainRun(path, str(manifest.get("run", path.name)), manifest, metrics, _text(path / "config.yaml"))


def _train_behind(path: Path, about: Mapping[str, Any]) -> TrainRun | None:
    """The run that trained the evaluated checkpoint: where the manifest says, else a sibling of that name."""
    recorded = about.get("train_run_dir")
    name = about.get("run")
    places = [Path(recorded), path.parent / recorded] if recorded else []
    places += [path.parent / Path(recorded).name] if recorded else []
    places += [path.parent / str(name)] if name else []
    for place in places:
        if place.is_dir() and place != path and read_manifest(place):
            return _until(read_train(place), about.get("step"))
    return None


def _until(run: TrainRun, step: int | None) -> TrainRun:
    """What lies behind weights of an earlier `step` than the run's last; the time is then that of its phases."""
    if step is None:
        return run
    metrics = [row for row in run.metrics if row.get("step", -1) < step]
    return replace(run, manifest={**run.manifest, "wall_s": None}, metrics=metrics)


def _answer(path: Path, number: int, row: Mapping[str, Any]) -> Answer:
    missing = [key for key in _REQUIRED if key not in row]
    if missing:
        raise OnpolError(f"{path}/samples.jsonl, line {number}: no {', '.join(missing)}. Repeat that evaluation.")
    if row["outcome"] not in _OUTCOMES:
        allowed = ", ".join(sorted(_OUTCOMES))
        raise OnpolError(f"{path}/samples.jsonl, line {number}: outcome {row['outcome']!r}; allowed: {allowed}.")
    return Answer(
        bench=str(row["bench"]),
        problem_id=str(row["problem_id"]),
        sample=int(row["sample"]),
        temperature=float(row.get("temperature") or 0.0),
        outcome=str(row["outcome"]),
        reward=float(row["reward"]),
        completion=str(row["completion"] or ""),
        code=row.get("code"),
        excess=_number(row.get("excess_levenshtein")),
        added_cc=_number(row.get("added_cc")),
        families=tuple(row.get("families") or ()),
        exact_reversal=row.get("exact_reversal"),
    )


def _number(value: Any) -> float | None:
    """A finite float; NaN and absent values are None."""
    return None if value is None or value != value else float(value)


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise OnpolError(f"{path} is not JSON ({error}). Remove it or repeat that run.") from error
    if not isinstance(value, dict):
        raise OnpolError(f"{path} must hold one JSON object, got {type(value).__name__}.")
    return cast("dict[str, Any]", value)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
