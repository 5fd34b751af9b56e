"""Tests and intervals against statsmodels, scipy and hand-worked numbers."""

from itertools import product

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportions_ztest

from onpol_cli.comparison.counts import count_gap, counts_behind, two_proportions
from onpol_cli.comparison.curves import ranks, spearman
from onpol_cli.comparison.estimate import bonett_price
from onpol_cli.comparison.power import needed_discordant_one_way, needed_independent, needed_seeds
from onpol_cli.comparison.significance import holm, mcnemar, paired_t, permutation, two_sided


@pytest.mark.parametrize(("won", "lost"), [(6, 0), (0, 6), (9, 3), (20, 20), (1, 0), (0, 0), (57, 31)])
def test_mcnemar_is_statsmodels_exact(won: int, lost: int) -> None:
    reference = reference_mcnemar([[5, won], [lost, 7]], exact=True).pvalue if won + lost else 1.0
    assert mcnemar(won, lost) == pytest.approx(min(reference, 1.0), abs=1e-12)


def test_holm_is_statsmodels() -> None:
    p = [0.01, 0.04, 0.03, 0.005, 0.9, 0.04]
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert holm([]) == []


def test_two_proportions_is_statsmodels() -> None:
    assert two_proportions(56, 50, 175) == pytest.approx(proportions_ztest([56, 50], [175, 175])[1])


def test_paired_t_is_scipy() -> None:
    a, b = np.array([0.71, 0.74, 0.69, 0.80]), np.array([0.70, 0.70, 0.70, 0.72])
    reference = scipy_stats.ttest_rel(a, b)
    p, low, high = paired_t(list(a - b))
    assert p == pytest.approx(reference.pvalue)
    assert (low, high) == pytest.approx(tuple(reference.confidence_interval(0.95)))


def test_spearman_and_ranks_are_scipy() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, 20).astype(float), rng.integers(0, 6, 20).astype(float)
    assert ranks(x) == pytest.approx(scipy_stats.rankdata(x))
    assert float(spearman(x, y)) == pytest.approx(scipy_stats.spearmanr(x, y).statistic)


def test_permutation_matches_enumeration() -> None:
    left, right = np.array([[1.0, 0, 1, 1, 0.5, 1, 0, 1]]), np.array([[0.0, 0, 0.5, 1, 0, 0, 1, 0]])
    gaps, ones = (left - right)[0], np.ones((1, 8))
    drawn = [abs(float(np.dot(signs, gaps))) for signs in product((-1, 1), repeat=8)]
    exact = np.mean(np.array(drawn) >= abs(gaps.sum()) - 1e-12)
    assert permutation(left, ones, right, ones) == pytest.approx(exact, abs=0.03)


def test_permutation_of_a_ratio_sees_only_passing_answers() -> None:
    # Left's passing answers have excess 0.5, right's 0.0; each fails on half of the problems.
    passed = np.tile([1.0, 0.0], 20)[None]
    assert permutation(0.5 * passed, passed, 0.0 * passed, passed) < 0.001
    assert permutation(0.5 * passed, passed, 0.5 * passed[:, ::-1], passed[:, ::-1]) == 1.0


def test_bonett_price_by_hand() -> None:
    # n = 10, three won, one lost: centre (3 - 1) / 12, variance ((3 + 1 + 2) / 12 - centre^2) / 12.
    low, high, se = bonett_price(np.array([1.0, 1, 1, -1, 0, 0, 0, 0, 0, 0]))
    assert se == pytest.approx(((6 / 12 - (2 / 12) ** 2) / 12) ** 0.5)
    assert (low, high) == pytest.approx((2 / 12 - 1.959964 * se, 2 / 12 + 1.959964 * se))
    flat_low, flat_high, _ = bonett_price(np.zeros(10))
    assert flat_low < 0 < flat_high, "agreeing everywhere is not certainty"


def test_two_sided_without_spread() -> None:
    assert two_sided(0.0, 0.0, 5) == 1.0
    assert two_sided(0.1, 0.0, 5) == 0.0


def test_published_gap_depends_on_the_overlap() -> None:
    gap = count_gap(56, 50, 175)
    assert gap.p_favourable == pytest.approx(0.03125)
    assert gap.p_independent > 0.4
    assert gap.verdict == "depends on the overlap"
    assert count_gap(57, 31, 175).verdict == "resolved"
    assert count_gap(56, 55, 175).verdict == "not resolved"


def test_counts_behind_rounded_and_cut_rates() -> None:
    assert counts_behind(0.775, 400) == [310]
    assert counts_behind(0.792, 400) == [317]
    assert counts_behind(-0.022, 175) == [-4]
    assert counts_behind(0.001, 175) == []


def test_needed_numbers() -> None:
    # Six one-way discordant problems give p = 0.031; at a rate of 0.1, 78 problems give six with 80%.
    n = needed_discordant_one_way(0.1)
    assert n is not None
    assert scipy_stats.binom.sf(5, n, 0.1) >= 0.8 > scipy_stats.binom.sf(5, n - 1, 0.1)
    # Textbook: 0.5 against 0.6 at 80% power, two-sided 5%, about 385 a side.
    assert needed_independent(0.5, 0.6) == pytest.approx(385, abs=3)
    assert needed_independent(0.5, 0.5) is None
    assert needed_discordant_one_way(0.0) is None


def test_seeds_needed_use_students_t() -> None:
    # sd 1.48: 5 seeds reach (2.776 + 0.842) 1.48 / sqrt(5) = 2.395, 6 seeds (2.571 + 0.842) 1.48 / sqrt(6) = 2.062.
    assert needed_seeds(2.3, 0.0, 1.48**2) == 6
    assert needed_seeds(10.0, 0.0, 0.01) == 2
    assert needed_seeds(1.0, 1.0, 0.1) is None, "problems alone are too noisy"
