"""Estimates with intervals: one score, and the paired difference of two, over problems and seeds.

A claim about a checkpoint resamples problems: percentile bootstrap. An average over passing answers, which
may be few and skewed, takes expanded BCa percentiles instead (Efron 1987, doi:10.2307/2289144; Hesterberg
2015, doi:10.1080/00031305.2015.1089789), the difference of two of them Student's t (simulated at 175
problems of which 10% pass: plain percentiles cover 86%, these 95%). A claim about a method (several seeds)
resamples seeds and problems. The two-level bootstrap's variance, plus the `V_seed / S` by which S resampled
seeds fall short, is split into what problems explain, A, and what only seeds do, B; the interval is
`value -+ sqrt(z^2 A + t^2 B)` with Student's t of S - 1 degrees (Howe 1974, doi:10.1080/01621459.1974.10482997):
three seeds have no tails to resample and no reliable variance. Simulated coverage: docs/statistics.md.
Owns estimates and intervals; p-values live in `significance`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf, sqrt
from statistics import NormalDist

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from onpol_cli.comparison.scores import Array, Column
from onpol_cli.core.intervals import wilson
from onpol_cli.core.seeding import derive_seed

DRAWS = 4000
"""Bootstrap resamples. The Monte Carlo error of a 95% bound is about 0.02 standard errors."""
KEPT = 0.25
"""How much of the seed-by-problem noise a score's seed part leaves to the problems (which take twice that).

Differences leave nothing, so that their tests never exceed 5%; by simulation scores cover 95.5% from no to
overwhelming seed variance with this, 96.5% without."""
_SMALLEST = 1e-30
"""Tails below this are all the same to a reader."""
_Z = NormalDist().inv_cdf


@dataclass(frozen=True)
class Estimate:
    """A score or a difference.

    Attributes:
        value, low, high: estimate and its interval, in the metric's unit.
        se: standard error; `df` degrees of freedom of its seed part (inf for one seed).
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

    def half(self, level: float) -> float:
        """Half the width of the interval by variance parts (see the module)."""
        return self._reach((1 - level) / 2)

    def bounds(self, level: float) -> tuple[float, float]:
        """The interval at another level, around the estimate (for one-sided tests)."""
        return self.value - self.half(level), self.value + self.half(level)

    def tail(self, gap: float) -> float:
        """One-sided p of a true distance of 0 or less where `gap` was observed: the level whose interval ends at 0."""
        if self.se == 0:
            return 0.0 if gap > 0 else 1.0
        low, high = _SMALLEST, 0.5
        for _ in range(60):  # bisection of the tail's logarithm
            middle = sqrt(low * high)
            low, high = (middle, high) if self._reach(middle) > abs(gap) else (low, middle)
        return high if gap > 0 else 1 - high

    def _reach(self, tail: float) -> float:
        z, t = quantile(inf, 1 - tail, tail), quantile(self.df, 1 - tail, tail)
        return sqrt(z * z * self.problem_variance + t * t * self.seed_variance)


def quantile(df: float, share: float, tail: float | None = None) -> float:
    """Quantile of Student's t with `df` degrees of freedom, of the normal if df is infinite.

    Args:
        share: probability below; `tail`, if given, is 1 - share exactly (for shares that round to 1).
    """
    tail = 1 - share if tail is None else tail
    return -float(ndtri(tail) if df == inf else stdtrit(df, tail))


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
    skewed = not column.metric.proportion
    estimate = _estimate(draws, (num, den), None, paired=True, n=column.counted(label), level=level, skewed=skewed)
    low, high, how = estimate.low, estimate.high, estimate.method
    if column.metric.proportion:
        low, high = max(low, 0.0), min(high, 1.0)
        if estimate.se == 0 or (len(seeds) == 1 and column.samples == 1):
            # Resampled equal values have no width; Wilson's interval does.
            low, high = wilson(float(num.sum()) / len(seeds), int(den.sum(axis=1).max()), level)
            how = "Wilson"
    by_seed = tuple(zip(seeds, map(float, each), strict=True))
    return replace(estimate, low=low, high=high, method=how, by_seed=by_seed)


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
    skewed = not column.metric.proportion
    estimate = _estimate(draws, (num_l, den_l), (num_r, den_r), paired=paired, n=either, level=level, skewed=skewed)
    if column.metric.proportion and (estimate.se == 0 or (len(seeds_l) == len(seeds_r) == 1 and column.samples == 1)):
        low, high, se = bonett_price(num_l.mean(axis=0) - num_r.mean(axis=0), level)
        estimate = replace(estimate, low=low, high=high, se=se, problem_variance=se * se, method="Bonett-Price")
    noise = _answer_variance(column, left, right)
    return replace(estimate, by_seed=by_seed, answer_variance=noise, answers=column.samples)


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


