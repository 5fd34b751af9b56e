"""The budget: what each training run cost, and what it cost to reach the tutor's score.

Sums the per-step entries of metrics.jsonl: student tokens generated, teacher tokens scored, tokens
trained (tokens), steps, seconds by phase, peak memory (MB). Owns costs. Quality along the way comes from
validation entries `validation/<task>/pass@1` where the run has them, else from the reward of its own rollouts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onpol_cli.comparison.curves import end_level, smooth
from onpol_cli.comparison.records import EvalRun, TrainRun
from onpol_cli.comparison.scores import Array, Scores

PHASES = ("generate", "grade", "score", "train", "sync")
TOKENS = ("generated", "scored", "trained")


@dataclass(frozen=True)
class Cost:
    """Totals of one training run. Seconds are wall-clock of the phase; None: not recorded."""

    label: str
    seed: int
    run: str
    steps: int
    tokens: Mapping[str, float]
    seconds: Mapping[str, float]
    peak_mb: float | None
    gpu_seconds: float | None
    """Wall seconds times the GPUs that the run computed on; those of servers that others started are not known."""
    tutor: str | None
    course: Course | None
    """The way to the tutor's score; None without a tutor, or where the two cannot be compared."""


@dataclass(frozen=True)
class Course:
    """How far a student came towards its tutor's score.

    Attributes:
        measure: what was compared, `validation Pass@1` or `reward`.
        goal: the tutor's score.
        end: the student's at the end (mean of the last tenth of its curve).
        reached: steps, seconds and tokens spent when the goal was first reached, None if it was not.
    """

    measure: str
    goal: float
    end: float
    reached: Mapping[str, float] | None


def total(metrics: Sequence[Mapping[str, Any]], name: str) -> float:
    """Sum of one entry over all steps; 0 where it is never logged."""
    return float(sum(row.get(name) or 0 for row in metrics))


def costs(scores: Scores, extra: Sequence[TrainRun] = ()) -> list[Cost]:
    """One entry per evaluated checkpoint with a training run, then runs without an evaluation."""
    found = [
        _cost(run.train, run.label, run.seed, run.tutor_label, towards_tutor(run, scores))
        for run in scores.runs
        if run.train is not None
    ]
    for train in extra:
        label = str(train.manifest.get("label") or train.manifest.get("method") or train.name)
        found.append(_cost(train, label, int(train.manifest.get("seed") or 0), train.manifest.get("tutor"), None))
    return found


def _cost(train: TrainRun, label: str, seed: int, tutor: str | None, course: Course | None) -> Cost:
    """Sums over one run."""
    metrics = train.metrics
    peaks = [row["memory/peak_mb"] for row in metrics if row.get("memory/peak_mb") is not None]
    seconds = {phase: total(metrics, f"time/{phase}") for phase in PHASES}
    seconds["wall"] = float(train.manifest.get("wall_s") or 0) or sum(seconds.values())
    count = _gpus(train.manifest)
    return Cost(
        label, seed, train.name, sum(row.get("step", -1) >= 0 for row in metrics),
        {kind: total(metrics, f"tokens/{kind}") for kind in TOKENS}, seconds,
        max(peaks) if peaks else None, seconds["wall"] * count if count else None, tutor, course,
    )  # fmt: skip


def _gpus(manifest: Mapping[str, Any]) -> int:
    """GPUs that a run computed on; for runs that did not say so, all that its machine has."""
    if manifest.get("gpus_used") is not None:
        return int(manifest["gpus_used"])
    gpus = (manifest.get("hardware") or {}).get("gpus")
    return len(gpus) if isinstance(gpus, Sequence) and not isinstance(gpus, str) else int(gpus or 0)


