"""Optional loggers behind extras: TensorBoard, Weights & Biases, trackio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from onpol_cli.core.errors import OnpolError
from onpol_cli.runs.rundir import RunDir


class Logger(Protocol):
    """Takes each step's metrics."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record `metrics` of 0-based `step`."""
        ...

    def close(self) -> None:
        """Flush and finish."""
        ...


class TensorBoardLogger:
    """Event files under the run directory."""

    def __init__(self, run: RunDir) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(run.path / "tensorboard"))

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One scalar per metric."""
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush the event file."""
        self.writer.close()


class TrackerLogger:
    """wandb or trackio, whose interfaces agree (`init`, `log`, `finish`)."""

    def __init__(self, module: Any, run: RunDir) -> None:
        self.module = module
        module.init(project="onpol", name=run.name)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """One row."""
        self.module.log({"step": step, **metrics})

    def close(self) -> None:
        """End the tracked run."""
        self.module.finish()


def build_loggers(names: Sequence[str], run: RunDir) -> list[Logger]:
    """The loggers of `run.loggers`.

    Raises:
        OnpolError: an unknown name, or its extra is not installed.
    """
    return [_build(name, run) for name in names]


def _build(name: str, run: RunDir) -> Logger:
    import importlib

    if name not in ("tensorboard", "wandb", "trackio"):
        raise OnpolError(f"Unknown logger {name!r} in run.loggers. Choices: tensorboard, wandb, trackio.")
    try:
        if name == "tensorboard":
            return TensorBoardLogger(run)
        return TrackerLogger(importlib.import_module(name), run)
    except ImportError as error:
        raise OnpolError(f"Logger {name!r} is not installed: pip install 'onpol[{name}]'.") from error
