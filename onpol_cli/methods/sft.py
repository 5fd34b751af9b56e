"""SFT: cross-entropy on data set completions (for edit tasks the programmatic reversals)."""

from __future__ import annotations

from collections.abc import Sequence

from onpol_cli.core.config import MethodConfig
from onpol_cli.learner.batch import TrainExample
from onpol_cli.methods.base import Context, Group, Source, flat, ones


class Sft:
    """loss = -mean over completion tokens of log p_policy(token), in nats."""

    source = Source.DATASET
    prepares = False

    def __init__(self, config: MethodConfig, context: Context) -> None:
        self.config = config
        self.context = context

    def select(self, groups: Sequence[Group]) -> list[Group]:
        """Unused: the data set is given."""
        return list(groups)

    def examples(self, groups: Sequence[Group]) -> list[TrainExample]:
        """Weight one on every completion token."""
        return [
            TrainExample(s.prompt_ids, s.completion_ids, ce_weights=ones(s), problem_id=s.problem.problem_id)
            for s in flat(groups)
        ]