def _estimate(
    draws: Array, one: Side, other: Side | None, *, paired: bool, n: int, level: float, skewed: bool
) -> Estimate:
    """Value, interval and variance parts (see the module); `skewed`: an average over passing answers."""
    left, right = ratios(*one), ratios(*other) if other else None
    value = float(left.mean() - (right.mean() if right is not None else 0.0))
    seeds = max(len(left), len(right) if right is not None else 1)
    if np.isnan(value):  # a seed without a passing answer has no average over passing answers
        return Estimate(value, value, value, value, inf, n, seeds, 0.0, 0.0, (), "nothing counted")
    influence = _influence(*one).mean(axis=0) - (_influence(*other).mean(axis=0) if other else 0.0)
    problem = float((influence**2).sum()) * n / max(n - 1, 1)
    seed, df = _seed_variance(left, right, paired)
    mixed = _interaction(one, other, paired) if seed > 0 else 0.0
    low, high = np.nanquantile(draws, [(1 - level) / 2, (1 + level) / 2])
    how = "bootstrap over problems"
    if skewed and n > 1 and other:
        half = quantile(n - 1, 0.5 + level / 2) * sqrt(problem)
        low, high, how = value - half, value + half, "t over problems"
    elif skewed and n > 1:
        low, high = expanded_bca(draws, value, influence, n, level)
        how = "BCa bootstrap over problems"
    found = Estimate(value, float(low), float(high), sqrt(problem), inf, n, seeds, problem, 0.0, (), how)
    if not seed > 0:
        return found
    return _over_seeds(found, draws, seed, mixed, df, level, KEPT if other is None and seeds > 2 else 0.0)


def _over_seeds(
    one: Estimate, draws: Array, seed: float, mixed: float, df: float, level: float, kept: float
) -> Estimate:
    """`one` with the interval over seeds and problems.

    Args:
        seed: variance of the mean over seeds; `mixed` the part of it that `one.problem_variance` contains too.
        kept: see `KEPT`; 0 with two seeds, whose t is too wide to share anything.
    """
    # Resampled seeds lack V_seed / S, and count the interaction again for every seed but one.
    whole = float(np.nanvar(draws)) + seed / one.seeds - mixed * (one.seeds - 1) / one.seeds
    problems = max(one.problem_variance - (1 - 2 * kept) * mixed, 0.0)
    outside = max(whole - one.problem_variance - kept * mixed, 0.0)
    parts = replace(
        one, se=sqrt(problems + outside), df=df, problem_variance=problems, seed_variance=outside,
        method="two-level bootstrap over seeds and problems",
    )  # fmt: skip
    low, high = parts.bounds(level)
    return replace(parts, low=low, high=high)


def _draws(column: Column, label: str, stream: str) -> Array:
    """[draws] resampled scores: problems shared by all labels, seeds by the sides of one stream."""
    if "draws" not in column.cache:  # one product for all rows of the column
        weights = resamples(column.num.shape[1], "problems")
        top, below = weights @ column.num.T, weights @ column.den.T
        column.cache["draws"] = np.divide(top, below, out=np.full_like(top, np.nan), where=below > 0)
    pick = [row for row, (name, _) in enumerate(column.keys) if name == label]
    each = column.cache["draws"][:, pick]
    if len(pick) == 1:
        return np.asarray(each[:, 0])
    return np.asarray((each * (resamples(len(pick), f"seeds-{stream}") / len(pick))).sum(axis=1))


def expanded_bca(draws: Array, value: float, influence: Array, n: int, level: float = 0.95) -> tuple[float, float]:
    """Bias-corrected and accelerated percentiles, taken as far out as Student's t with n - 1 degrees asks.

    Percentile of a bound at `s = -+z`: `Phi(z0 + (z0 + s) / (1 - a (z0 + s)))`; z0 from the share of `draws` below
    `value`, `a = sum I^3 / (6 (sum I^2)^1.5)`, `z = sqrt(n / (n - 1)) t`.

    Args:
        draws: resampled values.
        value: the estimate.
        influence: [P] of each problem.
        n: problems that count.
    """
    spread = float((influence**2).sum())
    if spread == 0:
        return value, value
    below = float(np.nanmean(draws < value) + np.nanmean(draws == value) / 2)
    shift = _Z(min(max(below, 1e-4), 1 - 1e-4))
    bend = float((influence**3).sum()) / (6 * spread**1.5)
    z = sqrt(n / (n - 1)) * quantile(n - 1, 0.5 + level / 2)
    # A denominator at 0 means that the bound is the largest draw.
    moved = [shift + (shift + s) / max(1 - bend * (shift + s), 1e-6) for s in (-z, z)]
    low, high = np.nanquantile(draws, ndtr(moved))
    return float(low), float(high)


def _seed_variance(left: Array, right: Array | None, paired: bool) -> tuple[float, float]:
    """Variance of the mean over seeds and its degrees of freedom (of the side with fewer seeds); 0, inf for one."""
    if right is not None and paired:
        left, right = left - right, None
    sides = [side for side in (left, right) if side is not None and len(side) > 1]
    return sum(float(side.var(ddof=1)) / len(side) for side in sides), min((len(s) - 1.0 for s in sides), default=inf)


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
