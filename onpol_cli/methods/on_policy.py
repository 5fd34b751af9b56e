"""RL, OPD and their sum: one policy gradient, two coefficients.

A_t = adv_coef * (reward - group mean) + teacher_coef * (log p_teacher(y_t) - log p_policy(y_t))
rl: (1, 0); opd: (0, 1); rl_opd: both. The learner forms the teacher term itself, because only it has
log p_policy. With `method.signal` other than `sampled` the teacher term is an exact divergence over
the vocabulary at each sampled position instead. Source of the combined form: prime-rl's trainer of
2026-01 to 2026-05 (`adv_tau`, `teacher_tau`); of OPD: thinkingmachines.ai/blog/on-policy-distillation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from onpol_cli.core.config import MethodConfig, OpdSignal
from onpol_cli.learner.batch import TrainExample
from onpol_cli.learner.scorer import TeacherScorer
from onpol_cli.methods.base import Context, Group, Ids, Sample, Source, flat, group_advantages, ones, sampler_logprobs


class OnPolicy:
    """Policy gradient on the policy's own rollouts."""

    source = Source.POLICY
    prepares = False

    def __init__(self, config: MethodConfig, context: Context) -> None:
        self.config = config
        self.context = context

    def select(self, groups: Sequence[Group]) -> list[Group]:
        """Unused: completions are sampled in every step."""
        return list(groups)

    def teacher_of(self, sample: Sample) -> TeacherScorer:
        """Which teacher scores `sample`."""
        return self.context.teachers[""]

    def teachers(self) -> list[TeacherScorer]:
        """All teachers, each once, in an order that is the same in every process."""
        return list({id(teacher): teacher for teacher in self.context.teachers.values()}.values())

    def teacher_ids(self, sample: Sample) -> tuple[Ids, Ids]:
        """The sequence that the teacher reads; its completion part is the sample's."""
        return sample.ids

    def examples(self, groups: Sequence[Group]) -> list[TrainExample]:
        """Streams of one step; the order of samples is kept."""
        advantages = [value * self.config.adv_coef for group in groups for value in group_advantages(group)]
        samples = flat(groups)
        if self.config.teacher_coef != 0 and self.config.signal is not OpdSignal.sampled:
            return self._divergence(samples, advantages)
        teachers: list[Tensor | None] = [None] * len(samples)
        if self.config.teacher_coef != 0:
            teachers = list(self.scored(samples, lambda teacher, ids: teacher.logprobs(ids)))
        rows = zip(samples, advantages, teachers, self._references(samples), strict=True)
        return [self._gradient(*row) for row in rows]

    def _gradient(
        self, sample: Sample, advantage: float, teacher: Tensor | None, reference: Tensor | None
    ) -> TrainExample:
        mask = ones(sample)
        return TrainExample(
            sample.prompt_ids,
            sample.completion_ids,
            pg_mask=mask,
            advantages=mask * advantage,
            sampler_logprobs=sampler_logprobs(sample),
            teacher_logprobs=teacher,
            teacher_coef=self.config.teacher_coef if teacher is not None else 0.0,
            reference_logprobs=reference,
            problem_id=sample.problem.problem_id,
        )

    def _references(self, samples: Sequence[Sample]) -> list[Tensor | None]:
        """The frozen start's log-probs of all samples in one call, which shards make together."""
        if self.config.reference_kl == 0:
            return [None] * len(samples)
        assert self.context.reference is not None
        return list(self.context.reference([sample.ids for sample in samples]))

    def _divergence(self, samples: Sequence[Sample], advantages: Sequence[float]) -> list[TrainExample]:
        hidden = self.scored(samples, lambda teacher, ids: teacher.hidden(ids))
        rows = zip(samples, advantages, hidden, self._references(samples), strict=True)
        return [
            TrainExample(
                sample.prompt_ids,
                sample.completion_ids,
                pg_mask=ones(sample) if self.config.adv_coef else None,
                advantages=ones(sample) * advantage if self.config.adv_coef else None,
                sampler_logprobs=sampler_logprobs(sample) if sample.rollout is not None else None,
                reference_logprobs=reference,
                div_mask=ones(sample) * self.config.teacher_coef,
                teacher_hidden=row,
                problem_id=sample.problem.problem_id,
            )
            for sample, advantage, row, reference in rows
        ]

    def scored(
        self,
        samples: Sequence[Sample],
        score: Callable[[TeacherScorer, list[tuple[Ids, Ids]]], list[Tensor]],
    ) -> list[Tensor]:
        """Each sample's row from its own teacher, order kept.

        Every teacher is called once, for no sample too: where processes share its shards, all of them must take part.
        """
        rows: list[Tensor | None] = [None] * len(samples)
        owners = [self.teacher_of(sample) for sample in samples]
        for teacher in self.teachers():
            indices = [index for index, owner in enumerate(owners) if owner is teacher]
            for index, row in zip(
                indices, score(teacher, [self.teacher_ids(samples[i]) for i in indices]), strict=True
            ):
                rows[index] = row
        done = [row for row in rows if row is not None]
        assert len(done) == len(samples)
        for sample, row in zip(samples, done, strict=True):
            assert row.shape[0] == len(sample.completion_ids), "a teacher must score every completion token"
        return done
