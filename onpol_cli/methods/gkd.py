"""GKD (arXiv 2306.13649): a full-vocabulary divergence on a mixture of data set and policy completions.

With probability `method.lam` a step's completions are sampled from the policy, else taken from the
data set. No importance ratio: the divergence is differentiated directly at the given positions.
"""

from __future__ import annotations

from collections.abc import Sequence

from onpol_cli.core.config import MethodConfig, OpdSignal
from onpol_cli.core.errors import OnpolError
from onpol_cli.learner.batch import TrainExample
from onpol_cli.methods.base import Context, Group, Source, flat, ones
from onpol_cli.methods.on_policy import OnPolicy


class Gkd(OnPolicy):
    """Generalised knowledge distillation."""

    source = Source.MIXTURE

    def __init__(self, config: MethodConfig, context: Context) -> None:
        super().__init__(config, context)
        if config.signal is OpdSignal.sampled:
            raise OnpolError("gkd needs a full-vocabulary signal: method.signal=reverse, forward or jsd.")

    def examples(self, groups: Sequence[Group]) -> list[TrainExample]:
        """The divergence at every completion position."""
        samples = flat(groups)
        hidden = self.scored(samples, lambda teacher, ids: teacher.hidden(ids))
        return [
            TrainExample(
                s.prompt_ids,
                s.completion_ids,
                div_mask=ones(s) * self.config.teacher_coef,
                teacher_hidden=row,
                problem_id=s.problem.problem_id,
            )
            for s, row in zip(samples, hidden, strict=True)
        ]
