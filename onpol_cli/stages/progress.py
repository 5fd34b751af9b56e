"""The live view of a training run, plain lines where there is no terminal, and optional loggers.

Owns what a person sees while a run goes on; the run directory gets its rows from the loop itself.
"""

from __future__ import annotations

import difflib
import os
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from onpol_cli.core.config import Config
from onpol_cli.core.console import say, stderr
from onpol_cli.runs.rundir import RunDir
from onpol_cli.stages.loggers import Logger, build_loggers

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from onpol_cli.methods.base import Group

SHOWN = (
    ("reward", "reward/mean", "{:.3f}"),
    ("pass", "outcome/passed", "{:.2f}"),
    ("loss", "loss/total", "{:.4f}"),
    ("KL teacher", "kl/teacher", "{:.4f}"),
    ("entropy", "entropy", "{:.3f}"),
    ("length", "length/mean", "{:.0f}"),
    ("mismatch", "kl/mismatch", "{:.1e}"),
)
PLAIN_EVERY_S = 10.0
DIFF_LINES = 14


def columns(metrics: dict[str, float]) -> list[tuple[str, str]]:
    """Name and formatted value of the metrics that a person follows."""
    return [(name, form.format(metrics[key])) for name, key, form in SHOWN if key in metrics]


def eta(done: int, total: int, seconds: float) -> str:
    """Remaining time as `m:ss`."""
    left = int(seconds / max(1, done) * (total - done))
    return f"{left // 60}:{left % 60:02d}"


def rate(metrics: dict[str, float]) -> str:
    """Tokens a second of the slowest named phases together."""
    tokens = metrics.get("tokens/generated", metrics.get("tokens/trained", 0.0))
    return f"{tokens / max(1e-9, metrics.get('time/step', 0.0)):.0f} tok/s"


class StepReporter:
    """Called after every step; a context manager around the live display."""

    def __init__(self, run: RunDir, config: Config, steps: int) -> None:
        self.run = run
        self.config = config
        self.steps = steps
        self.start = time.perf_counter()
        self.first: int | None = None
        self.last_line = 0.0
        self.live: Live | None = None
        self.loggers: list[Logger] = []

    def __enter__(self) -> StepReporter:
        self.loggers = build_loggers(self.config.run.loggers, self.run)
        if sys.stderr.isatty() and "ONPOL_PLAIN" not in os.environ:
            from rich.live import Live

            self.live = Live(console=stderr(), refresh_per_second=4, transient=True)
            self.live.__enter__()
        else:
            say(f"{self.run.name}: {self.steps} steps")
        return self

    def __call__(self, step: int, metrics: dict[str, float], groups: list[Group]) -> None:
        """Show step `step` (0-based) and pass its metrics to the loggers."""
        for logger in self.loggers:
            logger.log(step, metrics)
        if self.first is None:
            self.first = step
        done = step + 1
        if self.live is not None:
            self.live.update(self._panel(done, metrics, groups))
        elif done == self.steps or time.perf_counter() - self.last_line > PLAIN_EVERY_S:
            self.last_line = time.perf_counter()
            say(f"{self.run.name}: {self._headline(done, metrics)}")

    def _headline(self, done: int, metrics: dict[str, float]) -> str:
        made = done - (self.first or 0)
        words = [f"step {done}/{self.steps}", f"ETA {eta(made, self.steps - (self.first or 0), self._elapsed())}"]
        return "  ".join([*words, rate(metrics), *(f"{name} {value}" for name, value in columns(metrics))])

    def _elapsed(self) -> float:
        return time.perf_counter() - self.start

    def _panel(self, done: int, metrics: dict[str, float], groups: list[Group]) -> RenderableType:
        from rich.console import Group as Stack
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        for name, value in columns(metrics):
            grid.add_row(name, value)
        head = f"{done}/{self.steps}  ETA {eta(done, self.steps, self._elapsed())}  {rate(metrics)}"
        parts: list[Any] = [head, ProgressBar(total=self.steps, completed=done), grid]
        sample = sample_diff(groups)
        if sample is not None:
            parts.append(sample)
        return Panel(Stack(*parts), title=self.run.name, title_align="left")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live is not None:
            self.live.__exit__(kind, error, trace)
        for logger in self.loggers:
            logger.close()


def sample_diff(groups: list[Group]) -> RenderableType | None:
    """The last sample's change to the code it was shown, as a short coloured diff."""
    from rich.text import Text

    sample = groups[-1][-1] if groups and groups[-1] else None
    if sample is None or sample.grade is None or sample.grade.code is None or sample.problem.corrupted is None:
        return None
    before, after = sample.problem.corrupted.splitlines(), sample.grade.code.splitlines()
    text = Text(f"last sample: {sample.grade.outcome.value}, reward {sample.grade.reward:.3f}\n", style="bold")
    for line in list(difflib.unified_diff(before, after, lineterm="", n=1))[2 : 2 + DIFF_LINES]:
        style = {"+": "green", "-": "red"}.get(line[:1], "dim")
        text.append(line + "\n", style=style)
    return text
