"""The sum of loss components of one micro-batch, and what is to be known about it.

Owns the path from examples to one scalar loss: which components an example takes part in, the global
denominators, and the tallies behind the step's metrics. Formulas are `losses`', the forward `forward`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onpol_cli.core.config import MethodConfig
from onpol_cli.core.errors import OnpolError
from onpol_cli.learner import losses
from onpol_cli.learner.batch import TrainExample, stream
from onpol_cli.learner.divergence import DivergenceSettings, token_divergence, token_divergence_logprobs
from onpol_cli.learner.forward import AnyLayout, TokenModel
from onpol_cli.learner.logprobs import token_logprobs, token_logprobs_entropy, weighted_nll

PlainTally = tuple[dict[str, float], dict[str, float], Tensor]
COMPONENTS = ("cross_entropy", "policy_gradient", "divergence", "preference")


def count(examples: Sequence[TrainExample]) -> dict[str, float]:
    """This rank's denominators: trained tokens per component, pairs for `preference`."""
    totals = dict.fromkeys(COMPONENTS, 0.0)
    for example in examples:
        for name, values in (
            ("cross_entropy", example.ce_weights),
            ("policy_gradient", example.pg_mask),
            ("divergence", example.div_mask),
        ):
            if values is not None:
                totals[name] += float((values != 0).sum())
        totals["preference"] += 0.5 if example.pair is not None else 0.0
    return totals


def trained_tokens(example: TrainExample) -> int:
    """Completion tokens that some component has a gradient of; each counts once."""
    if example.pair is not None:
        return len(example.completion_ids)
    streams = [of != 0 for of in (example.ce_weights, example.pg_mask, example.div_mask) if of is not None]
    return int(torch.stack(streams).any(0).sum()) if streams else 0


