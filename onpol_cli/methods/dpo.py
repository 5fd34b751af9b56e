"""DPO (arXiv 2305.18290): prefer the base's passing answer that edits least over the one that edits most.

loss = -mean over pairs of log sigmoid(beta * (delta_chosen - delta_rejected)), delta = log p_policy - log p_reference
summed over the completion. Problems with fewer than two distinct passing answers, or no gap, give no pair.
"""

from __future__ import annotations

from collections.abc import Sequence

from onpol_cli.core.config import MethodConfig
from onpol_cli.core.errors import RunFailed
from onpol_cli.learner.batch import TrainExample
from onpol_cli.methods.base import Context, Group, Source
from onpol_cli.methods.rsft import distance, distinct, passing


class Dpo:
    """Preference pairs from graded base samples."""

    source = Source.DATASET
    prepares = True

    def __init__(self, config: MethodConfig, context: Context) -> None:
        self.config = config
        self.context = context

    def select(self, groups: Sequence[Group]) -> list[Group]:
        """Pairs `[chosen, rejected]`, one per problem that has a gap."""
        pairs: list[Group] = []
        for group in groups:
            ranked = sorted(distinct(passing(group)), key=distance)
            if len(ranked) >= 2 and distance(ranked[0]) < distance(ranked[-1]):
                pairs.append([ranked[0], ranked[-1]])
        if not pairs:
            raise RunFailed(
                "No problem had two passing answers of different distance: dpo has no pairs. Raise method.group."
            )
        return pairs

    def examples(self, groups: Sequence[Group]) -> list[TrainExample]:
        """Two examples per pair, with the reference's log-probs."""
        assert self.context.reference is not None
        pairs = [
            (sample, number, chosen)
            for number, pair in enumerate(groups)
            for sample, chosen in zip(pair, (True, False), strict=True)
        ]
        logprobs = self.context.reference([sample.ids for sample, _, _ in pairs])
        return [
            TrainExample(
                *sample.ids, pair=number, chosen=chosen, reference_logprobs=row, problem_id=sample.problem.problem_id
            )
            for (sample, number, chosen), row in zip(pairs, logprobs, strict=True)
        ]
