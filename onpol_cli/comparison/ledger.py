"""The budget: what each training run cost, and what it cost to reach the tutor's score.

Sums the per-step entries of metrics.jsonl: student tokens generated, teacher tokens scored, tokens
trained (tokens), steps, seconds by phase, peak memory (MB). Owns costs; quality comes from validation
entries `validation/<bench>/pass@1` where the run has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onpol_cli.comparison.estimate import ratios
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
    tutor: str | None
    reached: Mapping[str, float] | None
    """Steps, seconds and tokens at which validation first reached the tutor's score."""


def total(metrics: Sequence[Mapping[str, Any]], name: str) -> float:
    """Sum of one entry over all steps; 0 where it is never logged."""
    return float(sum(row.get(name) or 0 for row in metrics))


def costs(scores: Scores, extra: Sequence[TrainRun] = ()) -> list[Cost]:
    """One entry per evaluated checkpoint with a training run, then runs without an evaluation."""
    found = [
        _cost(run.train, run.label, run.seed, run.tutor_label, _reached(run, scores))
        for run in scores.runs
        if run.train is not None
    ]
    for train in extra:
        label = str(train.manifest.get("label") or train.manifest.get("method") or train.name)
        found.append(_cost(train, label, int(train.manifest.get("seed") or 0), train.manifest.get("tutor"), None))
    return found


def _cost(
    train: TrainRun, label: str, seed: int, tutor: str | None, reached: Mapping[str, float] | None
) -> Cost:
    metrics = train.metrics
    peaks = [row["memory/peak_mb"] for row in metrics if row.get("memory/peak_mb") is not None]
    seconds = {phase: total(metrics, f"time/{phase}") for phase in PHASES}
    seconds["wall"] = float(train.manifest.get("wall_s") or 0) or sum(seconds.values())
    gpus = (train.manifest.get("hardware") or {}).get("gpus")
    count = len(gpus) if isinstance(gpus, Sequence) and not isinstance(gpus, str) else int(gpus or 0)
    return Cost(
        label, seed, train.name, sum("step" in row for row in metrics),
        {kind: total(metrics, f"tokens/{kind}") for kind in TOKENS}, seconds,
        max(peaks) if peaks else None, seconds["wall"] * count if count else None, tutor, reached,
    )  # fmt: skip


def validation_benches(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Benches that a run was validated on."""
    names = {name for row in metrics for name in row if name.startswith("validation/") and name.endswith("/pass@1")}
    return sorted(name.split("/", 1)[1].rsplit("/", 1)[0] for name in names)


def course(metrics: Sequence[Mapping[str, Any]], bench: str) -> dict[str, Array]:
    """Validation score against cumulative cost: arrays `score`, `step`, `seconds`, `generated`, `scored`, `trained`."""
    columns: dict[str, list[float]] = {name: [] for name in ("score", "step", "seconds", *TOKENS)}
    spent = dict.fromkeys(("seconds", *TOKENS), 0.0)
    for row in metrics:
        spent["seconds"] += sum(float(row.get(f"time/{phase}") or 0) for phase in PHASES)
        for kind in TOKENS:
            spent[kind] += float(row.get(f"tokens/{kind}") or 0)
        value = row.get(f"validation/{bench}/pass@1")
        if value is not None:
            columns["score"].append(float(value))
            columns["step"].append(float(row.get("step", len(columns["step"]))))
            for name, amount in spent.items():
                columns[name].append(amount)
    return {name: np.asarray(values) for name, values in columns.items()}


def _reached(run: EvalRun, scores: Scores) -> dict[str, float] | None:
    """When the student's validation first reached the tutor's evaluated score on the same bench."""
    if run.train is None or run.tutor_label is None:
        return None
    for bench in validation_benches(run.train.metrics):
        column = scores.column(bench, scores.headline, "pass@1") if bench in scores.benches else None
        if column is None or run.tutor_label not in column.labels():
            continue
        goal = float(ratios(*column.rows(run.tutor_label)).mean())
        path = course(run.train.metrics, bench)
        hits = np.flatnonzero(path["score"] >= goal)
        if hits.size:
            return {name: float(path[name][hits[0]]) for name in ("step", "seconds", *TOKENS)}
    return None


def by_label(found: Sequence[Cost]) -> list[dict[str, Any]]:
    """Mean over seeds per label, as rows for a table."""
    rows = []
    for label in dict.fromkeys(cost.label for cost in found):
        group = [cost for cost in found if cost.label == label]
        peaks = [cost.peak_mb for cost in group if cost.peak_mb is not None]
        gpu = [cost.gpu_seconds for cost in group if cost.gpu_seconds is not None]
        reached = [cost.reached for cost in group if cost.reached]
        row: dict[str, Any] = {"model": label, "runs": len(group), "steps": _mean([c.steps for c in group])}
        row |= {f"tokens_{kind}": _mean([c.tokens[kind] for c in group]) for kind in TOKENS}
        row |= {f"seconds_{phase}": _mean([c.seconds[phase] for c in group]) for phase in (*PHASES, "wall")}
        row |= {"peak_mb": max(peaks) if peaks else None, "gpu_seconds": _mean(gpu) if gpu else None}
        row["reached_tutor"] = f"{len(reached)}/{len(group)}" if any(c.tutor for c in group) else None
        row |= {
            f"to_tutor_{name}": _mean([r[name] for r in reached]) if reached else None
            for name in ("step", "seconds", "generated", "scored")
        }
        rows.append(row)
    return rows


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