@dataclass
class Tally:
    """Sums over the tokens (or pairs) of a step; each mean's numerator is kept with its own denominator."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    ratios: list[Tensor] = field(default_factory=list)

    def add(self, name: str, total: Tensor, number: Tensor | float) -> None:
        """Add `total` over `number` items to the mean called `name`."""
        value = total.detach().double()
        self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        amount = torch.as_tensor(number, dtype=torch.float64, device=value.device)
        self.counts[name] = self.counts.get(name, torch.zeros_like(amount)) + amount

    def plain(self) -> PlainTally:
        """Sums, counts and ratios as plain numbers, to be added over ranks."""
        ratios = torch.cat(self.ratios).float().cpu() if self.ratios else torch.empty(0)
        sums = {name: float(value) for name, value in self.sums.items()}
        return sums, {name: float(value) for name, value in self.counts.items()}, ratios


@dataclass(frozen=True)
class MicroBatch:
    """Examples of one forward, where their tokens are, and the global denominators of the step."""

    examples: Sequence[TrainExample]
    layout: AnyLayout
    counts: dict[str, float]
    tally: Tally


@dataclass(frozen=True)
class Objective:
    """Everything fixed over a run: model, loss settings, teacher's output matrix."""

    engine: TokenModel
    method: MethodConfig
    teacher_head: Tensor | None = None

    def __call__(self, batch: MicroBatch) -> Tensor:
        """Loss of a micro-batch, each component divided by its global count."""
        examples = batch.examples
        hidden = self.engine.hidden_states(batch.layout)
        total = hidden.new_zeros((), dtype=torch.float32) + 0.0 * hidden.sum().float()
        if any(e.ce_weights is not None or e.pair is not None for e in examples):
            total = total + self._supervised(batch, hidden)
        if any(e.pg_mask is not None for e in examples):
            total = total + self._policy_gradient(batch, hidden)
        if any(e.div_mask is not None for e in examples):
            total = total + self._divergence(batch, hidden)
        return total

    def _stream(self, examples: Sequence[TrainExample], name: str) -> Tensor:
        return stream(examples, name, self.engine.device)

    def _supervised(self, batch: MicroBatch, hidden: Tensor) -> Tensor:
        """`cross_entropy` and `preference`: both at temperature 1."""
        examples, layout, tally = batch.examples, batch.layout, batch.tally
        if any(e.ce_weights is not None for e in examples) and all(e.pair is None for e in examples):
            return self._cross_entropy(batch, hidden)
        policy = token_logprobs(hidden, self.engine.output_matrix, layout.targets, self.engine.options(1.0))
        total = policy.new_zeros(())
        if any(e.ce_weights is not None for e in examples):
            weights = self._stream(examples, "ce_weights")
            part = losses.cross_entropy(policy, weights)
            tally.add("loss/cross_entropy", part, (weights != 0).sum())
            total = total + part / max(1.0, batch.counts["cross_entropy"])
        if any(e.pair is not None for e in examples):
            total = total + self._preference(batch, policy) / batch.counts["preference"]
        return total

    def _cross_entropy(self, batch: MicroBatch, hidden: Tensor) -> Tensor:
        """`losses.cross_entropy` with its gradient taken on the way, since its weights are known."""
        weights = self._stream(batch.examples, "ce_weights")
        count = max(1.0, batch.counts["cross_entropy"])
        total, logprobs = weighted_nll(
            hidden, self.engine.output_matrix, batch.layout.targets, weights / count, self.engine.options(1.0)
        )
        batch.tally.add("loss/cross_entropy", losses.cross_entropy(logprobs, weights), (weights != 0).sum())
        return total

    def _preference(self, batch: MicroBatch, policy: Tensor) -> Tensor:
        examples, layout, tally = batch.examples, batch.layout, batch.tally
        gain = policy - self._stream(examples, "reference_logprobs")
        sums = gain.new_zeros(len(examples)).index_add(0, layout.segments, gain)
        sides: dict[int, list[int]] = {}
        for index, example in enumerate(examples):
            if example.pair is not None:
                sides.setdefault(example.pair, [0, 0])[0 if example.chosen else 1] = index
        ends = torch.tensor(list(sides.values()), device=sums.device)
        part, margin = losses.preference(sums[ends[:, 0]], sums[ends[:, 1]], self.method.dpo_beta)
        tally.add("loss/preference", part, len(sides))
        tally.add("preference/margin", margin.sum(), len(sides))
        tally.add("preference/accuracy", (margin > 0).sum(), len(sides))
        return part

    def _policy_gradient(self, batch: MicroBatch, hidden: Tensor) -> Tensor:
        method, examples, layout, tally = self.method, batch.examples, batch.layout, batch.tally
        policy, entropy = token_logprobs_entropy(
            hidden, self.engine.output_matrix, layout.targets, self.engine.options()
        )
        mask, sampler = self._stream(examples, "pg_mask"), self._stream(examples, "sampler_logprobs")
        teacher = self._stream(examples, "teacher_logprobs")
        sizes = torch.tensor(layout.sizes, device=policy.device)
        coef = torch.tensor([e.teacher_coef for e in examples], device=policy.device).repeat_interleave(sizes)
        advantage = losses.total_advantage(
            self._stream(examples, "advantages"), coef, teacher, policy, method.signal_clip
        )
        ratios = losses.importance(policy, sampler, mask, layout.segments, method)
        part = losses.policy_gradient(policy, ratios.weight, mask * advantage)
        tally_policy(tally, part, policy.detach(), sampler, mask, ratios)
        tally.add("entropy", (mask * entropy).sum(), mask.sum())
        scored = mask * (coef != 0)
        signal = policy.detach() - teacher
        tally.add("kl/teacher", (scored * signal).sum(), scored.sum())
        if method.signal_clip > 0:
            tally.add("signal/clipped_share", (scored * (signal.abs() > method.signal_clip)).sum(), scored.sum())
        total = part / batch.counts["policy_gradient"]
        if method.reference_kl > 0:
            trained = [e for e in examples if e.pg_mask is not None]
            part = self._reference_kl(batch, policy, mask, trained, self._stream(examples, "reference_logprobs"))
            total = total + part / batch.counts["policy_gradient"]
        return total

    def _reference_kl(
        self, batch: MicroBatch, policy: Tensor, mask: Tensor, trained: Sequence[TrainExample], reference: Tensor
    ) -> Tensor:
        """Weighted sum of the penalty over the tokens in `mask`, which are those of the examples `trained`."""
        if any(e.reference_logprobs is None for e in trained):
            raise OnpolError(
                "method.reference_kl > 0 needs reference_logprobs on every example trained by policy gradient or "
                "divergence."
            )
        part = losses.reference_kl(policy, reference, mask)
        weighted = self.method.reference_kl * part
        batch.tally.add("kl/reference", part, mask.sum())
        batch.tally.add("loss/reference_kl", weighted, mask.sum())
        return weighted

    def _divergence(self, batch: MicroBatch, hidden: Tensor) -> Tensor:
        if self.teacher_head is None:
            raise OnpolError("A divergence is trained but the learner was given no teacher output matrix.")
        members = [e for e in batch.examples if e.div_mask is not None]
        targets = batch.layout.targets
        if len(members) < len(batch.examples):
            rows = per_token(batch.examples, [e.div_mask is not None for e in batch.examples]).to(hidden.device)
            hidden, targets = hidden[rows], targets[rows]
        mask = self._stream(members, "div_mask")
        values, penalty = self._divergence_values(batch, hidden, targets, members, mask != 0)
        part, trained = (mask * values).sum(), mask != 0
        batch.tally.add("loss/divergence", part, trained.sum())
        batch.tally.add("kl/teacher", torch.where(trained, values.detach(), 0.0).sum(), trained.sum())
        return (part + penalty) / batch.counts["divergence"]

    def _divergence_values(
        self, batch: MicroBatch, hidden: Tensor, targets: Tensor, members: Sequence[TrainExample], trained: Tensor
    ) -> tuple[Tensor, Tensor | float]:
        """Divergences `[N]` and the sum of the reference penalty.

        What else the logits tell (entropy, mismatch, penalty) is taken of examples without a policy gradient: it is
        told of the others there.
        """
        method, matrix, options = self.method, self.engine.output_matrix, self.engine.options()
        assert self.teacher_head is not None
        teacher = (self._stream(members, "teacher_hidden"), self.teacher_head)
        settings = DivergenceSettings(method.signal, method.beta, method.topk, method.teacher_temperature)
        alone = [e for e in members if e.pg_mask is None]
        if not alone:
            return token_divergence(hidden, matrix, teacher, settings, options), 0.0
        penalised = method.reference_kl > 0
        values, policy, entropy = token_divergence_logprobs(
            hidden, matrix, targets, teacher, settings, options, token_grad=penalised
        )
        mask = trained & per_token(members, [e.pg_mask is None for e in members]).to(trained.device)
        sampled = mask & per_token(members, [e.sampler_logprobs is not None for e in members]).to(mask.device)
        batch.tally.add("entropy", torch.where(mask, entropy, 0.0).sum(), mask.sum())
        tally_mismatch(batch.tally, policy.detach(), self._stream(members, "sampler_logprobs"), sampled)
        if not penalised:
            return values, 0.0
        reference = self._stream(members, "reference_logprobs")
        return values, self._reference_kl(batch, policy, mask.to(policy.dtype), alone, reference)


