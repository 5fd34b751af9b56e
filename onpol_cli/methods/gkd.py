"""GKD (arXiv 2306.13649): a full-vocabulary divergence on a mixture of data set and policy completions.

With probability `method.lam` a step's completions are sampled from the policy, else taken from the
data set. No importance ratio: the divergence is differentiated directly at the given positions. A penalty
towards the reference (`method.reference_kl`) is estimated on sampled tokens, so it wants `method.lam=1`.
"""

from __future__ import annotations

from collections.abc import Sequence

from onpol_cli.learner.batch import TrainExample
from onpol_cli.methods.base import Group, Source, flat
from onpol_cli.methods.on_policy import OnPolicy


class Gkd(OnPolicy):
    """Generalised knowledge distillation."""

    source = Source.MIXTURE

    def examples(self, groups: Sequence[Group]) -> list[TrainExample]:
        """The divergence at every completion position."""
        samples = flat(groups)
        return self._divergence(samples, [0.0] * len(samples))
