"""Simulated evaluations with known true scores, and how often the intervals of the tables contain them.

Each cell draws `repeats` pairs of equally good models, asks `score` and `compare_pair` exactly as the tables do,
and counts. Problems differ in difficulty: pass rates are Beta(2p, 2(1-p)) with mean p.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from onpol_cli.comparison.estimate import score
from onpol_cli.comparison.scores import METRICS, Array, Column
from onpol_cli.comparison.significance import compare_pair

RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SIZES = (175, 400)
BATCH = 100
"""Pairs of models in one column: their resampled scores are one matrix product."""
MEAN_EXCESS = 0.1


@dataclass(frozen=True)
class Setting:
    """One cell of the simulation.

    Attributes:
        n: problems; `p` the true pass rate, `samples` the answers a problem, `seeds` the training seeds.
        spread: standard deviation of a training seed's true score, cut to two thirds of the room that a rate leaves
            (2/3 p (1 - p)): more of it would be seeds that are either of two things, for which see `two_outcomes`.
        ratio: the metric is an average over passing answers (skewed, mean 0.1) instead of Pass@1.
        two_outcomes: a seed's score is the highest or the lowest that there is room for; `spread` plays no part.
    """

    n: int
    p: float
    samples: int = 1
    seeds: int = 1
    spread: float = 0.0
    ratio: bool = False
    two_outcomes: bool = False

    @property
    def truth(self) -> float:
        """The score that every model's interval should contain."""
        return MEAN_EXCESS if self.ratio else self.p


KINDS: dict[str, dict[str, Any]] = {
    "one seed, one answer": {},
    "one seed, four answers": {"samples": 4},
    "one seed, average over passing answers": {"ratio": True},
    "three seeds of equal quality": {"seeds": 3},
    "three seeds, spread 0.02": {"seeds": 3, "spread": 0.02},
    "three seeds, spread 0.06": {"seeds": 3, "spread": 0.06},
    "two seeds, spread 0.02": {"seeds": 2, "spread": 0.02},
    "five seeds, spread 0.02": {"seeds": 5, "spread": 0.02},
    "three seeds, average over passing answers": {"seeds": 3, "ratio": True},
}
"""What the large simulation covers, at every size and rate."""


@dataclass(frozen=True)
class Coverage:
    """Shares of `repeats`: intervals of one score and of a difference that contain the truth, tests at p <= 0.05."""

    score: float
    difference: float
    false_positives: float


def simulate(setting: Setting, repeats: int, seed: int = 2026) -> Coverage:
    """The shares of one cell."""
    rng = np.random.default_rng([seed, setting.n, round(setting.p * 100), setting.seeds, setting.samples])
    score_hits = gap_hits = wrong = 0
    for column, pairs in _columns(setting, repeats, rng):
        for left, right in pairs:
            one, pair = score(column, left), compare_pair(column, left, right)
            score_hits += one.low <= setting.truth <= one.high
            gap_hits += pair.estimate.low <= 0 <= pair.estimate.high
            wrong += pair.p <= 0.05
    return Coverage(score_hits / repeats, gap_hits / repeats, wrong / repeats)


def _columns(
    setting: Setting, repeats: int, rng: np.random.Generator
) -> Iterator[tuple[Column, list[tuple[str, str]]]]:
    for start in range(0, repeats, BATCH):
        names = [(f"a{i}", f"b{i}") for i in range(min(BATCH, repeats - start))]
        sides = [_pair(setting, rng) for _ in names]
        num, den = (np.concatenate([side[k] for side in sides]) for k in (0, 1))
        keys = tuple((label, seed) for pair in names for label in pair for seed in range(setting.seeds))
        metric = METRICS["excess_levenshtein" if setting.ratio else "pass@1"]
        problems = tuple(map(str, range(setting.n)))
        yield Column(metric, "bench", 1.0, problems, keys, num, den, setting.samples), names


def _pair(s: Setting, rng: np.random.Generator) -> tuple[Array, Array]:
    """num and den of two equally good models: [2 seeds, n]."""
    rates = rng.beta(2 * s.p, 2 * (1 - s.p), s.n)
    # A seed's score moves by r(1-r)k, which keeps rates in [0, 1] for |k| <= 1; E r(1-r) = p(1-p) 2/3.
    room = s.p * (1 - s.p) * 2 / 3
    normal = rng.normal(0, min(s.spread, room * 2 / 3), (2 * s.seeds, 1)) / room
    k = rng.choice((-1.0, 1.0), normal.shape) if s.two_outcomes else np.clip(normal, -1, 1)
    passed = rng.binomial(s.samples, np.clip(rates + k * rates * (1 - rates), 0, 1)).astype(float)
    if s.ratio:
        # The sum of m answers of Gamma(0.5) excess is Gamma(0.5 m).
        return rng.gamma(0.5 * passed, MEAN_EXCESS / 0.5), passed
    return passed / s.samples, np.ones_like(passed)
