"""What is said and kept of a step whose loss or gradient is not finite: which problems, which micro-batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from onpol_cli.core.errors import RunFailed
from onpol_cli.learner.batch import TrainExample
from onpol_cli.learner.parallel import World

NAMED = 5
"""Problems that a message names."""


class NonFinite(RunFailed):
    """A loss or gradient that is not finite. Raised by every process alike; nothing was updated."""


@dataclass(frozen=True)
class Part:
    """A micro-batch after its loss was computed.

    Attributes:
        number: 1-based, within the step and this process.
        loss: [] its share of the step's loss.
    """

    number: int
    examples: Sequence[TrainExample]
    loss: Tensor

    def problem_ids(self) -> list[str]:
        """Ids of the problems that its examples answer, each once."""
        return list(dict.fromkeys(e.problem_id for e in self.examples if e.problem_id is not None))


def suspects(parts: Sequence[Part], world: World) -> list[Part]:
    """Micro-batches of this process whose own loss is not finite; all of them where no process has such a one.

    A collective call.
    """
    bad = [part for part in parts if not math.isfinite(float(part.loss))]
    return bad if any(world.gather(bool(bad))) else list(parts)


def described(parts: Sequence[Part], world: World) -> str:
    """`over 8 sequences in micro-batch 2 (problems a, b and 3 more)`, of all processes. A collective call."""
    everyone = world.gather([(part.number, len(part.examples), part.problem_ids()) for part in parts])
    found = [(rank, *part) for rank, share in enumerate(everyone) for part in share]
    ids = list(dict.fromkeys(name for *_, names in found for name in names))
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    problems = f" (problems {', '.join(ids[:NAMED])}{more})" if ids else ""
    where = [f"{number}" if world.size == 1 else f"{number} of process {rank}" for rank, number, *_ in found]
    listed = f"micro-batch {where[0]}" if len(where) == 1 else f"{len(where)} micro-batches"
    return f"over {sum(size for _, _, size, _ in found)} sequences in {listed}{problems}"


def payload(step: int, what: str, value: float, parts: Sequence[Part]) -> dict[str, Any]:
    """What a dump holds: plain values and tensors, so that `torch.load` reads it with `weights_only=True`."""
    return {
        "step": step,
        "what": what,
        "value": value,
        "problem_ids": list(dict.fromkeys(name for part in parts for name in part.problem_ids())),
        "micro_batches": [
            {"number": part.number, "loss": float(part.loss), "examples": [dict(vars(e)) for e in part.examples]}
            for part in parts
        ],
    }
