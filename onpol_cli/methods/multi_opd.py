"""Multi-tutor OPD: problems are routed by domain, each domain's own tutor scores its tokens.

The domain of a problem is `meta["domain"]`, else the task's name (DeepSeek-V4, GLM-5 and
MiMo-V2-Flash, arXiv 2601.02780, merge expert tutors in this way).
"""

from __future__ import annotations

from onpol_cli.core.errors import OnpolError
from onpol_cli.learner.scorer import TeacherScorer
from onpol_cli.methods.base import Sample
from onpol_cli.methods.on_policy import OnPolicy


class MultiTutorOpd(OnPolicy):
    """OPD with one teacher per domain."""

    def teacher_of(self, sample: Sample) -> TeacherScorer:
        """The teacher of the sample's domain.

        Raises:
            OnpolError: no tutor was given for that domain.
        """
        domain = str(sample.problem.meta.get("domain", self.context.task.name))
        if domain not in self.context.teachers:
            known = ", ".join(sorted(self.context.teachers)) or "none"
            raise OnpolError(f"No tutor for domain {domain!r} (given: {known}). Add method.tutors.{domain}=RUN.")
        return self.context.teachers[domain]