def validation_benches(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Benches that a run was validated on."""
    names = {name for row in metrics for name in row if name.startswith("validation/") and name.endswith("/pass@1")}
    return sorted(name.split("/", 1)[1].rsplit("/", 1)[0] for name in names)


def course(metrics: Sequence[Mapping[str, Any]], name: str) -> dict[str, Array]:
    """Entry `name` against cumulative cost: arrays `score`, `step`, `seconds`, `generated`, `scored`, `trained`."""
    columns: dict[str, list[float]] = {name: [] for name in ("score", "step", "seconds", *TOKENS)}
    spent = dict.fromkeys(("seconds", *TOKENS), 0.0)
    for row in metrics:
        spent["seconds"] += sum(float(row.get(f"time/{phase}") or 0) for phase in PHASES)
        for kind in TOKENS:
            spent[kind] += float(row.get(f"tokens/{kind}") or 0)
        value = row.get(name)
        if value is not None and row.get("step", 0) >= 0:  # what was selected from is a cost, not a score
            columns["score"].append(float(value))
            columns["step"].append(float(row.get("step", len(columns["step"]))))
            for cost, amount in spent.items():
                columns[cost].append(amount)
    return {name: np.asarray(values) for name, values in columns.items()}


REWARD = "reward/mean"
SMOOTHED = 5
"""Steps over which the reward of rollouts is averaged: a single step has few prompts."""


def towards_tutor(run: EvalRun, scores: Scores) -> Course | None:
    """The student's way to its tutor's score: in validation if both were validated on one task, else in reward."""
    if run.train is None or run.tutor_label is None:
        return None
    tutors = [r for r in scores.runs if r.label == run.tutor_label and run.seed in (r.seed, *_only_seed(r, scores))]
    for task in validation_benches(run.train.metrics):
        name = f"validation/{task}/pass@1"
        ends = [course(r.train.metrics, name)["score"] for r in tutors if r.train]
        if ends and len(ends[0]):
            return _course(run.train, name, "validation Pass@1", float(ends[0][-1]), 1)
    bench = trained_bench(run.train, scores)
    rewards = [a.reward for r in tutors for a in r.answers if a.bench == bench and a.temperature == scores.headline]
    return _course(run.train, REWARD, "reward", float(np.mean(rewards)), SMOOTHED) if rewards else None


def _only_seed(run: EvalRun, scores: Scores) -> list[int]:
    """Seeds of all runs if `run`'s label has one seed only: it serves every student."""
    alone = sum(other.label == run.label for other in scores.runs) == 1
    return [other.seed for other in scores.runs] if alone else []


def trained_bench(train: TrainRun, scores: Scores) -> str | None:
    """The evaluated bench that holds problems of the kind trained on: the task's name, or that with `-id`."""
    found = re.search(r"^task:\n(?:  .*\n)*?  name: (\S+)$", train.config, re.MULTILINE)
    names = (found[1], f"{found[1]}-id") if found else ()
    return next((name for name in names if name in scores.benches), None)


def _course(train: TrainRun, name: str, measure: str, goal: float, width: int) -> Course | None:
    path = course(train.metrics, name)
    if not len(path["score"]):
        return None
    curve = smooth(path["score"], width)
    hits = np.flatnonzero(curve >= goal)
    at = int(hits[0]) if hits.size else None
    reached = None if at is None else {cost: float(path[cost][at]) for cost in ("step", "seconds", *TOKENS)}
    return Course(measure, goal, end_level(path["score"]), reached)


def by_label(found: Sequence[Cost]) -> list[dict[str, Any]]:
    """Mean over seeds per label, as rows for a table."""
    rows = []
    for label in dict.fromkeys(cost.label for cost in found):
        group = [cost for cost in found if cost.label == label]
        peaks = [cost.peak_mb for cost in group if cost.peak_mb is not None]
        gpu = [cost.gpu_seconds for cost in group if cost.gpu_seconds is not None]
        ways = [cost.course for cost in group if cost.course]
        reached = [way.reached for way in ways if way.reached]
        row: dict[str, Any] = {"model": label, "runs": len(group), "steps": _mean([c.steps for c in group])}
        row |= {f"tokens_{kind}": _mean([c.tokens[kind] for c in group]) for kind in TOKENS}
        row |= {f"seconds_{phase}": _mean([c.seconds[phase] for c in group]) for phase in (*PHASES, "wall")}
        row |= {"peak_mb": max(peaks) if peaks else None, "gpu_seconds": _mean(gpu) if gpu else None}
        row["reached_tutor"] = f"{len(reached)}/{len(ways)}" if ways else None
        row["to_tutor_measure"] = ways[0].measure if ways else None
        row["to_tutor_goal"] = _mean([way.goal for way in ways]) if ways else None
        row["to_tutor_end"] = _mean([way.end for way in ways]) if ways else None
        row |= {
            f"to_tutor_{name}": _mean([r[name] for r in reached]) if reached else None
            for name in ("step", "seconds", "generated", "scored")
        }
        rows.append(row)
    return rows


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
