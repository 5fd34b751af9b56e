"""How many problems, or seeds, would resolve an observed gap.

Normal approximation at 80% power: an estimate at distance d from the bound it must clear is resolved
when `sqrt(z^2 A + t^2 B) + z_{0.8} sqrt(A + B) <= d` (`estimate`'s interval): the problem part A falls as 1/n,
the seed part B as 1/seeds, and t has one degree less than seeds. Owns sample sizes; estimates come from `estimate`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, isfinite, sqrt
from statistics import NormalDist

from scipy.special import bdtrc

from onpol_cli.comparison.estimate import Estimate, quantile

POWER = 0.8
_Z = NormalDist().inv_cdf
_MOST = 10_000_000
"""Beyond this many problems the answer is: not by more data."""


MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Need:
    """Sizes that would resolve the gap.

    Attributes:
        problems, seeds, answers: enough alone, the others staying as they are (answers: per problem); None
            where that alone does not help or cannot be told.
        together: both are needed at once (neither alone would do).
    """

    problems: int | None = None
    seeds: int | None = None
    answers: int | None = None
    together: bool = False


def needed(estimate: Estimate, bound: float = 0.0, alpha: float = 0.05, power: float = POWER) -> Need:
    """Problems, seeds, or answers a problem that would separate the value from `bound`."""
    gap = abs(estimate.value - bound)
    if gap == 0 or not isfinite(gap):
        return Need()
    a, b, df = estimate.problem_variance, estimate.seed_variance, estimate.df

    def enough(problem_variance: float, seed_variance: float, df: float = df) -> bool:
        return _clears(gap, problem_variance, seed_variance, df, alpha, power)

    problems = _least(lambda n: enough(a * estimate.n / n, b), 1, _MOST)
    drawing = estimate.answer_variance
    answers = None
    if drawing > 0:
        answers = _least(lambda k: enough(max(a - drawing, 0.0) + drawing * estimate.answers / k, b), 1, _MOST)
    if b == 0:
        return Need(problems, None, answers)
    seeds = needed_seeds(gap, a, b * estimate.seeds, alpha, power)
    if problems is None and seeds is None and answers is None:
        ratio, most = estimate.seeds / max(estimate.n, 1), _MOST
        both = _least(lambda n: enough(a * estimate.n / n, b * estimate.n / n, n * ratio - 1), estimate.n, most)
        return Need(both, None if both is None else ceil(both * ratio), together=True)
    return Need(problems, seeds, answers)


def needed_seeds(gap: float, fixed: float, per_seed: float, alpha: float = 0.05, power: float = POWER) -> int | None:
    """Seeds that separate a value from a bound at distance `gap`; None if more seeds do not help.

    Args:
        fixed: variance that seeds do not touch; `per_seed` the variance of a single seed's score.
    """
    return _least(lambda s: _clears(gap, fixed, per_seed / s, s - 1.0, alpha, power), 2, MOST_SEEDS)


def _clears(gap: float, problems: float, seeds: float, df: float, alpha: float, power: float) -> bool:
    t = quantile(df, 1 - alpha / 2)
    return sqrt(_Z(1 - alpha / 2) ** 2 * problems + t * t * seeds) + _Z(power) * sqrt(problems + seeds) <= gap


def _least(enough: Callable[[int], bool], low: int, high: int) -> int | None:
    """The smallest number that is enough, None if `high` is not."""
    if high < low or not enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def needed_discordant_one_way(gap: float, alpha: float = 0.05, power: float = POWER) -> int | None:
    """Problems needed by exact McNemar if every discordant problem favours the same side.

    With d discordant problems p = 2 * 0.5^d; the smallest d with p < alpha must come up among n
    problems, each discordant with probability `gap`, with probability `power`.
    """
    if gap <= 0:
        return None
    least = next(d for d in range(1, 64) if 2 * 0.5**d < alpha)
    return _least(lambda n: bdtrc(least - 1, n, gap) >= power, least, _MOST)


def needed_independent(a: float, b: float, alpha: float = 0.05, power: float = POWER) -> int | None:
    """Problems needed to separate rates a and b if the two models' answers are independent."""
    if a == b:
        return None
    spread = a * (1 - a) + b * (1 - b)
    wanted = ceil((_Z(1 - alpha / 2) + _Z(power)) ** 2 * spread / (a - b) ** 2)
    return wanted if wanted <= _MOST else None
