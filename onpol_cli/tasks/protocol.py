"""What a task offers. Training reward and evaluation call the same object.

`name` is the word used in configs, tables and samples.jsonl. Implementations live one file (or
package) a task and are built by `onpol_cli.tasks.registry`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from onpol_cli.core.types import Completion, Grade, Message, Problem


class Task(Protocol):
    """A family of problems."""

    name: str

    def problems(self, split: str) -> list[Problem]:
        """All problems of `split` ("train", "validation", "test"), in a fixed order."""
        ...

    def messages(self, problem: Problem) -> list[Message]:
        """The chat that asks a model for an answer to `problem` (no assistant turn at the end)."""
        ...

    def reference(self, problem: Problem) -> str:
        """The completion text to imitate (SFT): for edit tasks the exact reversal."""
        ...

    def grade(self, items: Sequence[tuple[Problem, Completion]]) -> list[Grade]:
        """Verdicts in the order of `items`. Runs untrusted code only through the sandbox."""
        ...
