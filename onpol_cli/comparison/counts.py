"""What a table of bare counts resolves: two scores on the same n problems, pairing unknown.

Without per-problem records the paired p-value lies somewhere between two readings: the most favourable
overlap (every discordant problem favours the better model, so their number is the difference) and
independence (as if other problems had been used). A gap is resolved only if both agree.
Owns this reasoning for counts and for bounded means; `paper` feeds the published tables in.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from onpol_cli.comparison.power import needed_discordant_one_way, needed_independent
from onpol_cli.comparison.significance import mcnemar, two_sided
from onpol_cli.core.intervals import Interval, wilson

ALPHA = 0.05


@dataclass(frozen=True)
class CountGap:
    """Two counts of passes on the same n problems, without the pairing.

    Attributes:
        p_favourable: exact McNemar if all discordant problems favour the better side.
        p_independent: pooled two-proportion z test.
        verdict: resolved | not resolved | depends on the overlap.
        n_favourable, n_independent: problems for 80% power at this gap under either reading.
    """

    left: int
    right: int
    n: int
    p_favourable: float
    p_independent: float
    verdict: str
    n_favourable: int | None
    n_independent: int | None

    @property
    def gap(self) -> float:
        """left minus right as a rate."""
        return (self.left - self.right) / self.n


def count_gap(left: int, right: int, n: int) -> CountGap:
    """What `left` against `right` passes of the same `n` problems can show."""
    assert 0 <= left <= n and 0 <= right <= n, f"counts must lie in [0, {n}], got {left} and {right}"
    gap = abs(left - right)
    favourable, independent = mcnemar(gap, 0), two_proportions(left, right, n)
    significant = (favourable < ALPHA, independent < ALPHA)
    verdict = {2: "resolved", 0: "not resolved"}.get(sum(significant), "depends on the overlap")
    return CountGap(
        left, right, n, favourable, independent, verdict,
        needed_discordant_one_way(gap / n), needed_independent(left / n, right / n),
    )  # fmt: skip


def two_proportions(left: int, right: int, n: int) -> float:
    """Two-sided p of the pooled two-proportion z test, n problems a side."""
    pooled = (left + right) / (2 * n)
    return two_sided((left - right) / n, sqrt(2 * pooled * (1 - pooled) / n), float("inf"))


def interval(count: int, n: int) -> Interval:
    """Wilson's 95% interval of a rate."""
    return wilson(count, n)


def counts_behind(rate: float, n: int, digits: int = 3) -> list[int]:
    """Whole numbers k for which k/n is printed as `rate`, rounded or cut to `digits`; [] if there is none."""
    unit = 10.0**-digits
    start = int(rate * n)
    near = range(start - 2, start + 3)
    slack = 1e-9
    return [k for k in near if abs(k / n - rate) <= unit / 2 + slack or 0 <= abs(k / n) - abs(rate) < unit - slack]


def bounded_mean_gap(left: float, n_left: int, right: float, n_right: int) -> float:
    """p of a difference of means of numbers in [-1, 1] whatever their spread (independent sides).

    The variance of such a number with mean m is at most `(1 - m)(1 + m)` (Bhatia and Davis 2000), so this
    p is the largest that the unpublished spread allows: a small one settles the gap.
    """
    largest = (1 - left * left) / n_left + (1 - right * right) / n_right
    return two_sided(left - right, sqrt(largest), float("inf"))
