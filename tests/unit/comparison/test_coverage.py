"""Coverage of the intervals and false positives of the paired tests, by simulation and exactly."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom
from simulate import KINDS, RATES, SIZES, Setting, simulate

from onpol_cli.comparison.estimate import Estimate, difference, expanded_bca, resamples
from onpol_cli.comparison.power import needed
from onpol_cli.comparison.scores import METRICS, Array, Column
from onpol_cli.core.intervals import wilson


def column(num: Array, *, samples: int = 1) -> Column:
    """Labels a and b, one seed each."""
    names = tuple(map(str, range(num.shape[1])))
    return Column(METRICS["pass@1"], "bench", 1.0, names, (("a", 0), ("b", 0)), num, np.ones_like(num), samples)


def test_wilson_covers_exactly() -> None:
    shares = []
    for n in SIZES:
        bounds = [wilson(k, n) for k in range(n + 1)]
        for p in RATES:
            shares.append(sum(binom.pmf(k, n, p) for k, (low, high) in enumerate(bounds) if low <= p <= high))
    assert 0.945 <= np.mean(shares) <= 0.955
    assert min(shares) >= 0.925


@pytest.mark.parametrize(
    "setting",
    [
        Setting(175, 0.7, samples=4),
        Setting(175, 0.1, ratio=True),
        Setting(175, 0.5, seeds=3, spread=0.06),
        Setting(175, 0.5, seeds=2, spread=0.02),
    ],
    ids=str,
)
def test_small_simulation(setting: Setting) -> None:
    found = simulate(setting, 200)
    # 200 repeats: a standard error of 1.5 points, so the bounds are three of them away from 95%.
    assert min(found.score, found.difference) >= 0.905
    assert found.false_positives <= 0.05 + 3 * 0.0155


def test_seeds_of_two_outcomes_are_the_limit_of_three_seeds() -> None:
    # In one of four cases all three seeds come out alike and hide the spread: no interval from them can know of it.
    found = simulate(Setting(400, 0.5, seeds=3, two_outcomes=True), 200)
    assert 0.65 <= found.score <= 0.85


LARGEST_MEAN = {
    # Where seeds make little difference, intervals that allow for them are wider than they need be.
    "three seeds of equal quality": 0.975,
    "three seeds, spread 0.02": 0.97,
    "three seeds, spread 0.06": 0.96,
    "two seeds, spread 0.02": 0.985,
    "five seeds, spread 0.02": 0.97,
    "three seeds, average over passing answers": 0.975,
}


@pytest.mark.full
@pytest.mark.parametrize("name", KINDS)
def test_full_simulation(name: str) -> None:
    cells = [simulate(Setting(n, p, **KINDS[name]), 1000) for n in SIZES for p in RATES]
    largest_mean = LARGEST_MEAN.get(name, 0.955)
    for shares in ([cell.score for cell in cells], [cell.difference for cell in cells]):
        # 20 cells of 1,000: standard errors of 0.7 points a cell, 0.15 the mean.
        assert 0.9435 <= np.mean(shares) <= largest_mean, shares
        assert min(shares) >= 0.915, shares
    wrong = [cell.false_positives for cell in cells]
    assert np.mean(wrong) <= 0.0525, wrong
    assert max(wrong) <= 0.05 + 4 * 0.007, wrong


def test_expanded_bca_reaches_further_where_the_tail_is() -> None:
    values = np.array([0.0] * 15 + [0.1, 0.2, 0.9])
    draws = resamples(18, "problems") @ values / 18
    low, high = expanded_bca(draws, values.mean(), (values - values.mean()) / 18, 18)
    plain = np.quantile(draws, [0.025, 0.975])
    assert high - values.mean() > plain[1] - values.mean() > values.mean() - low > 0
    assert expanded_bca(np.ones(9), 1.0, np.zeros(3), 3) == (1.0, 1.0)


def estimate(problem: float, seed: float, df: float) -> Estimate:
    """0.1 with the given variance parts."""
    return Estimate(0.1, 0, 0, (problem + seed) ** 0.5, df, 100, 3, problem, seed, (), "")


@pytest.mark.parametrize(
    ("parts", "reference"),
    [
        ((0.0025, 0.0, np.inf), 0.022750),  # Phi(-0.1 / 0.05)
        ((0.0, 0.0025, 2.0), 0.091752),  # Student's t, 2 degrees: (1 - 2 / sqrt(6)) / 2
    ],
)
def test_tail_is_the_normal_or_t_where_one_part_is_all(parts: tuple[float, float, float], reference: float) -> None:
    assert estimate(*parts).tail(0.1) == pytest.approx(reference, abs=2e-6)
    assert estimate(*parts).tail(-0.1) == pytest.approx(1 - reference, abs=2e-6)


def test_tail_and_interval_agree() -> None:
    one = estimate(0.001, 0.0004, 2.0)
    for level in (0.5, 0.9, 0.95, 0.999):
        assert one.tail(one.half(level)) == pytest.approx((1 - level) / 2, rel=1e-6)
    # z^2 A + t^2 B by hand: 1.95996^2 * 0.001 + 4.30265^2 * 0.0004
    assert one.half(0.95) == pytest.approx((3.841459 * 0.001 + 18.512821 * 0.0004) ** 0.5, rel=1e-6)


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
