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

All of them are 0 with gradient 0 where q = p. Only q carries gradient. The same pass can tell the policy's entropy
and its log-prob of one token per position, the sampled one. Logits of both models exist for
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


WHOLE = {OpdSignal.topk_reverse: OpdSignal.reverse, OpdSignal.topk_forward: OpdSignal.forward}
"""What the `topk_*` kinds are where k reaches the vocabulary and no tail is left."""


def _buckets(logprobs: Tensor, index: Tensor) -> Tensor:
    """Log-probs `[n, k + 1]` of the tokens `index: [n, k]` and of all others together, of which there must be some."""
    top = logprobs.gather(1, index)
    # Not log(1 - sum of the top): below 1e-7 of probability the tail would drown in rounding.
    tail = logprobs.scatter_(1, index, -math.inf).logsumexp(1, keepdim=True)
    logprobs.scatter_(1, index, top)
    return torch.cat([top, tail], 1)


def _centre_(slope: Tensor, probs: Tensor) -> Tensor:
    """`slope: [n, V]` minus its mean under `probs`, in place.

    Counted from the likeliest outcome's slope first: where that is 1e4 nats, its rounding would exceed the rest.
    """
    slope.sub_(slope.gather(1, probs.argmax(1, keepdim=True)))
    return slope.sub_((probs * slope).sum(1, keepdim=True))


class DivergenceRule:
    """One divergence per token as a function of the policy's logits.

    With q, p log-probs `[n, V]` of policy and teacher, overwritten to hold no third buffer where two will do.

    Args:
        settings: which divergence.
        teacher: hidden states [N, H_teacher] and output matrix [V', H_teacher].
        options: of the policy's logits.
        targets: [N] tokens whose log-prob follows as a second column and the entropy as a third; None: no such columns.
        token_grad: whether the second column carries gradient; the third never does.
    """

    def __init__(
        self,
        settings: DivergenceSettings,
        teacher: tuple[Tensor, Tensor],
        options: HeadOptions,
        targets: Tensor | None = None,
        token_grad: bool = False,
    ) -> None:
        self.columns = 1 if targets is None else 3
        self.targets, self.token_grad = targets, token_grad
        kind = settings.resolved()
        self.kind = WHOLE.get(kind, kind) if settings.topk >= options.vocab else kind
        self.settings = settings
        self.hidden, self.weight = (part.detach() for part in teacher)
        self.options = HeadOptions(options.vocab, options.chunk, settings.teacher_temperature)

    def _teacher(self, rows: slice, like: Tensor) -> Tensor:
        logits = chunk_logits(self.hidden[rows], self.weight, self.options)
        return logits.sub_(logits.logsumexp(1, keepdim=True)).to(like.dtype)

    def _top(self, q: Tensor, p: Tensor) -> Tensor:
        leading = q if self.kind is OpdSignal.topk_reverse else p
        return leading.topk(self.settings.topk, dim=1).indices

    def _value(self, q: Tensor, p: Tensor) -> Tensor:
        """Divergence `[n]`; both arguments are overwritten."""
        if self.kind in WHOLE:
            index = self._top(q, p)
            q, p = _buckets(q, index), _buckets(p, index)
        if self.kind is OpdSignal.jsd:
            beta = self.settings.beta
            mix = self._mixture(p + math.log(beta), q)
            apart = p - mix
            first = p.exp_().mul_(apart).sum(1)
            torch.sub(q, mix, out=apart)
            return beta * first + (1 - beta) * q.exp_().mul_(apart).sum(1)
        if self.kind in (OpdSignal.forward, OpdSignal.topk_forward):
            q, p = p, q
        ratio = p.neg_().add_(q)
        return q.exp_().mul_(ratio).sum(1)

    def _mixture(self, shifted: Tensor, q: Tensor) -> Tensor:
        """`log m` from log(beta p), which is overwritten."""
        return torch.logaddexp(shifted, q + math.log(1 - self.settings.beta), out=shifted)

    def _gradient(self, q: Tensor, p: Tensor) -> Tensor:
        """Derivative `[n, V]` by the logits of q, in the place of `p`; `q` becomes the policy's probabilities.

        With s the slope by probabilities, d D / d z_v = q_v (s_v - sum_u q_u s_u). For the forward KL s is
        -p_v / q_v, which overflows where q_v is small, and the product q_v - p_v is taken instead.
        """
        kind, beta = self.kind, self.settings.beta
        if kind is OpdSignal.topk_reverse:
            index = self._top(q, p)
            few_q, few_p = _buckets(q, index), _buckets(p, index)
            slope = _centre_(few_q - few_p, few_q.exp())
            p.copy_(slope[:, -1:].expand_as(p)).scatter_(1, index, slope[:, :-1])
            return p.mul_(q.exp_())
        if kind is OpdSignal.topk_forward:  # as if the teacher's tail were shared out as the policy's is
            index = self._top(q, p)
            few_q, few_p = _buckets(q, index), _buckets(p, index)
            torch.add(q, few_p[:, -1:] - few_q[:, -1:], out=p).scatter_(1, index, few_p[:, :-1])
        if kind in (OpdSignal.forward, OpdSignal.topk_forward):
            return p.exp_().neg_().add_(q.exp_())
        if kind is OpdSignal.jsd:
            slope = self._mixture(p.add_(math.log(beta)), q).neg_().add_(q).mul_(1 - beta)
        else:
            slope = p.neg_().add_(q)
        return _centre_(slope, q.exp_()).mul_(q)

    def values(self, logits: Tensor, rows: slice) -> Tensor:
        """`[n, columns]`: divergences; with `targets` also their log-probs and the entropies."""
        q = logits.sub_(logits.logsumexp(1, keepdim=True))
        watched = []
        if self.targets is not None:
            watched = [q.gather(1, self.targets[rows, None]), -q.exp().mul_(q).sum(1, keepdim=True)]
        return torch.cat([self._value(q, self._teacher(rows, q)).unsqueeze(1), *watched], 1)

    def grad_logits(self, logits: Tensor, rows: slice, upstream: Tensor) -> Tensor:
        """Derivative by the logits, times `upstream: [n, columns]`."""
        q = logits.sub_(logits.logsumexp(1, keepdim=True))
        grad = self._gradient(q, self._teacher(rows, q)).mul_(upstream[:, :1])
        if self.targets is not None and self.token_grad:  # d log q_y / d z_v = [v = y] - q_v
            token = upstream[:, 1:2]
            grad.addcmul_(q, token, value=-1).scatter_add_(1, self.targets[rows, None], token)
        return grad


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
    rule = DivergenceRule(settings, teacher, options)
    return chunked_head(hidden, weight, rule, options).squeeze(1)


def token_divergence_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    teacher: tuple[Tensor, Tensor],
    settings: DivergenceSettings,
    options: HeadOptions,
    token_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Divergences, log-probs of `targets: [N]` and entropies in one pass, each `[N]`, nats.

    Args are those of `token_divergence`; the log-probs carry gradient only with `token_grad`, entropies none.
    """
    rule = DivergenceRule(settings, teacher, options, targets, token_grad)
    values, logprobs, entropy = chunked_head(hidden, weight, rule, options).unbind(1)
    return values, logprobs if token_grad else logprobs.detach(), entropy.detach()
