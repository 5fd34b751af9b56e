"""Estimates with intervals: one score, and the paired difference of two, over problems and seeds.

A claim about a checkpoint resamples problems: percentile bootstrap. A claim about a method (several
seeds) resamples seeds and problems: the two-level bootstrap gives the variance, to which the seed
variance that S resampled seeds miss, `V_seed / S`, is added, and from which the noise that seeds and
problems share is taken off once (`V_interaction`; Cameron, Gelbach and Miller 2011,
doi:10.1198/jbes.2010.07136). The interval is Student's with Satterthwaite's degrees of freedom, not the
percentiles: three seeds have no tails to resample (simulated: percentiles cover 88 to 90%, not 95%).
Owns estimates and intervals; p-values live in `significance`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf, sqrt
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit

from onpol_cli.comparison.scores import Array, Column
from onpol_cli.core.intervals import wilson
from onpol_cli.core.seeding import derive_seed

DRAWS = 4000
"""Bootstrap resamples. The Monte Carlo error of a 95% bound is about 0.02 standard errors."""
_Z = NormalDist().inv_cdf


@dataclass(frozen=True)
class Estimate:
    """A score or a difference.

    Attributes:
        value, low, high: estimate and its interval, in the metric's unit.
        se: standard error; `df` its degrees of freedom (inf for one seed: problems are many).
        n: problems that contribute.
        seeds: number of seeds on the side that has most.
        problem_variance: part of se² that shrinks with more problems.
        seed_variance: part of se² that shrinks only with more seeds.
        answer_variance: part of the problem part that more answers a problem would shrink; 0 where it
            cannot be told (one answer a problem, or an average over passing answers).
        answers: answers per problem.
        by_seed: (seed, value) of every seed.
        method: how the interval was made.
    """

    value: float
    low: float
    high: float
    se: float
    df: float
    n: int
    seeds: int
    problem_variance: float
    seed_variance: float
    by_seed: tuple[tuple[int, float], ...]
    method: str
    answer_variance: float = 0.0
    answers: int = 1

    def bounds(self, level: float) -> tuple[float, float]:
        """The interval at another level, by Student's t around the estimate (for one-sided tests)."""
        half = quantile(self.df, 0.5 + level / 2) * self.se
        return self.value - half, self.value + half


def quantile(df: float, share: float) -> float:
    """Quantile of Student's t with `df` degrees of freedom, of the normal if df is infinite."""
    return _Z(share) if df == inf else float(stdtrit(df, share))


@lru_cache(maxsize=16)
def resamples(size: int, stream: str, draws: int = DRAWS) -> Array:
    """How often each of `size` items occurs in each bootstrap resample: [draws, size], rows sum to size."""
    rng = np.random.default_rng(derive_seed(0, stream, size))
    picks = rng.integers(0, size, size=(draws, size)) + np.arange(draws)[:, None] * size
    counts = np.bincount(picks.ravel(), minlength=draws * size)
    weights: Array = counts.reshape(draws, size).astype(np.float64)
    return weights


def ratios(num: Array, den: Array) -> Array:
    """`sum num / sum den` over the last axis, nan where nothing is counted."""
    top, below = num.sum(axis=-1), den.sum(axis=-1)
    return np.asarray(np.divide(top, below, out=np.full_like(top, np.nan), where=below > 0))


def score(column: Column, label: str, level: float = 0.95) -> Estimate:
    """The score of `label` in `column`: mean over its seeds of each seed's ratio."""
    num, den = column.rows(label)
    seeds = column.seeds(label)
    each = ratios(num, den)
    draws = _draws(column, label, "left")
    estimate = _estimate(draws, (num, den), None, paired=True, n=column.counted(label), level=level)
    low, high, how = estimate.low, estimate.high, estimate.method
    if column.metric.proportion:
        low, high = max(low, 0.0), min(high, 1.0)
        if estimate.se == 0 or (len(seeds) == 1 and column.samples == 1):
            # Resampled equal values have no width; Wilson's interval does.
            low, high = wilson(float(num.sum()) / len(seeds), int(den.sum(axis=1).max()), level)
            how = "Wilson"
    return _replace(estimate, low, high, how, tuple(zip(seeds, map(float, each), strict=True)))


