"""Verdicts: what the runs say about each claim.

A statement is *supported* when its 95% interval (90% for equivalence: two one-sided tests at 5%) lies
inside what the statement allows, *contradicted* when it lies outside, otherwise *unresolved*, with the
number of problems or seeds that would resolve it. Verdicts are not corrected for the number of
statements; Holm-adjusted p-values stand beside. Owns the rules; estimates come from `significance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isnan

import numpy as np

from onpol_cli.comparison.claims import FORGETTING, Claim, Kind, Statement, Verdict, column_of
from onpol_cli.comparison.curves import CURVE_FUNCTIONS, association, spearman
from onpol_cli.comparison.estimate import ratios
from onpol_cli.comparison.power import Need, needed, needed_seeds
from onpol_cli.comparison.records import EvalRun
from onpol_cli.comparison.scores import Scores
from onpol_cli.comparison.significance import Paired, compare_pair, holm, paired_t
from onpol_cli.core.errors import OnpolError

ALPHA = 0.05
LEAST_METHODS = 5


@dataclass(frozen=True)
class Judged:
    """A statement with its verdict.

    Attributes:
        effect, low, high: left minus right (the metric's unit), or rho; None where not computable.
        p: of the test behind the verdict; `p_holm` corrected across all statements.
        n: problems (methods for an association, 0 for curves); `seeds` on the larger side.
        need: sizes that would resolve it (problems; methods for an association).
        note: why, in one line.
        premise: the premise as judged, if there is one.
    """

    statement: Statement
    verdict: Verdict
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    n: int = 0
    seeds: int = 0
    need: Need = field(default_factory=Need)
    note: str = ""
    premise: Judged | None = None


@dataclass(frozen=True)
class JudgedClaim:
    """A claim with its verdict and those of its statements."""

    claim: Claim
    verdict: Verdict
    statements: tuple[Judged, ...]


def judge(claims: Sequence[Claim], scores: Scores) -> list[JudgedClaim]:
    """Verdicts of all claims, with p-values corrected across all their statements."""
    judged = [[judge_statement(statement, scores) for statement in claim.statements] for claim in claims]
    flat = [one.p for group in judged for one in group if one.p is not None]
    adjusted = iter(holm(flat))
    corrected = [
        tuple(one if one.p is None else replace(one, p_holm=next(adjusted)) for one in group) for group in judged
    ]
    return [
        JudgedClaim(claim, combine([one.verdict for one in group]), group)
        for claim, group in zip(claims, corrected, strict=True)
    ]


def combine(verdicts: Sequence[Verdict]) -> Verdict:
    """A claim holds if all its statements do; the first of these that occurs is its verdict."""
    order = (Verdict.contradicted, Verdict.unresolved, Verdict.premise_not_met, Verdict.supported)
    return next(verdict for verdict in order if verdict in verdicts)


def judge_statement(statement: Statement, scores: Scores) -> Judged:
    """One statement, its premise first."""
    premise = judge_statement(statement.premise, scores) if statement.premise else None
    judged = _decide(statement, scores)
    if premise is None:
        return judged
    if premise.verdict is Verdict.supported or judged.effect is None:
        return replace(judged, premise=premise)
    note = f"premise {premise.verdict}: {premise.statement.sentence()}"
    return replace(judged, verdict=Verdict.premise_not_met, premise=premise, note=note)


def _decide(statement: Statement, scores: Scores) -> Judged:
    if statement.kind is Kind.association:
        return _association(statement, scores)
    known = {label.lower(): label for label in scores.labels}
    if scores.base is not None:
        known.setdefault("base", scores.base)  # a real model is labelled by its own name
    missing = [label for label in (statement.left, statement.right) if label.lower() not in known]
    if missing:
        have = ", ".join(scores.labels)
        return Judged(statement, Verdict.unresolved, note=f"no run labelled {' or '.join(missing)} (have: {have})")
    found = replace(statement, left=known[statement.left.lower()], right=known[statement.right.lower()])
    return _curve(found, scores) if statement.kind is Kind.curve else _paired(found, scores)


def _paired(statement: Statement, scores: Scores) -> Judged:
    try:
        bench = scores.bench(statement.bench)
    except OnpolError as error:
        return Judged(statement, Verdict.unresolved, note=str(error))
    column = scores.column(bench, scores.headline, column_of(statement.metric))
    if column is None or not {statement.left, statement.right} <= set(column.labels()):
        return Judged(statement, Verdict.unresolved, note=f"no values of {statement.metric} on {bench} for both")
    pair = compare_pair(column, statement.left, statement.right)
    estimate = pair.estimate
    if isnan(estimate.value):
        return Judged(statement, Verdict.unresolved, note=f"{statement.metric}: nothing counted on one side")
    few = min(column.counted(statement.left), column.counted(statement.right)) < 2
    if not column.metric.proportion and (few or estimate.se == 0):
        why = "fewer than two problems with a passing answer on a side" if few else "passing answers are all alike"
        note = f"{statement.metric}: {why}, which gives no interval"
        return Judged(statement, Verdict.unresolved, estimate.value, n=estimate.n, seeds=estimate.seeds, note=note)
    verdict, p, bound = decide(statement, pair)
    need = needed(estimate, bound) if verdict is Verdict.unresolved else Need()
    return Judged(
        statement, verdict, estimate.value, estimate.low, estimate.high, p, None, estimate.n, estimate.seeds,
        need,
        "" if estimate.seeds > 1 else "one seed: about these checkpoints, not about the methods",
    )  # fmt: skip


def decide(statement: Statement, pair: Paired) -> tuple[Verdict, float, float]:
    """(verdict, p, bound that the estimate would have to clear) of a paired statement.

    Everything is turned so that higher is better; the bound is returned in the metric's own direction.
    """
    estimate, better, margin = pair.estimate, statement.better, statement.margin
    value = better * estimate.value
    low, high = sorted((better * estimate.low, better * estimate.high))
    if statement.kind is Kind.difference:
        verdict = Verdict.supported if (low > 0 or high < 0) and pair.p < ALPHA else Verdict.unresolved
        return verdict, pair.p, 0.0
    if statement.kind is Kind.equivalence:
        narrow, wide = sorted(better * b for b in estimate.bounds(1 - 2 * ALPHA))
        p = max(estimate.tail(margin + value), estimate.tail(margin - value))
        if -margin < narrow and wide < margin and p < ALPHA:
            return Verdict.supported, p, 0.0
        outside = low > margin or high < -margin
        return (Verdict.contradicted if outside else Verdict.unresolved), p, better * (margin if value > 0 else -margin)
    bound = margin if statement.kind is Kind.superiority else -margin
    plain = bound == 0
    p = pair.p if plain else estimate.tail(value - bound)
    clear = p < ALPHA if plain else p < ALPHA / 2
    if low > bound and clear:
        return Verdict.supported, p, better * bound
    if high < bound and (p < ALPHA if plain else 1 - p < ALPHA / 2):
        return Verdict.contradicted, p, better * bound
    return Verdict.unresolved, p, better * bound


def _curve(statement: Statement, scores: Scores) -> Judged:
    sides = [_curve_values(statement.metric, label, scores.runs) for label in (statement.left, statement.right)]
    for label, (values, trained) in zip((statement.left, statement.right), sides, strict=True):
        if not trained:
            return Judged(statement, Verdict.unresolved, note=f"no training metrics of {label} at hand")
        if len(values) < trained:  # the other seeds alone would speak for those that contradict them
            word = "entropy does not fall" if statement.metric.startswith("entropy") else "reward does not rise"
            some = f" in {trained - len(values)} of {trained} seeds" if values else ""
            return Judged(statement, Verdict.premise_not_met, note=f"{word} while {label} trains{some}")
    (left, _), (right, _) = sides
    shared = sorted(set(left) & set(right))
    effect = float(np.mean(list(left.values())) - np.mean(list(right.values())))
    if len(shared) < 2:
        note = f"{len(shared) or 'no'} shared seed: at least 2 are needed for an interval"
        return Judged(statement, Verdict.unresolved, effect, seeds=max(len(left), len(right)), note=note)
    gaps = [left[seed] - right[seed] for seed in shared]
    p, low, high = paired_t(gaps)
    good_low, good_high = sorted((statement.better * low, statement.better * high))
    verdict = Verdict.supported if good_low > 0 else Verdict.contradicted if good_high < 0 else Verdict.unresolved
    seeds = None
    if verdict is Verdict.unresolved and np.mean(gaps) != 0:
        seeds = needed_seeds(abs(float(np.mean(gaps))), 0.0, float(np.var(gaps, ddof=1)))
    return Judged(
        statement, verdict, float(np.mean(gaps)), low, high, p, None, 0, len(shared), Need(None, seeds),
        "paired t over seeds",
    )


def _curve_values(metric: str, label: str, runs: Sequence[EvalRun]) -> tuple[dict[int, float], int]:
    """(value by seed, number of seeds of `label` with training metrics)."""
    trained = [run for run in runs if run.label == label and run.train and run.train.metrics]
    values = {run.seed: CURVE_FUNCTIONS[metric](run.train.metrics) for run in trained if run.train}
    return {seed: value for seed, value in values.items() if value is not None}, len(values)


def _association(statement: Statement, scores: Scores) -> Judged:
    """Over the means of labels: seeds of one method are no independent points, and many would prove anything."""
    points = association_points(scores, statement.metric.removeprefix("kl/"), statement.bench)
    labels = list(dict.fromkeys(run.label for run, _, _ in points))
    if len(labels) < LEAST_METHODS:
        note = f"{len(labels)} methods have a KL and a forgetting score; {LEAST_METHODS} are needed at least"
        return Judged(statement, Verdict.unresolved, n=len(labels), note=note)
    x, y = (np.array([np.mean([p[k] for p in points if p[0].label == label]) for label in labels]) for k in (1, 2))
    rho, low, high, p, need = association(x, y)
    if isnan(rho):
        return Judged(statement, Verdict.unresolved, n=len(labels), note="KL or forgetting is the same everywhere")
    verdict = Verdict.unresolved
    if p < ALPHA and (low > 0 or high < 0):
        verdict = Verdict.supported if rho > 0 else Verdict.contradicted
    single = float(spearman(np.array([p[1] for p in points]), np.array([p[2] for p in points])))
    seeds = max(sum(run.label == label for run, _, _ in points) for label in labels)
    note = f"Spearman's rho over the means of methods; over all {len(points)} checkpoints: {single:+.2f}"
    missing = Need(need if verdict is Verdict.unresolved else None)
    return Judged(statement, verdict, rho, low, high, p, None, len(labels), seeds, missing, note)


def association_points(scores: Scores, direction: str, bench: str) -> list[tuple[EvalRun, float, float]]:
    """(run, KL in nats per token on `bench`'s prompts, forgetting) of every trained checkpoint.

    Forgetting: the base's Pass@1 on the forgetting bench minus the checkpoint's.
    """
    try:
        column = scores.column(scores.bench(FORGETTING), scores.headline, "pass@1")
        prompts = scores.bench(bench)
    except OnpolError:
        return []
    if column is None or scores.base not in column.labels():
        return []
    before = float(ratios(*column.rows(scores.base)).mean())
    after = dict(zip(column.keys, ratios(column.num, column.den), strict=True))
    found = []
    for run in scores.runs:
        kl = (run.kl.get(prompts) or {}).get(direction)
        if not run.is_base and kl is not None and (run.label, run.seed) in after:
            found.append((run, float(kl), before - float(after[run.label, run.seed])))
    return found
