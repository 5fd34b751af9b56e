"""All printing. Results go to stdout, progress and logging to stderr.

Owns rich consoles, log set-up and JSON output. The only module that may write to the terminal.
"""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LOGGER = logging.getLogger("onpol")
OWN = "onpol: "
"""How onpol's own lines on stderr start."""


@cache
def stdout() -> Console:
    """Console of results."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


@cache
def stderr() -> Console:
    """Console of progress and messages."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """One line of progress, on stderr."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


def show(renderable: RenderableType) -> None:
    """A result (table, text) on stdout. Tables keep their natural width when not in a terminal."""
    console = stdout()
    if not console.is_terminal:
        from rich.console import Console

        console = Console(highlight=False, width=240, file=sys.stdout)
    console.print(renderable)


def show_text(text: str) -> None:
    """Plain text on stdout, exactly as it is."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def show_json(value: Any) -> None:
    """One JSON object on stdout and nothing else."""
    show_text(json.dumps(value, ensure_ascii=False, sort_keys=False))


def fail(message: str) -> None:
    """An error in one line, on stderr."""
    say(f"{OWN}{message}")


def error_in(line: str) -> list[str]:
    """What `fail` said in a line of another process's output; nothing if it is of anything else."""
    text = line.strip()
    return [text.removeprefix(OWN)] if text.startswith(OWN) and not text.startswith(f"{OWN}WARNING") else []


def setup_logging(level: int = logging.WARNING, file: Path | None = None) -> None:
    """Warnings to stderr; everything from INFO on also into `file` (a run's log)."""
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    if not any(getattr(h, "onpol_stream", False) for h in LOGGER.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.onpol_stream = True  # type: ignore[attr-defined]
        handler.setLevel(level)
        handler.setFormatter(logging.Formatter(f"{OWN}%(levelname)s: %(message)s"))
        LOGGER.addHandler(handler)
    if file is not None:
        _attach_file(file)


class _RunLog(logging.FileHandler):
    """A run's log. On a full disk the run goes without it: what needs room says so itself, in one line."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


def _attach_file(file: Path) -> None:
    for handler in list(LOGGER.handlers):
        if isinstance(handler, logging.FileHandler):
            LOGGER.removeHandler(handler)
            handler.close()
    handler = _RunLog(file, encoding="utf-8", delay=True)
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    LOGGER.addHandler(handler)