def difference(column: Column, left: str, right: str, level: float = 0.95) -> Estimate:
    """`left - right`, paired per problem, and per seed where both sides have the same seeds.

    A side with one seed (the base model) is held against every seed of the other.
    """
    column = column.paired(left, right)
    (num_l, den_l), (num_r, den_r) = column.rows(left), column.rows(right)
    seeds_l, seeds_r = column.seeds(left), column.seeds(right)
    paired = seeds_l == seeds_r
    if paired or len(seeds_r) == 1 or len(seeds_l) == 1:
        names = seeds_l if len(seeds_l) >= len(seeds_r) else seeds_r
        by_seed = tuple(zip(names, map(float, _each(num_l, den_l, num_r, den_r)), strict=True))
    else:
        by_seed = ()
    either = int(((den_l.sum(axis=0) > 0) | (den_r.sum(axis=0) > 0)).sum())
    draws = _draws(column, left, "left") - _draws(column, right, "left" if paired else "right")
    estimate = _estimate(draws, (num_l, den_l), (num_r, den_r), paired=paired, n=either, level=level)
    low, high, how = estimate.low, estimate.high, estimate.method
    se, problem_variance = estimate.se, estimate.problem_variance
    if column.metric.proportion and (se == 0 or (len(seeds_l) == len(seeds_r) == 1 and column.samples == 1)):
        low, high, se = bonett_price(num_l.mean(axis=0) - num_r.mean(axis=0), level)
        how, problem_variance = "Bonett-Price", se * se
    found = _replace(estimate, low, high, how, by_seed, se, problem_variance)
    return replace(found, answer_variance=_answer_variance(column, left, right), answers=column.samples)


def _answer_variance(column: Column, *labels: str) -> float:
    """Variance of the estimate due to drawing answers, from the spread of each problem's answers.

    With k answers and pass rate m the mean's variance is `m (1 - m) / (k - 1)`, summed over problems and
    seeds and divided by the squares of their numbers.
    """
    if not column.metric.proportion or column.samples < 2:
        return 0.0
    total = 0.0
    for label in labels:
        num, _ = column.rows(label)
        total += float((num * (1 - num)).sum()) / (column.samples - 1) / num.size**2
    return total


def bonett_price(gaps: Array, level: float = 0.95) -> tuple[float, float, float]:
    """Interval of a paired difference of proportions (Bonett and Price 2012, doi:10.3102/1076998611411915).

    Wald's interval after adding one discordant problem of each kind; unlike the bootstrap it keeps a
    width when no problem is discordant.

    Args:
        gaps: [P] per-problem differences in [-1, 1].
        level: two-sided confidence.

    Returns:
        (low, high, standard error).
    """
    n = len(gaps) + 2
    centre = float(gaps.sum()) / n
    se = sqrt(max(float((gaps**2).sum() + 2) / n - centre**2, 0.0) / n)
    half = _Z(0.5 + level / 2) * se
    return max(-1.0, centre - half), min(1.0, centre + half), se


def _each(num_l: Array, den_l: Array, num_r: Array, den_r: Array) -> Array:
    return np.atleast_1d(ratios(num_l, den_l) - ratios(num_r, den_r))


def _influence(num: Array, den: Array) -> Array:
    """[S, P] by how much each problem moves its seed's ratio: (num - ratio den) / sum den."""
    total = den.sum(axis=1, keepdims=True)
    return np.asarray((num - ratios(num, den)[:, None] * den) / np.where(total > 0, total, np.nan))


Side = tuple[Array, Array]
"""(num, den) of one label, [S, P] each."""


