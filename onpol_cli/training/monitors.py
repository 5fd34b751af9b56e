"""Watches over a training run: loss spikes, entropy collapse, length explosion, reward hacking.

Each looks at one step's metrics and its own short history, which `replay` restores on resume. Thresholds
come from `monitor.*`; what happens then (`warn`, `stop`, `off`) from `monitor.action`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import fmean, median
from typing import Any

from onpol_cli.core.config import GuardAction, MonitorConfig
from onpol_cli.core.console import LOGGER
from onpol_cli.core.errors import RunFailed

HISTORY, WARM_UP = 20, 5
"""Steps that a loss is compared with, and how many there must be."""
RELATIVE_SPREAD = 0.2
"""A spread of the loss below this share of its median counts as this share."""
GAUSSIAN = 1.4826
"""Standard deviation of a normal variable in units of its median absolute deviation."""
LENGTH_WAY = 0.75
"""Share of the way from the first mean length to the token limit, where the limit hides `length_factor`."""
LENGTH_GROWTH = 1.5
"""Least multiple of the first mean length there: near the limit that share of the way is no explosion."""
REWARD_STEPS = 5
"""Steps at the start, and latest steps, whose means the reward-hacking watch compares."""

Found = tuple[str, str] | None
"""The setting whose threshold was crossed, and what was seen."""


class Monitors:
    """All monitors of one run.

    Args:
        config: thresholds.
        max_new_tokens: longest rollout, None where nothing is sampled or it is not known.
    """

    def __init__(self, config: MonitorConfig, max_new_tokens: int | None = None) -> None:
        self.config = config
        self.limit = max_new_tokens
        self.losses: deque[float] = deque(maxlen=HISTORY)
        self.first: dict[str, float] = {}
        self.early: list[tuple[float, float]] = []
        self.late: deque[tuple[float, float]] = deque(maxlen=REWARD_STEPS)
        self.warned: set[str] = set()

    def replay(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take in the logged metrics of steps that a resumed run has behind it; nothing is warned of again.

        Rows before step 0 are of what a method prepared, not of training.
        """
        for row in rows:
            if row.get("step", 0) >= 0:
                self._findings(row)

    def check(self, step: int, metrics: Mapping[str, float]) -> None:
        """Warn (once per kind) or stop.

        Raises:
            RunFailed: a threshold was crossed and `monitor.action=stop`.
        """
        if self.config.action is GuardAction.off:
            return
        for kind, message in self._findings(metrics):
            text = f"Step {step}: {message} (monitor.{kind})."
            if self.config.action is GuardAction.stop:
                raise RunFailed(f"{text} Change the setting or take monitor.action=warn, then --resume.")
            if kind not in self.warned:
                self.warned.add(kind)
                LOGGER.warning("%s", text)

    def _findings(self, metrics: Mapping[str, float]) -> list[tuple[str, str]]:
        found = [
            self._loss(metrics),
            *self._entropy(metrics),
            self._length(metrics),
            self._truncated(metrics),
            self._underpaid(metrics),
            self._hacking(metrics),
        ]
        return [item for item in found if item is not None]

    def _loss(self, metrics: Mapping[str, float]) -> Found:
        """Magnitudes are compared: a policy-gradient loss has either sign and lies around 0."""
        loss = abs(metrics.get("loss/total", math.nan))
        if not math.isfinite(loss):
            return None
        before = list(self.losses)
        self.losses.append(loss)
        if len(before) < WARM_UP:
            return None
        usual = median(before)
        spread = GAUSSIAN * median(abs(value - usual) for value in before)
        spread = max(spread, RELATIVE_SPREAD * usual, self.config.loss_spread)
        if loss - usual <= self.config.loss_spike * spread:
            return None
        return "loss_spike", f"loss {loss:.3g} is {(loss - usual) / spread:.0f} spreads above its median {usual:.3g}"

    def _entropy(self, metrics: Mapping[str, float]) -> list[Found]:
        entropy = metrics.get("entropy")
        if entropy is None:
            return []
        first = self.first.setdefault("entropy", entropy)
        seen = f"entropy {entropy:.4f} nats a token is under"
        found: list[Found] = []
        if entropy < self.config.entropy_floor:
            found.append(("entropy_floor", f"{seen} {self.config.entropy_floor:g}"))
        if entropy < self.config.entropy_share * first:
            found.append(("entropy_share", f"{seen} {self.config.entropy_share:.0%} of the first step's {first:.4f}"))
        return found

    def _length(self, metrics: Mapping[str, float]) -> Found:
        length = metrics.get("length/mean")
        if length is None:
            return None
        first = self.first.setdefault("length", length)
        bound = self.config.length_factor * first
        if self.limit is not None and first < self.limit < bound:
            least = min(LENGTH_GROWTH, self.config.length_factor) * first
            bound = max(first + LENGTH_WAY * (self.limit - first), least)
        if length <= bound:
            return None
        of_limit = f" (limit {self.limit})" if self.limit is not None else ""
        return "length_factor", f"mean length {length:.0f} tokens{of_limit}, {length / first:.1f} x the first step's"

    def _truncated(self, metrics: Mapping[str, float]) -> Found:
        share = metrics.get("length/limit_share", metrics.get("outcome/truncated", 0.0))  # the latter: older runs
        if share > self.config.truncated_share:
            return "truncated_share", f"{share:.0%} of rollouts hit the token limit"
        return None

    def _underpaid(self, metrics: Mapping[str, float]) -> Found:
        passed = metrics.get("outcome/passed", 1.0)
        share = metrics.get("reward/pass_below_fail", 0.0) / passed if passed > 0 else 0.0
        if share >= self.config.pass_below_fail_share:
            return "pass_below_fail_share", f"{share:.0%} of the passing rollouts are paid less than a failure"
        return None

    def _hacking(self, metrics: Mapping[str, float]) -> Found:
        """Reward that rises while fewer rollouts pass is earned by something else than passing."""
        reward, passed = metrics.get("reward/mean"), metrics.get("outcome/passed")
        if reward is None or passed is None:
            return None
        if len(self.early) < REWARD_STEPS:
            self.early.append((reward, passed))
            return None
        self.late.append((reward, passed))
        if len(self.late) < REWARD_STEPS:
            return None
        (reward0, passed0), (reward1, passed1) = (_means(rows) for rows in (self.early, self.late))
        if reward1 <= reward0 or passed0 - passed1 <= self.config.pass_drop:
            return None
        seen = f"reward rose from {reward0:.3f} to {reward1:.3f}, passes fell from {passed0:.0%} to {passed1:.0%}"
        return "pass_drop", seen


def _means(rows: Iterable[tuple[float, float]]) -> tuple[float, float]:
    rewards, passes = zip(*rows, strict=True)
    return fmean(rewards), fmean(passes)
