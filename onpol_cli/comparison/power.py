"""How many problems, or seeds, would resolve an observed gap.

Normal approximation at 80% power: an estimate at distance d from the bound it must clear is resolved
when `(z_{0.975} + z_{0.8}) se <= d`; of se² the problem part falls as 1/n, the seed part as 1/seeds.
Owns sample sizes; the estimates come from `estimate`.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite
from statistics import NormalDist

from scipy.special import bdtrc

from onpol_cli.comparison.estimate import Estimate

POWER = 0.8
_Z = NormalDist().inv_cdf
_MOST = 10_000_000
"""Beyond this many problems the answer is: not by more data."""


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
    target = (gap / (_Z(1 - alpha / 2) + _Z(power))) ** 2
    problems = _scale(estimate.n, estimate.problem_variance, target - estimate.seed_variance)
    rest = estimate.problem_variance + estimate.seed_variance - estimate.answer_variance
    drawing = estimate.answer_variance
    answers = _scale(estimate.answers, drawing, target - rest) if drawing > 0 else None
    if estimate.seed_variance == 0:
        return Need(problems, None, answers)
    seeds = _scale(estimate.seeds, estimate.seed_variance, target - estimate.problem_variance)
    if problems is None and seeds is None and answers is None:
        whole = estimate.problem_variance + estimate.seed_variance
        return Need(_scale(estimate.n, whole, target), _scale(estimate.seeds, whole, target), together=True)
    return Need(problems, seeds, answers)


def _scale(size: int, variance: float, room: float) -> int | None:
    if room <= 0:
        return None
    wanted = max(ceil(size * variance / room), 1)
    return wanted if wanted <= _MOST else None


def needed_discordant_one_way(gap: float, alpha: float = 0.05, power: float = POWER) -> int | None:
    """Problems needed by exact McNemar if every discordant problem favours the same side.

    With d discordant problems p = 2 * 0.5^d; the smallest d with p < alpha must come up among n
    problems, each discordant with probability `gap`, with probability `power`.
    """
    if gap <= 0:
        return None
    least = next(d for d in range(1, 64) if 2 * 0.5**d < alpha)
    low, high = least, least
    while bdtrc(least - 1, high, gap) < power:
        low, high = high, high * 2
        if high > _MOST:
            return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if bdtrc(least - 1, middle, gap) >= power else (middle + 1, high)
    return low


def needed_independent(a: float, b: float, alpha: float = 0.05, power: float = POWER) -> int | None:
    """Problems needed to separate rates a and b if the two models' answers are independent."""
    if a == b:
        return None
    spread = a * (1 - a) + b * (1 - b)
    wanted = ceil((_Z(1 - alpha / 2) + _Z(power)) ** 2 * spread / (a - b) ** 2)
    return wanted if wanted <= _MOST else None
