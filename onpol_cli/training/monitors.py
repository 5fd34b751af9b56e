"""Watches over a training run: loss spikes, entropy collapse, length explosion, reward hacking.

Each looks at one step's metrics and its own short history. Thresholds come from `monitor.*`; what
happens then (`warn`, `stop`, `off`) from `monitor.action`.
"""

from __future__ import annotations

from collections import deque
from statistics import median

from onpol_cli.core.config import GuardAction, MonitorConfig
from onpol_cli.core.console import LOGGER
from onpol_cli.core.errors import RunFailed

HISTORY = 20
WARM_UP = 5


class Monitors:
    """All monitors of one run."""

    def __init__(self, config: MonitorConfig) -> None:
        self.config = config
        self.losses: deque[float] = deque(maxlen=HISTORY)
        self.first_length: float | None = None
        self.warned: set[str] = set()

    def check(self, step: int, metrics: dict[str, float]) -> None:
        """Warn (once per kind) or stop.

        Raises:
            RunFailed: a threshold was crossed and `monitor.action=stop`.
        """
        if self.config.action is GuardAction.off:
            return
        for kind, message in self._findings(metrics):
            text = f"Step {step}: {message} (monitor.{kind})."
            if self.config.action is GuardAction.stop:
                raise RunFailed(
                    f"{text} The last state is kept; change the setting or monitor.action=warn and --resume."
                )
            if kind not in self.warned:
                self.warned.add(kind)
                LOGGER.warning("%s", text)

    def _findings(self, metrics: dict[str, float]) -> list[tuple[str, str]]:
        found = [
            self._loss(abs(metrics.get("loss/total", 0.0))),
            self._entropy(metrics),
            self._length(metrics),
            self._truncated(metrics),
            self._hacking(metrics),
        ]
        return [item for item in found if item is not None]

    def _loss(self, loss: float) -> tuple[str, str] | None:
        usual = median(self.losses) if len(self.losses) >= WARM_UP else None
        self.losses.append(loss)
        if usual is not None and usual > 0 and loss > self.config.loss_spike * usual and loss > 1.0:
            return "loss_spike", f"loss {loss:.3g} is {loss / usual:.1f} x its running median"
        return None

    def _entropy(self, metrics: dict[str, float]) -> tuple[str, str] | None:
        entropy = metrics.get("entropy")
        if entropy is not None and entropy < self.config.entropy_floor:
            return "entropy_floor", f"entropy {entropy:.4f} nats a token is under {self.config.entropy_floor}"
        return None

    def _length(self, metrics: dict[str, float]) -> tuple[str, str] | None:
        length = metrics.get("length/mean")
        if length is None:
            return None
        if self.first_length is None:
            self.first_length = length
        if length > self.config.length_factor * self.first_length:
            return (
                "length_factor",
                f"mean length {length:.0f} tokens, {length / self.first_length:.1f} x the first step's",
            )
        return None

    def _truncated(self, metrics: dict[str, float]) -> tuple[str, str] | None:
        share = metrics.get("outcome/truncated", 0.0)
        if share > self.config.truncated_share:
            return "truncated_share", f"{share:.0%} of rollouts hit the token limit"
        return None

    def _hacking(self, metrics: dict[str, float]) -> tuple[str, str] | None:
        share = metrics.get("reward/pass_below_fail", 0.0)
        if share > self.config.pass_below_fail_share:
            return "pass_below_fail_share", f"{share:.0%} of rollouts pass but are paid less than a failure"
        return None
