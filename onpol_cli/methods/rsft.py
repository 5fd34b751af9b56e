"""Rejection-sampled SFT: imitate the base's own passing answers that edit least.

`method.group` samples per problem are drawn from the base and graded; of the passing ones the
`method.keep` with the smallest excess distance are kept (paper: 8 samples, 3 kept).
"""

from __future__ import annotations

from collections.abc import Sequence

from onpol_cli.core.errors import RunFailed
from onpol_cli.methods.base import Group, Sample
from onpol_cli.methods.sft import Sft


class RejectionSft(Sft):
    """SFT after selection."""

    prepares = True

    def select(self, groups: Sequence[Group]) -> list[Group]:
        """One group per kept sample; identical answers of a problem count once."""
        kept: list[Group] = []
        for group in groups:
            best = sorted(distinct(passing(group)), key=distance)[: self.config.keep]
            kept += [[sample] for sample in best]
        if not kept:
            raise RunFailed("None of the base's samples passed: rsft has nothing to train on. Raise method.group.")
        return kept


def passing(group: Group) -> list[Sample]:
    """Samples whose answer passed all tests."""
    return [sample for sample in group if sample.grade is not None and sample.grade.passed]


def distance(sample: Sample) -> float:
    """Excess Levenshtein of an answer; 0 outside edit tasks, where all passing answers rank alike."""
    assert sample.grade is not None
    return sample.grade.excess_levenshtein or 0.0


def distinct(samples: Sequence[Sample]) -> list[Sample]:
    """The first of each set of equal completions."""
    return list({sample.completion_ids: sample for sample in reversed(samples)}.values())[::-1]
