"""pass@k and avg@k from counts of right answers per problem.

Owns the two estimators. Intervals are `core.intervals`, tables are `comparison`.
"""

from __future__ import annotations

from collections.abc import Sequence

K_VALUES = (1, 2, 4, 5, 8, 10, 16, 20, 32, 40, 50, 64, 75, 100, 128, 150, 200, 256, 500, 1000)
"""Values of k that are reported, as far as every problem has that many answers."""


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of `k` answers passes.

    `1 - C(n-c, k) / C(n, k)`, as a product so that large n do not overflow:
    `1 - prod_{i=n-c+1..n} (1 - k/i)` (Chen et al. 2021, arXiv:2107.03374, section 2.1).

    Args:
        n: answers of the problem.
        c: those that pass, 0 <= c <= n.
        k: 1 <= k <= n.

    Returns:
        Probability in [0, 1].
    """
    assert 0 <= c <= n and 1 <= k <= n, f"need 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}"
    if n - c < k:
        return 1.0
    miss = 1.0
    for i in range(n - c + 1, n + 1):
        miss *= 1.0 - k / i
    return 1.0 - miss


def reported_k(counts: Sequence[int]) -> list[int]:
    """The k for which every problem has enough answers.

    Args:
        counts: answers of each problem.
    """
    least = min(counts, default=0)
    return [k for k in K_VALUES if k <= least]


def avg_at_k(passed: Sequence[bool], k: int) -> float:
    """Mean pass rate of a problem's first `k` answers (in sample order)."""
    assert 1 <= k <= len(passed), f"need 1 <= k <= {len(passed)}, got {k}"
    return sum(passed[:k]) / k