def per_token(examples: Sequence[TrainExample], flags: Sequence[bool]) -> Tensor:
    """`[N]` bool: each example's flag, once for each of its completion tokens."""
    return torch.tensor(flags).repeat_interleave(torch.tensor([len(e.completion_ids) for e in examples]))


def tally_policy(
    tally: Tally, part: Tensor, policy: Tensor, sampler: Tensor, mask: Tensor, ratios: losses.Ratios
) -> None:
    """Ratio and mismatch numbers of the trained tokens."""
    trained = mask != 0
    number = trained.sum()
    tally.add("loss/policy_gradient", part, number)
    tally.add("ratio/mean", torch.where(trained, ratios.ratio, 0.0).sum(), number)
    tally.add("ratio/masked_share", ratios.dropped.sum(), number)
    changed = trained & ~ratios.dropped & (ratios.weight != ratios.ratio)
    tally.add("ratio/truncated_share", changed.sum(), number)
    tally_mismatch(tally, policy, sampler, trained)
    tally.ratios.append(ratios.ratio[trained])


def tally_mismatch(tally: Tally, policy: Tensor, sampler: Tensor, sampled: Tensor) -> None:
    """`kl/mismatch`: the k3 estimate of KL(sampler || policy) over the tokens `sampled: [N]`.

    They were drawn from the sampler, so with r = policy / sampler it is the mean of r - 1 - log r.
    """
    log_ratio = torch.where(sampled, policy - sampler, 0.0)
    tally.add("kl/mismatch", (log_ratio.exp() - 1 - log_ratio).sum(), sampled.sum())
