"""Exact divergences between policy and teacher over the whole real vocabulary.

With q the policy and p the teacher at one position, nats per token:
- `reverse`  KL(q || p) = sum_v q_v log(q_v / p_v);
- `forward`  KL(p || q) = sum_v p_v log(p_v / q_v);
- `jsd`      beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (GKD, arXiv 2306.13649);
  at beta 0 and 1, where it vanishes identically, the forward and reverse KL (its limits after division
  by beta and 1 - beta);
- `topk_*`   the same KL over k + 1 outcomes: the k likeliest tokens (of the distribution that the
  expectation is taken over: policy for reverse, teacher for forward) and one bucket for all others.
  A lower bound of the full KL; the choice of tokens is treated as constant.

All of them are 0 with gradient 0 where q = p. Only q carries gradient. Logits of both models exist for
one chunk of tokens at a time; the teacher travels as hidden states and its output matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from onpol_cli.core.config import OpdSignal
from onpol_cli.core.errors import OnpolError
from onpol_cli.learner.head import HeadOptions, chunk_logits, chunked_head


@dataclass(frozen=True)
class DivergenceSettings:
    """Which divergence; `beta` is used by `jsd`, `topk` by the `topk_*` kinds."""

    kind: OpdSignal
    beta: float = 0.5
    topk: int = 64
    teacher_temperature: float = 1.0

    def resolved(self) -> OpdSignal:
        """The kind actually computed: `jsd` at beta 0 or 1 is a KL."""
        if self.kind is OpdSignal.sampled:
            raise OnpolError(
                "method.signal=sampled is not a divergence over the vocabulary. "
                "Allowed here: reverse, forward, jsd, topk_reverse, topk_forward."
            )
        if self.kind is OpdSignal.jsd and self.beta in (0.0, 1.0):
            return OpdSignal.forward if self.beta == 0.0 else OpdSignal.reverse
        return self.kind


def _buckets(logprobs: Tensor, index: Tensor) -> Tensor:
    """Log-probs `[n, k + 1]` of the tokens `index: [n, k]` and of all others together."""
    top = logprobs.gather(1, index)
    # log(1 - sum) from the sum of the others would need [n, V]; clamp guards k = V and rounding.
    tail = torch.log1p(-top.exp().sum(1, keepdim=True).clamp(max=1 - 1e-7))
    return torch.cat([top, tail], 1)


def _spread(slope: Tensor, index: Tensor, size: int) -> Tensor:
    """`[n, V]` from per-bucket `slope: [n, k + 1]`: the tail's value everywhere but at `index`."""
    return slope[:, -1:].expand(-1, size).scatter(1, index, slope[:, :-1])


class DivergenceRule:
    """One divergence per token as a function of the policy's logits."""

    columns = 1

    def __init__(
        self, settings: DivergenceSettings, teacher_hidden: Tensor, teacher_weight: Tensor, options: HeadOptions
    ) -> None:
        self.kind = settings.resolved()
        self.settings = settings
        self.hidden = teacher_hidden
        self.weight = teacher_weight
        self.options = HeadOptions(options.vocab, options.chunk, settings.teacher_temperature)

    def _teacher(self, rows: slice, like: Tensor) -> Tensor:
        logits = chunk_logits(self.hidden[rows], self.weight, self.options)
        return logits.sub_(logits.logsumexp(1, keepdim=True)).to(like.dtype)

    def _value_and_slope(self, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        """Divergence `[n]` and its derivative by the *probabilities* of q, up to a constant per row.

        `q, p: [n, V]` log-probs. Softmax's Jacobian removes the constant.
        """
        kind, beta = self.kind, self.settings.beta
        if kind is OpdSignal.reverse:
            ratio = q - p
            return (q.exp() * ratio).sum(1), ratio
        if kind is OpdSignal.forward:
            return (p.exp() * (p - q)).sum(1), -(p - q).exp()
        if kind is OpdSignal.jsd:
            mix = torch.logaddexp(p + math.log(beta), q + math.log(1 - beta))
            value = beta * (p.exp() * (p - mix)).sum(1) + (1 - beta) * (q.exp() * (q - mix)).sum(1)
            return value, (1 - beta) * (q - mix)
        return self._topk(q, p)

    def _topk(self, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        reverse = self.kind is OpdSignal.topk_reverse
        index = (q if reverse else p).topk(min(self.settings.topk, q.shape[1]), dim=1).indices
        few_q, few_p = _buckets(q, index), _buckets(p, index)
        if reverse:
            value, slope = (few_q.exp() * (few_q - few_p)).sum(1), few_q - few_p
        else:
            value, slope = (few_p.exp() * (few_p - few_q)).sum(1), -(few_p - few_q).exp()
        return value, _spread(slope, index, q.shape[1])

    def values(self, logits: Tensor, rows: slice) -> Tensor:
        """`[n, 1]` divergences."""
        q = logits.sub_(logits.logsumexp(1, keepdim=True))
        return self._value_and_slope(q, self._teacher(rows, q))[0].unsqueeze(1)

    def grad_logits(self, logits: Tensor, rows: slice, upstream: Tensor) -> Tensor:
        """d D / d z_v = q_v (s_v - sum_u q_u s_u) with s the slope by probabilities."""
        q = logits.sub_(logits.logsumexp(1, keepdim=True))
        slope = self._value_and_slope(q, self._teacher(rows, q))[1]
        probs = q.exp_()
        centred = slope - (probs * slope).sum(1, keepdim=True)
        return centred.mul_(probs).mul_(upstream)


def token_divergence(
    hidden: Tensor,
    weight: Tensor,
    teacher: tuple[Tensor, Tensor],
    settings: DivergenceSettings,
    options: HeadOptions,
) -> Tensor:
    """Divergence of each token's distribution from the teacher's, nats.

    Args:
        hidden: [N, H] policy hidden states at the predicting positions (gradient).
        weight: [V, H] policy output matrix (gradient).
        teacher: hidden states [N, H_teacher] at the same positions and output matrix [V', H_teacher].
        settings: which divergence.
        options: real vocabulary, chunk, temperature of the policy.

    Returns:
        [N].
    """
    rule = DivergenceRule(settings, teacher[0].detach(), teacher[1].detach(), options)
    return chunked_head(hidden, weight, rule, options).squeeze(1)
