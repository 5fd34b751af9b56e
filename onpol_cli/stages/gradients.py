"""The gradient of a batch without a step: what `replay` and `bench estimators` measure.

Same examples, micro-batches, denominators and loss as `Learner.step`; the weights stay as they are.
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

    from onpol_cli.learner.batch import check_example, units
    from onpol_cli.learner.learner import summarise
    from onpol_cli.learner.objective import MicroBatch, Tally, count

    for number, example in enumerate(examples):
        check_example(example, number)
    groups, counts, tally = units(examples), count(examples), Tally()
    pairs = [[(examples[index].prompt_ids, examples[index].completion_ids) for index in group] for group in groups]
    learner.optimiser.zero_grad()
    for batch in learner.engine.plan(pairs):
        members = [examples[index] for unit in batch for index in groups[unit]]
        layout = learner.engine.lay_out([(e.prompt_ids, e.completion_ids) for e in members])
        learner.objective(MicroBatch(members, layout, counts, tally)).backward()  # type: ignore[no-untyped-call]
    trained = [p for p in learner.model.parameters() if p.requires_grad]
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float().cpu() for p in trained]
    learner.optimiser.zero_grad()
    return summarise([tally.plain()]), torch.cat(parts)
