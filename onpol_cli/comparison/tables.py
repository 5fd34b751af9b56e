"""Everything that is printed, as rows: scores, differences, outcomes, families, costs, claims.

Owns which rows exist and the numbers in them (unrounded); `render` turns rows into rich, Markdown,
LaTeX, CSV and JSON. Each function returns a list of flat dicts, one a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from onpol_cli.comparison.curves import WINDOW, end_level, half_fall_step, largest_rise_share, series
from onpol_cli.comparison.estimate import Estimate, score
from onpol_cli.comparison.judge import JudgedClaim
from onpol_cli.comparison.ledger import REWARD
from onpol_cli.comparison.power import Need, needed
from onpol_cli.comparison.scores import METRICS, Column, Scores
from onpol_cli.comparison.significance import Paired, compare_pair, holm
from onpol_cli.core.types import Outcome

Rows = list[dict[str, Any]]


def score_rows(scores: Scores) -> Rows:
    """One row per bench, temperature, metric and label; `seeds` holds every seed's own value."""
    cells = [
        (b, heat, metric.name) for b in scores.benches for heat in scores.temperatures for metric in scores.metrics(b)
    ]
    columns = [column for cell in cells if (column := scores.column(*cell)) is not None]
    return [row for column in columns for row in _score_rows(scores, column)]


def _score_rows(scores: Scores, column: Column) -> Rows:
    """One row a label."""
    rows = []
    for label in [name for name in scores.labels if name in column.labels()]:
        estimate = score(column, label)
        rows.append(
            {"model": label, "bench": column.bench, "temperature": column.temperature, "metric": column.metric.name,
             "title": column.metric.title, **_numbers(estimate), "samples": column.samples,
             "seeds": dict(estimate.by_seed), "interval": estimate.method}
        )  # fmt: skip
    return rows


def usable_rows(scores: Scores) -> Rows:
    """Scores of edit benches at the headline temperature on the problems whose original passes, where known."""
    rows: Rows = []
    for bench in scores.edit_benches:
        names = scores.usable(bench)
        columns = [scores.column(bench, scores.headline, metric.name) for metric in scores.metrics(bench)]
        for column in columns if names else []:
            assert names is not None and column is not None
            rows += [{**row, "problems": len(names)} for row in _score_rows(scores, column.only(names))]
    return rows


def _numbers(estimate: Estimate) -> dict[str, Any]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def difference_rows(scores: Scores) -> Rows:
    """Every pair of labels per bench and metric at the headline temperature, Holm-corrected per bench."""
    rows: Rows = []
    for bench in scores.benches:
        pairs = _pairs(scores, bench)
        adjusted = holm([pair.p for pair in pairs])
        rows += [_difference(pair, p) for pair, p in zip(pairs, adjusted, strict=True)]
    return rows


def _pairs(scores: Scores, bench: str) -> list[Paired]:
    found = []
    for metric in scores.metrics(bench):
        column = scores.column(bench, scores.headline, metric.name)
        if column is None:
            continue
        labels = [label for label in scores.labels if label in column.labels()]
        # The later label is on the left, so that a difference against the base reads as a gain.
        found += [compare_pair(column, left, right) for right, left in combinations(labels, 2)]
    return found


def _difference(pair: Paired, adjusted: float) -> dict[str, Any]:
    estimate = pair.estimate
    need = needed(estimate) if pair.p >= 0.05 else Need()
    return {
        "bench": pair.bench, "metric": pair.metric, "title": METRICS[pair.metric].title, "left": pair.left,
        "right": pair.right, **_numbers(estimate), "p": pair.p, "p_holm": adjusted, "test": pair.test,
        "p_problems": pair.p_problems, "p_seeds": pair.p_seeds, "low_seeds": pair.low_seeds,
        "high_seeds": pair.high_seeds, "won": pair.won, "lost": pair.lost, "seeds": dict(estimate.by_seed),
        "interval": estimate.method, "resolved": bool(adjusted < 0.05),
        "needed_problems": need.problems, "needed_seeds": need.seeds, "needed_answers": need.answers,
        "needed_together": need.together,
    }  # fmt: skip


def outcome_rows(scores: Scores) -> Rows:
    """Answers by outcome for each label, bench and temperature."""
    counts: dict[tuple[str, str, float], Counter[str]] = {}
    for run in scores.runs:
        for answer in run.answers:
            counts.setdefault((run.label, answer.bench, answer.temperature), Counter())[answer.outcome] += 1
    return [
        {"model": label, "bench": bench, "temperature": heat, "answers": counter.total(),
         **{outcome.value: counter.get(outcome.value, 0) for outcome in Outcome}}
        for (label, bench, heat), counter in counts.items()
    ]  # fmt: skip


