"""Numbers that describe the shape of a training curve, and the rank correlation over checkpoints.

Owns the definitions behind the `curve` and `association` claims.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import atanh, ceil, sqrt, tanh
from statistics import NormalDist
from typing import Any

import numpy as np

from onpol_cli.comparison.scores import Array
from onpol_cli.core.seeding import derive_seed

WINDOW = 5
"""Steps within which the largest share of the reward rise is sought."""


def series(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[Array, Array]:
    """(steps, values) of one metric, in step order, absent and non-finite values left out.

    Step -1, the samples of the start that rsft and dpo select from, is none of training.
    """
    pairs = [(row["step"], row[name]) for row in metrics if row.get("step", -1) >= 0 and row.get(name) is not None]
    table = np.asarray(sorted(pairs), dtype=np.float64).reshape(-1, 2)
    table = table[np.isfinite(table).all(axis=1)]
    return table[:, 0], table[:, 1]


def smooth(values: Array, width: int = 3) -> Array:
    """Centred moving average; the ends average what there is."""
    kernel = np.ones(max(1, min(width, len(values))))
    return np.asarray(np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same"))


def end_level(values: Array) -> float:
    """Mean of the last tenth of the curve, at least one step."""
    return float(values[-max(1, len(values) // 10) :].mean())


def half_fall_step(metrics: Sequence[Mapping[str, Any]], name: str = "entropy") -> float | None:
    """Steps after the first until half of the total fall is reached, interpolated between steps.

    Total fall: first value minus mean of the last tenth. None if the curve does not fall or has fewer
    than three steps.
    """
    steps, values = series(metrics, name)
    if len(values) < 3:
        return None
    fall = values[0] - end_level(values)
    if fall <= 0:
        return None
    level = values[0] - fall / 2
    at = int(np.argmax(values <= level))
    share = (values[at - 1] - level) / (values[at - 1] - values[at])
    return float(steps[at - 1] + share * (steps[at] - steps[at - 1]) - steps[0])


def largest_rise_share(
    metrics: Sequence[Mapping[str, Any]], name: str = "reward/mean", window: int = WINDOW
) -> float | None:
    """Largest part of the total rise that falls within `window` steps, of the curve smoothed over 3 steps.

    1 is a jump; `window / steps` is a straight line. None if the curve does not rise or is shorter than
    twice the window.
    """
    steps, values = series(metrics, name)
    if len(values) < 2 * window:
        return None
    values = smooth(values)
    rise = end_level(values) - values[0]
    if rise <= 0:
        return None
    reach = np.searchsorted(steps, steps + window, side="right") - 1
    return float((values[reach] - values).max() / rise)


CURVE_FUNCTIONS = {"entropy-half-step": half_fall_step, "reward-jump": largest_rise_share}


def ranks(values: Array) -> Array:
    """Average ranks along the last axis, ties shared."""
    below = (values[..., None, :] < values[..., :, None]).sum(axis=-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(axis=-1)
    return np.asarray(below + (equal + 1) / 2)


def spearman(x: Array, y: Array) -> Array:
    """Rank correlation along the last axis; nan where either side is constant."""
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(axis=-1, keepdims=True), b - b.mean(axis=-1, keepdims=True)
    scale = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    return np.asarray(np.divide((a * b).sum(axis=-1), scale, out=np.full_like(scale, np.nan), where=scale > 0))


def association(x: Array, y: Array, draws: int = 4000) -> tuple[float, float, float, float, int | None]:
    """(rho, low, high, p, n that would resolve it): Spearman's rank correlation of a few points.

    Interval: Fisher's z with the variance (1 + rho^2 / 2) / (n - 3) (Bonett and Wright 2000, doi:10.1007/BF02294183);
    resampled points would be tied. p: two-sided permutation. n: Fisher's z at 80% power with the variance
    1.06 / (n - 3) of ranks (Fieller, Hartley and Pearson 1957).
    """
    rho = float(spearman(x, y))
    if np.isnan(rho):
        return rho, rho, rho, 1.0, None
    rng = np.random.default_rng(derive_seed(0, "association", len(x)))
    shuffled = rng.permuted(np.broadcast_to(y, (draws, len(y))), axis=1)
    drawn = np.abs(spearman(np.broadcast_to(x, shuffled.shape), shuffled))
    p = float(1 + (drawn >= abs(rho) - 1e-12).sum()) / (1 + draws)
    bounded = min(abs(rho), 0.999)
    half = NormalDist().inv_cdf(0.975) * sqrt((1 + rho**2 / 2) / max(len(x) - 3, 1))
    ends = tanh(atanh(bounded) - half), 1.0 if bounded < abs(rho) else tanh(atanh(bounded) + half)
    low, high = ends if rho >= 0 else (-ends[1], -ends[0])
    z = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)
    return rho, low, high, p, ceil(3 + 1.06 * (z / atanh(bounded)) ** 2) if bounded > 0.01 else None
