"""The gradient of a batch without a step: what `replay` and `bench estimators` measure.

It is the gradient that `Learner.step` would take, before it is clipped; the weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from onpol_cli.learner.batch import TrainExample
    from onpol_cli.learner.learner import Learner


def gradient(learner: Learner, examples: Sequence[TrainExample]) -> tuple[dict[str, float], Tensor]:
    """Metrics of the loss over `examples`, and its gradient by all trained weights.

    Returns:
        Metrics as `Learner.step` names them, and the gradient `[P]` float32 on the CPU, not clipped.
    """
    import torch

    from onpol_cli.learner.learner import summarise

    learner.optimiser.zero_grad()
    batch = learner.accumulate(examples)
    trained = [p for p in learner.model.parameters() if p.requires_grad]
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float().cpu() for p in trained]
    learner.optimiser.zero_grad()
    return summarise([batch.tally.plain()]), torch.cat(parts)
