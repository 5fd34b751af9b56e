"""Tests: exact McNemar, paired permutation, paired t over seeds, Holm.

Owns p-values. All are two-sided unless their name says otherwise. Exact McNemar applies only to one
answer a problem and one seed; otherwise problems are permuted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, sqrt

import numpy as np
from scipy.special import bdtr, stdtr

from onpol_cli.comparison.estimate import Estimate, difference, quantile, ratios
from onpol_cli.comparison.scores import Array, Column
from onpol_cli.core.seeding import derive_seed

PERMUTATIONS = 4999
"""Random sign patterns; the smallest p-value is 2e-4."""


@dataclass(frozen=True)
class Paired:
    """A paired difference with everything that is printed beside it.

    Attributes:
        estimate: left minus right.
        p: the p-value that the table corrects: over problems for one seed, over seeds and problems
            otherwise.
        test: its name.
        p_problems: test over problems only (says something about these checkpoints).
        p_seeds, low_seeds, high_seeds: paired t over seed means, None with fewer than two seeds.
        won, lost: problems where left's mean is above, below right's.
    """

    metric: str
    bench: str
    temperature: float
    left: str
    right: str
    estimate: Estimate
    p: float
    test: str
    p_problems: float
    p_seeds: float | None
    low_seeds: float | None
    high_seeds: float | None
    won: int
    lost: int


def compare_pair(column: Column, left: str, right: str) -> Paired:
    """The full comparison of two labels in one column (kept in the column's cache)."""
    key = ("pair", left, right)
    if key not in column.cache:
        column.cache[key] = _compare_pair(column, left, right)
    found: Paired = column.cache[key]
    return found


def _compare_pair(column: Column, left: str, right: str) -> Paired:
    estimate = difference(column, left, right)
    usable = column.paired(left, right)
    (num_l, den_l), (num_r, den_r) = usable.rows(left), usable.rows(right)
    gaps = _gaps(num_l, den_l, num_r, den_r)
    won, lost = int((gaps > 0).sum()), int((gaps < 0).sum())
    if column.metric.proportion and column.samples == 1 and len(num_l) == len(num_r) == 1:
        over_problems, test = mcnemar(won, lost), "exact McNemar"
    else:
        over_problems, test = permutation(num_l, den_l, num_r, den_r), "paired permutation"
    values = [value for _, value in estimate.by_seed]
    p_seeds, low, high = paired_t(values) if len(values) > 1 else (None, None, None)
    p = over_problems
    if estimate.df != inf:
        p, test = 2 * estimate.tail(abs(estimate.value)), "seeds and problems"
    return Paired(
        column.metric.name, column.bench, column.temperature, left, right,
        estimate, p, test, over_problems, p_seeds, low, high, won, lost,
    )  # fmt: skip


def _gaps(num_l: Array, den_l: Array, num_r: Array, den_r: Array) -> Array:
    """[P] per-problem difference of means; 0 where either side has no value."""
    sides = []
    for num, den in ((num_l, den_l), (num_r, den_r)):
        top, below = num.sum(axis=0), den.sum(axis=0)
        sides.append(np.divide(top, below, out=np.full_like(top, np.nan), where=below > 0))
    return np.asarray(np.nan_to_num(sides[0] - sides[1]))


def mcnemar(won: int, lost: int) -> float:
    """Exact McNemar: two-sided binomial test of `won` among `won + lost` discordant problems at 1/2."""
    n = won + lost
    return min(1.0, 2.0 * float(bdtr(min(won, lost), n, 0.5))) if n else 1.0


@lru_cache(maxsize=8)
def _signs(size: int, draws: int) -> Array:
    rng = np.random.default_rng(derive_seed(0, "permutation", size))
    return np.asarray(rng.integers(0, 2, size=(draws, size), dtype=np.int8) * 2 - 1, dtype=np.float64)


def permutation(num_l: Array, den_l: Array, num_r: Array, den_r: Array, draws: int = PERMUTATIONS) -> float:
    """Paired permutation test: the two sides of each problem are swapped at random, all seeds together.

    Statistic: difference of the pooled ratios. `p = (1 + #{|T*| >= |T|}) / (1 + draws)`, never 0
    (Phipson and Smyth 2010, doi:10.2202/1544-6115.1585).
    """
    num_l, den_l, num_r, den_r = (side.mean(axis=0) for side in (num_l, den_l, num_r, den_r))
    observed = abs(float(ratios(num_l, den_l) - ratios(num_r, den_r)))
    if np.isnan(observed):
        return 1.0
    swings = _signs(num_l.size, draws) @ np.stack([num_l - num_r, den_l - den_r], axis=1) / 2
    swing_num, swing_den = swings[:, 0], swings[:, 1]
    half_num, half_den = (num_l + num_r).sum() / 2, (den_l + den_r).sum() / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        left, right = (half_num + swing_num) / (half_den + swing_den), (half_num - swing_num) / (half_den - swing_den)
    drawn = np.abs(left - right)
    # Sums in another order differ in the last bits: an equal statistic must count as equal.
    return float(1 + (np.nan_to_num(drawn, nan=inf) >= observed - 1e-12).sum()) / (1 + draws)


def paired_t(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """(p, low, high) of the mean of per-seed differences, Student's t with S - 1 degrees of freedom."""
    data = np.asarray(values, dtype=np.float64)
    mean, se, df = float(data.mean()), float(data.std(ddof=1)) / sqrt(len(data)), len(data) - 1
    half = quantile(df, 0.5 + level / 2) * se
    return two_sided(mean, se, df), mean - half, mean + half


def two_sided(value: float, se: float, df: float) -> float:
    """p of `value / se` under Student's t."""
    if se == 0:
        return 1.0 if value == 0 else 0.0
    return min(1.0, 2.0 * upper_tail(abs(value) / se, df))


def upper_tail(t: float, df: float) -> float:
    """P(T > t) for Student's t; the normal when df is infinite."""
    return float(stdtr(1e9 if df == inf else df, -t))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Holm 1979), in the given order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[i] = running
    return adjusted
