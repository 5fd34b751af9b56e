"""What a checkpoint lost of what it was not trained on, and how far it moved from the base.

Score change against the base with its paired interval, problems lost and won by name, divergence both
ways per bench, and what `update.json` says of where the update fell. Owns the collection; the
association of forgetting with KL is judged in `judge`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onpol_cli.comparison.records import EvalRun
from onpol_cli.comparison.scores import Scores
from onpol_cli.comparison.significance import Paired, compare_pair


@dataclass(frozen=True)
class Forgetting:
    """One label on one bench, against the base.

    Attributes:
        change: label minus base on Pass@1, paired.
        lost, won: problems whose pass rate (mean over seeds and samples) fell, rose.
    """

    label: str
    bench: str
    change: Paired
    lost: tuple[str, ...]
    won: tuple[str, ...]


def forgetting(scores: Scores) -> list[Forgetting]:
    """Every trained label on every bench that was not trained; empty without a base or such a bench."""
    if scores.base is None:
        return []
    found = []
    for bench in scores.other_benches:
        column = scores.column(bench, scores.headline, "pass@1")
        if column is None or scores.base not in column.labels():
            continue
        before = _rates(column.rows(scores.base))
        for label in column.labels():
            if label == scores.base:
                continue
            gap = _rates(column.rows(label)) - before
            lost = tuple(name for name, g in zip(column.problems, gap, strict=True) if g < 0)
            won = tuple(name for name, g in zip(column.problems, gap, strict=True) if g > 0)
            found.append(Forgetting(label, bench, compare_pair(column, label, scores.base), lost, won))
    return found


def _rates(rows: tuple[Any, Any]) -> Any:
    num, den = rows
    top, below = num.sum(axis=0), den.sum(axis=0)
    return np.divide(top, below, out=np.full_like(top, np.nan), where=below > 0)


def divergence_rows(runs: list[EvalRun]) -> list[dict[str, Any]]:
    """KL(base || model) and KL(model || base), nats per token, of each checkpoint and bench."""
    return [
        {
            "model": run.label,
            "seed": run.seed,
            "prompts": bench,
            "kl_base_model": values.get("base_model"),
            "kl_model_base": values.get("model_base"),
            "tokens": values.get("n_tokens"),
        }
        for run in runs
        for bench, values in run.kl.items()
    ]


def update_rows(runs: list[EvalRun]) -> list[dict[str, Any]]:
    """Where each update fell: one row per checkpoint and bench, of update.json (see docs/statistics.md)."""
    rows = []
    for run in runs:
        whole = {name: value for name, value in run.update.items() if isinstance(value, int | float)}
        parts = {name: value for name, value in run.update.items() if isinstance(value, Mapping)}
        if run.is_base:  # nothing moved; only its recovery from a forced wrong token says something
            parts = {bench: {k: v for k, v in part.items() if k in FORCED} for bench, part in parts.items()}
        rows += [
            {"model": run.label, "seed": run.seed, "prompts": bench, **{n: whole.get(n) for n in WHOLE},
             **{n: part.get(n) for n in PART}}
            for bench, part in (parts or {"": {}}).items()
            if whole or any(part.values())
        ]  # fmt: skip
    return rows


WHOLE = ("share_changed", "relative_norm", "low_prob_share")
FORCED = ("forced_pass", "forced_n")
PART = ("tokens", "mean_change", "gini", "spearman_surprisal", "spearman_entropy", *FORCED)
