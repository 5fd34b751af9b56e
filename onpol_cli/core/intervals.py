"""Confidence intervals of one score: a proportion (Wilson) or a mean (bootstrap).

Owns the two interval formulas that both evaluation and comparison print beside a score. Does not own
paired differences, claims or tables (`onpol_cli.comparison`). Numbers are unitless; `level` is the
two-sided confidence, 0.95 by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np

Interval = tuple[float, float]
"""(low, high)."""

_BLOCK = 4_000_000
"""Resampled values held at once by the bootstrap (32 MB of indices)."""


def _check_level(level: float) -> None:
    assert 0.0 < level < 1.0, f"a confidence level lies in (0, 1), got {level}"


def wilson(k: float, n: int, level: float = 0.95) -> Interval:
    """Score interval of a proportion `k / n` (Wilson 1927, doi:10.1080/01621459.1927.10502953).

    `(p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)` with `p = k/n` and `z` the normal quantile.
    Unlike the textbook interval it stays inside [0, 1] and is not empty at 0 or n successes.

    Args:
        k: successes. May be fractional: the sum of per-problem pass rates when problems have several
            samples; the interval then treats problems, not samples, as the unit (conservative).
        n: trials (problems). 0 gives (0, 1): nothing is known.
        level: two-sided confidence.

    Returns:
        (low, high) in [0, 1].
    """
    _check_level(level)
    assert n >= 0 and 0 <= k <= n + 1e-9, f"successes must lie in [0, n], got k={k}, n={n}"
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    p = min(k / n, 1.0)
    centre = p + z * z / (2 * n)
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At k = 0 and k = n one bound is exactly 0 or 1; rounding must not push it outside.
    low = 0.0 if k == 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if k >= n else min(1.0, (centre + half) / scale)
    return low, high


def bootstrap_mean(values: Sequence[float], seed: int = 0, level: float = 0.95, draws: int = 10_000) -> Interval:
    """Percentile bootstrap interval of the mean of `values` (Efron 1979, doi:10.1214/aos/1176344552).

    Args:
        values: one number per problem (resampled with replacement as whole problems).
        seed: of the resampling; the same seed and values give the same interval.
        level: two-sided confidence.
        draws: resamples.

    Returns:
        (low, high); (nan, nan) for no values, and a point for a single one.
    """
    return bootstrap_ratio(values, [1.0] * len(values), seed, level, draws)


def bootstrap_ratio(
    sums: Sequence[float], counts: Sequence[float], seed: int = 0, level: float = 0.95, draws: int = 10_000
) -> Interval:
    """Percentile bootstrap interval of `sum(sums) / sum(counts)`, resampling problems.

    For averages over answers of which a problem has any number, such as the passing ones.

    Args:
        sums: per problem, the sum over its counted answers.
        counts: per problem, how many answers count; problems with 0 still take part in the resampling.
        seed: of the resampling.
        level: two-sided confidence.
        draws: resamples; those without a counted answer are left out.

    Returns:
        (low, high); (nan, nan) if nothing counts.
    """
    _check_level(level)
    assert len(sums) == len(counts), "one count per sum"
    top, bottom = (np.asarray(x, dtype=np.float64) for x in (sums, counts))
    n = top.size
    if not bottom.any():
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // n)
    ratios = []
    for start in range(0, draws, block):
        picks = rng.integers(0, n, size=(min(block, draws - start), n))
        weight = bottom[picks].sum(axis=1)
        ratios.append(top[picks].sum(axis=1)[weight > 0] / weight[weight > 0])
    low, high = np.quantile(np.concatenate(ratios), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