def family_rows(scores: Scores) -> Rows:
    """Pass rate by corruption family and mean excess of passing answers (a problem may count in two families)."""
    rows = []
    for bench in scores.edit_benches:
        column = scores.column(bench, scores.headline, "pass@1")
        members = _families(scores, bench)
        for family in sorted(members):
            assert column is not None
            part = column.only(members[family])
            for label in part.labels():
                excess = [
                    answer.excess
                    for run in scores.runs
                    if run.label == label
                    for answer in run.answers
                    if answer.passed and answer.excess is not None and answer.bench == bench
                    and answer.temperature == scores.headline and family in answer.families
                ]  # fmt: skip
                rows.append(
                    {"bench": bench, "family": family, "model": label, **_numbers(score(part, label)),
                     "excess_levenshtein": float(np.mean(excess)) if excess else None}
                )  # fmt: skip
    return rows


def _families(scores: Scores, bench: str) -> dict[str, set[str]]:
    """Problems of each family."""
    members: dict[str, set[str]] = {}
    for run in scores.runs:
        for answer in run.answers:
            if answer.bench == bench:
                for family in answer.families:
                    members.setdefault(family, set()).add(answer.problem_id)
    return members


def curve_rows(scores: Scores) -> Rows:
    """Shape of each training run on its own samples: one row per label and seed."""
    rows = []
    for run in scores.runs:
        if run.train is None or not len(series(run.train.metrics, REWARD)[0]):
            continue
        steps, reward = series(run.train.metrics, REWARD)
        entropy = series(run.train.metrics, "entropy")[1]
        shape = half_fall_step(run.train.metrics), largest_rise_share(run.train.metrics)
        rows.append(
            {"model": run.label, "seed": run.seed, "steps": len(steps),
             "entropy_half_step": shape[0], "reward_jump": shape[1], "even_rise": WINDOW / len(steps),
             "reward_first": float(reward[0]), "reward_last": end_level(reward),
             "entropy_first": float(entropy[0]) if len(entropy) else None,
             "entropy_last": end_level(entropy) if len(entropy) else None}
        )  # fmt: skip
    return rows


def claim_rows(judged: Sequence[JudgedClaim]) -> Rows:
    """One row per statement."""
    return [
        {
            "claim": one.claim.id, "text": one.claim.text, "claim_verdict": one.verdict.value,
            "statement": part.statement.sentence(), "kind": part.statement.kind.value,
            "metric": part.statement.metric, "left": part.statement.left, "right": part.statement.right,
            "margin": part.statement.margin, "verdict": part.verdict.value, "effect": part.effect, "low": part.low,
            "high": part.high, "p": part.p, "p_holm": part.p_holm, "n": part.n, "seeds": part.seeds,
            "needed_problems": part.need.problems, "needed_seeds": part.need.seeds,
            "needed_answers": part.need.answers, "needed_together": part.need.together, "note": part.note,
            "premise": part.premise.statement.sentence() if part.premise else None,
            "premise_verdict": part.premise.verdict.value if part.premise else None,
        }
        for one in judged
        for part in one.statements
    ]  # fmt: skip


def model_objects(scores: Scores, rows: Rows, outcomes: Rows) -> dict[str, Any]:
    """The `--json` object per model: `{label: {"runs", "seeds", "benches": {...}}}` (design: Run directory).

    `metrics` are those of the headline temperature; the others stand under `temperatures`.
    """
    models: dict[str, Any] = {}
    for label in scores.labels:
        runs = [run for run in scores.runs if run.label == label]
        benches: dict[str, Any] = {}
        for row in (r for r in rows if r["model"] == label):
            bench = benches.setdefault(row["bench"], {"n": 0, "metrics": {}, "outcomes": {}, "temperatures": {}})
            cell = {key: row[key] for key in ("value", "low", "high", "n")} | {"seeds": row["seeds"]}
            bench["temperatures"].setdefault(f"{row['temperature']:g}", {})[row["metric"]] = cell
            if row["temperature"] == scores.headline:
                bench["metrics"][row["metric"]] = cell
                bench["n"] = max(bench["n"], row["n"] if row["metric"] == "pass@1" else 0)
        for row in outcomes:
            if row["model"] == label and row["temperature"] == scores.headline and row["bench"] in benches:
                benches[row["bench"]]["outcomes"] = {o.value: row[o.value] for o in Outcome}
        models[label] = {"runs": [run.name for run in runs], "seeds": [run.seed for run in runs], "benches": benches}
    return models