def _estimate(draws: Array, one: Side, other: Side | None, *, paired: bool, n: int, level: float) -> Estimate:
    """Value, interval and variance parts (see the module)."""
    left, right = ratios(*one), ratios(*other) if other else None
    value = float(left.mean() - (right.mean() if right is not None else 0.0))
    seeds = max(len(left), len(right) if right is not None else 1)
    if np.isnan(value):  # a seed without a passing answer has no average over passing answers
        return Estimate(value, value, value, value, inf, n, seeds, 0.0, 0.0, (), "nothing counted")
    influence = _influence(*one).mean(axis=0) - (_influence(*other).mean(axis=0) if other else 0.0)
    size = influence.size
    problem = float((influence**2).sum()) * size / max(size - 1, 1)
    seed, df_parts = _seed_variance(left, right, paired)
    mixed = _interaction(one, other, paired) if df_parts else 0.0
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    total, df, how = problem, inf, "bootstrap over problems"
    if df_parts:
        total = max(float(np.nanvar(draws)) + seed / seeds - mixed, problem, seed)
        df = _satterthwaite([*df_parts, (problem, size - 1.0)])
        half = quantile(df, 0.5 + level / 2) * sqrt(total)
        low, high, how = value - half, value + half, "two-level bootstrap over seeds and problems"
    outside = max(total - problem, 0.0)
    return Estimate(value, float(low), float(high), sqrt(total), df, n, seeds, total - outside, outside, (), how)


def _draws(column: Column, label: str, stream: str) -> Array:
    """[draws] resampled scores: problems shared by all labels, seeds by the sides of one stream."""
    key = ("draws", label, stream)
    if key not in column.cache:
        num, den = column.rows(label)
        weights = resamples(num.shape[1], "problems")
        top, below = weights @ num.T, weights @ den.T
        each = np.divide(top, below, out=np.full_like(top, np.nan), where=below > 0)
        shares = resamples(len(num), f"seeds-{stream}") / len(num)
        column.cache[key] = (each * shares).sum(axis=1)
    return np.asarray(column.cache[key])


def _seed_variance(left: Array, right: Array | None, paired: bool) -> tuple[float, list[tuple[float, float]]]:
    """Variance of the mean over seeds, and its (variance, degrees of freedom) parts; empty for one seed."""
    if right is not None and paired:
        left, right = left - right, None
    sides = [side for side in (left, right) if side is not None and len(side) > 1]
    parts = [(float(side.var(ddof=1)) / len(side), float(len(side) - 1)) for side in sides]
    return sum(v for v, _ in parts), parts


def _interaction(one: Side, other: Side | None, paired: bool) -> float:
    """Variance that both the seed and the problem component contain: answers drawn anew for each."""
    tables = [_influence(*one)]
    if other is not None:
        tables = [tables[0] - _influence(*other)] if paired else [*tables, _influence(*other)]
    total = 0.0
    for table in tables:
        seeds, size = table.shape
        if seeds > 1:
            rest = table - table.mean(axis=0)
            # Each entry is already divided by the number of problems; see `_influence`.
            total += float((rest**2).sum()) * size / max(size - 1, 1) / (seeds - 1) / seeds
    return total


def _satterthwaite(parts: list[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of variances, each with its own; inf if all are 0."""
    below = sum(variance**2 / df for variance, df in parts if variance > 0)
    return float(sum(variance for variance, _ in parts)) ** 2 / below if below > 0 else inf


def _replace(
    old: Estimate, low: float, high: float, how: str, by_seed: tuple[tuple[int, float], ...],
    se: float | None = None, problem_variance: float | None = None,
) -> Estimate:  # fmt: skip
    return Estimate(
        old.value, low, high, old.se if se is None else se, old.df, old.n, old.seeds,
        old.problem_variance if problem_variance is None else problem_variance, old.seed_variance, by_seed, how,
    )  # fmt: skip
