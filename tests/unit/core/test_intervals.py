"""Intervals against published and hand-worked numbers."""

import math

import numpy as np
import pytest

from onpol_cli.core.intervals import bootstrap_mean, bootstrap_ratio, wilson


def test_wilson_matches_statsmodels_figures():
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    for k, n in [(1, 10), (57, 175), (309, 400), (399, 400)]:
        expected = proportion.proportion_confint(k, n, method="wilson")
        assert wilson(k, n) == pytest.approx(expected, abs=1e-12)


def test_wilson_hand_worked():
    # p = 1/2, n = 4, z = 1.959964: centre 0.5, half = z*sqrt(1/16 + z²/64)/(1+z²/4) = 0.349961
    low, high = wilson(2, 4)
    assert (low, high) == pytest.approx((0.150039, 0.849961), abs=1e-6)


def test_wilson_stays_in_the_unit_interval_at_the_edges():
    assert wilson(0, 20)[0] == 0.0 and 0.1 < wilson(0, 20)[1] < 0.2
    assert wilson(20, 20)[1] == 1.0 and 0.8 < wilson(20, 20)[0] < 0.9
    assert wilson(0, 0) == (0.0, 1.0)


def test_wilson_widens_with_the_level():
    assert wilson(5, 10, level=0.99)[0] < wilson(5, 10, level=0.9)[0]


def test_bootstrap_is_seeded_and_brackets_the_mean():
    values = list(np.linspace(0, 1, 50))
    low, high = bootstrap_mean(values, seed=3)
    assert (low, high) == bootstrap_mean(values, seed=3)
    assert (low, high) != bootstrap_mean(values, seed=4)
    assert low < 0.5 < high
    # Normal theory: 1.96 * sd / sqrt(n) = 1.96 * 0.2945 / sqrt(50) = 0.0816.
    assert high - low == pytest.approx(2 * 0.0816, rel=0.1)


def test_bootstrap_of_constants_is_a_point_and_of_nothing_is_nan():
    assert bootstrap_mean([0.25] * 7) == (0.25, 0.25)
    assert bootstrap_mean([0.5]) == (0.5, 0.5)
    assert all(math.isnan(x) for x in bootstrap_mean([]))


def test_bootstrap_ratio_of_equal_counts_is_the_bootstrap_of_the_mean():
    values = [0.1, 0.7, 0.4, 0.9]
    assert bootstrap_ratio([2 * v for v in values], [2] * 4, seed=1) == pytest.approx(bootstrap_mean(values, seed=1))


def test_bootstrap_ratio_with_uncounted_problems():
    low, high = bootstrap_ratio([0.0, 3.0, 1.0, 0.0], [0, 3, 1, 0], seed=1)
    assert (low, high) == (1.0, 1.0)
    assert math.isnan(bootstrap_ratio([0.0], [0])[0])
