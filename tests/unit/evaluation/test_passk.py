"""pass@k against the definition and against brute force."""

import itertools
import math

import pytest

from onpol_cli.evaluation.passk import avg_at_k, pass_at_k, reported_k


def brute(n: int, c: int, k: int) -> float:
    """Share of the k-subsets of n answers, c of them right, that hold a right one."""
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    return sum(any(draw) for draw in draws) / len(draws)


@pytest.mark.parametrize("n", [1, 3, 7])
def test_equals_counting_all_draws(n):
    for c in range(n + 1):
        for k in range(1, n + 1):
            assert pass_at_k(n, c, k) == pytest.approx(brute(n, c, k), abs=1e-12)


def test_hand_worked():
    # 1 - C(3, 2) / C(5, 2) = 1 - 3/10
    assert pass_at_k(5, 2, 2) == pytest.approx(0.7)
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)


def test_large_n_does_not_overflow():
    exact = 1 - math.comb(900, 100) / math.comb(1000, 100)
    assert pass_at_k(1000, 100, 100) == pytest.approx(exact, rel=1e-9)


def test_reported_k_needs_enough_answers_everywhere():
    assert reported_k([10, 5, 8]) == [1, 2, 4, 5]
    assert reported_k([1]) == [1]
    assert reported_k([]) == []


def test_avg_at_k_takes_the_first_k():
    assert avg_at_k([True, False, True, True], 2) == 0.5
    assert avg_at_k([True, False, True, True], 4) == 0.75
