"""Coverage of the intervals and false positives of the paired tests, by simulation and exactly."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from onpol_cli.comparison.estimate import difference, score
from onpol_cli.comparison.power import needed
from onpol_cli.comparison.scores import METRICS, Array, Column
from onpol_cli.comparison.significance import compare_pair
from onpol_cli.core.intervals import wilson

RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SIZES = (175, 400)


def column(num: Array, den: Array | None = None, *, seeds: int = 1, metric: str = "pass@1", samples: int = 1) -> Column:
    """Labels a, b, ... of `seeds` rows each."""
    den = np.ones_like(num) if den is None else den
    keys = tuple(("abcd"[row // seeds], row % seeds) for row in range(len(num)))
    names = tuple(map(str, range(num.shape[1])))
    return Column(METRICS[metric], "bench", 1.0, names, keys, num, den, samples)


def test_wilson_covers_exactly() -> None:
    shares = []
    for n in SIZES:
        bounds = [wilson(k, n) for k in range(n + 1)]
        for p in RATES:
            shares.append(sum(binom.pmf(k, n, p) for k, (low, high) in enumerate(bounds) if low <= p <= high))
    assert 0.945 <= np.mean(shares) <= 0.955
    assert min(shares) >= 0.925


def _mean_coverage(rng: np.random.Generator, n: int, p: float, repeats: int, samples: int) -> float:
    hits = 0
    for _ in range(repeats):
        rates = rng.beta(2 * p, 2 * (1 - p), n)
        estimate = score(column(rng.binomial(samples, rates)[None] / samples, samples=samples), "a")
        hits += estimate.low <= p <= estimate.high
    return hits / repeats


def _paired(rng: np.random.Generator, n: int, p: float, repeats: int, samples: int) -> tuple[float, float]:
    """(coverage of the paired interval, false positives of its test) for two equal models."""
    hits = wrong = 0
    for _ in range(repeats):
        rates = rng.beta(2 * p, 2 * (1 - p), n)
        pair = compare_pair(column(rng.binomial(samples, rates, (2, n)) / samples, samples=samples), "a", "b")
        hits += pair.estimate.low <= 0 <= pair.estimate.high
        wrong += pair.p <= 0.05
    return hits / repeats, wrong / repeats


def test_small_simulation() -> None:
    rng = np.random.default_rng(7)
    # 150 repeats: a standard error of 1.8 points, so the bounds are three of them away.
    assert 0.895 <= _mean_coverage(rng, 175, 0.7, 150, 4) <= 0.99
    coverage, wrong = _paired(rng, 175, 0.7, 150, 1)
    assert coverage >= 0.895
    assert wrong <= 0.05 + 3 * 0.018


def test_ratio_metric_small_simulation() -> None:
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(60):
        rates = rng.beta(4, 2, 120)
        passed = (rng.random((2, 120)) < rates).astype(float)
        pair = compare_pair(
            column(rng.gamma(0.5, 0.2, (2, 120)) * passed, passed, metric="excess_levenshtein"), "a", "b"
        )
        wrong += pair.p <= 0.05
    assert wrong / 60 <= 0.05 + 3 * 0.028


def _two_level(rng: np.random.Generator, spread: float, repeats: int) -> float:
    hits = 0
    for _ in range(repeats):
        rates, shifts = rng.beta(2, 2, 200), rng.normal(0, spread, (6, 1))
        num = (rng.random((6, 200)) < np.clip(rates + shifts, 0, 1)).astype(float)
        estimate = difference(column(num, seeds=3), "a", "b")
        hits += estimate.low <= 0 <= estimate.high
    return hits / repeats


def test_two_level_interval_covers_with_three_seeds() -> None:
    rng = np.random.default_rng(11)
    assert _two_level(rng, 0.03, 100) >= 0.95 - 3 * 0.022


def test_more_answers_are_asked_for_only_where_they_help() -> None:
    rng = np.random.default_rng(0)
    # Every problem has the same rate, so all of the variance is that of drawing answers.
    noisy = difference(column(rng.binomial(4, np.full((2, 300), 0.5)) / 4, samples=4), "a", "b")
    assert noisy.answer_variance == pytest.approx(noisy.problem_variance, rel=0.25)
    settled = difference(column(rng.integers(0, 2, (2, 300)).astype(float), samples=4), "a", "b")
    assert settled.answer_variance == 0
    shifted = replace(noisy, value=0.04)
    need = needed(shifted)
    assert need.answers is not None and need.problems is not None
    # n problems at k answers cost as much information as k' answers at the problems at hand.
    assert need.answers * 300 == pytest.approx(need.problems * 4, rel=0.35)
    assert needed(replace(settled, value=0.04)).answers is None


@pytest.mark.full
@pytest.mark.parametrize("samples", [1, 4])
def test_full_simulation(samples: int) -> None:
    rng = np.random.default_rng(2026)
    means = [_mean_coverage(rng, n, p, 2000, samples) for n in SIZES for p in RATES]
    pairs = [_paired(rng, n, p, 2000, samples) for n in SIZES for p in RATES]
    assert 0.945 <= np.mean(means) <= 0.955, means
    assert min(means) >= 0.925, means
    assert min(coverage for coverage, _ in pairs) >= 0.925, pairs
    # On average at most 5%; a single cell may exceed it by simulation error (se 0.5 points).
    assert np.mean([wrong for _, wrong in pairs]) <= 0.05, pairs
    assert max(wrong for _, wrong in pairs) <= 0.065, pairs


@pytest.mark.full
@pytest.mark.parametrize("spread", [0.0, 0.02, 0.06])
def test_full_two_level(spread: float) -> None:
    assert _two_level(np.random.default_rng(5), spread, 2000) >= 0.915
