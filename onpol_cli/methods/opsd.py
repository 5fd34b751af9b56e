"""OPSD: the policy, shown the reference solution, is its own teacher (on-policy self-distillation).

The teacher reads a prompt with the answer in it, then the same completion; its log-probs are taken
without gradient from the current weights, so no second model exists.
"""

from __future__ import annotations

from onpol_cli.learner.scorer import TeacherScorer
from onpol_cli.methods.base import Ids, Sample
from onpol_cli.methods.on_policy import OnPolicy

HINT = "\n\nFor reference, this solution is known to be correct:\n"


class SelfDistillation(OnPolicy):
    """OPD whose teacher is the policy with privileged context."""

    def teacher_of(self, sample: Sample) -> TeacherScorer:
        """The learner itself."""
        assert self.context.policy is not None
        return self.context.policy

    def teachers(self) -> list[TeacherScorer]:
        """The learner alone."""
        assert self.context.policy is not None
        return [self.context.policy]

    def teacher_ids(self, sample: Sample) -> tuple[Ids, Ids]:
        """The prompt with the reference solution appended to its last turn, then the completion."""
        messages = [dict(message) for message in self.context.task.messages(sample.problem)]
        messages[-1]["content"] += HINT + self.context.task.reference(sample.problem)
        return self.context.encode(messages), sample.completion_ids
