"""Token log-probabilities and entropies from hidden states, over vocabularies of any size.

`log p(y) = z_y - log sum_v exp z_v` and `H = -sum_v p_v log p_v`, in nats, over the real vocabulary,
`z = hidden @ weight.T / temperature`. Owns the formulas, their derivatives, and two ways through the
output matrix that never hold the logits:

- blocks of the *vocabulary* with a running log-sum-exp; backward recomputes a block, and writes its
  rows of the weight gradient once (`token_logprobs`, for losses whose slope is known only afterwards);
- chunks of *tokens* whose gradient is taken in the forward pass already, for a weighted sum of
  log-probs whose weights are known beforehand (`weighted_nll`): three matrix products instead of four.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from onpol_cli.learner.head import HeadOptions, chunk_logits, chunks

ALIGNED = 64
"""Blocks of the vocabulary start at multiples of this: bf16 products want rows aligned to 16 bytes, 8 numbers."""
TILE = 4096
"""Tokens that share a pass over the vocabulary."""
SMALL, CPU_LIMIT = 2**20, 2**23
"""Logits at a time: at least `SMALL` whatever `chunk` says; on a CPU at most `CPU_LIMIT`, larger ones are slower."""


def _blocks(tokens: int, like: Tensor, options: HeadOptions) -> Iterator[slice]:
    """Slices of the vocabulary such that a block's logits stay within `chunk` whole rows' worth."""
    limit = max(options.chunk * options.vocab, SMALL)
    if not like.is_cuda:
        limit = min(limit, CPU_LIMIT)
    return chunks(options.vocab, max(ALIGNED, limit // max(1, tokens) // ALIGNED * ALIGNED))


def _block_logits(hidden: Tensor, weight: Tensor, block: slice, options: HeadOptions) -> Tensor:
    own = HeadOptions(block.stop - block.start, options.chunk, options.temperature)
    return chunk_logits(hidden, weight[block], own)


def _place(targets: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Column `[n, 1]` of each target inside `block` (clamped) and whether it lies there."""
    column = (targets - block.start)[:, None]
    size = block.stop - block.start
    return column.clamp(0, size - 1), (column >= 0) & (column < size)


class _Running:
    """Sums over the vocabulary seen so far, relative to the running maximum, `[n, 1]` each."""

    def __init__(self, entropy: bool) -> None:
        self.entropy = entropy
        self.top: Tensor | None = None
        self.mass = self.moment = torch.empty(0)

    def add(self, logits: Tensor) -> None:
        """Take a block of logits `[n, size]`, which is overwritten."""
        top = logits.amax(1, keepdim=True)
        old = self.top
        if old is not None:
            top = torch.maximum(top, old)
        shifted = logits.sub_(top)
        weights = shifted.exp() if self.entropy else shifted.exp_()
        mass = weights.sum(1, keepdim=True)
        # sum of e^(z - top) (z - top); vecdot needs no third [n, size] buffer.
        moment = torch.linalg.vecdot(weights, shifted).unsqueeze(1) if self.entropy else mass
        if old is not None:
            shift = old - top
            factor = shift.exp()
            moment = moment + factor * (self.moment + self.mass * shift)
            mass = mass + factor * self.mass
        self.top, self.mass, self.moment = top, mass, moment

    def results(self) -> tuple[Tensor, Tensor]:
        """Log-sum-exp and entropy (meaningless unless asked for), `[n, 1]` each."""
        assert self.top is not None
        log_mass = self.mass.log()
        return self.top + log_mass, log_mass - self.moment / self.mass


class _TokenHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, options: HeadOptions, entropy: tuple[bool, bool]
    ) -> Tensor:
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        out = torch.empty(len(hidden), 2, dtype=wide, device=hidden.device)
        log_z = torch.empty(len(hidden), 1, dtype=wide, device=hidden.device)
        for rows in chunks(len(hidden), TILE):
            running = _Running(entropy[0])
            picked = torch.zeros_like(log_z[rows])
            for block in _blocks(rows.stop - rows.start, hidden, options):
                logits = _block_logits(hidden[rows], weight, block, options)
                column, inside = _place(targets[rows], block)
                picked = torch.where(inside, logits.gather(1, column), picked)
                running.add(logits)
            log_z[rows], own_entropy = running.results()
            out[rows] = torch.cat([picked - log_z[rows], own_entropy], 1)
        ctx.save_for_backward(hidden, weight, targets, log_z, out)
        ctx.options, ctx.slope = options, entropy[0] and entropy[1]
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, log_z, out = ctx.saved_tensors
        options: HeadOptions = ctx.options
        hidden_grad = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        weight_grad = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for rows in chunks(len(hidden), TILE):
            slope = (upstream[0][rows], out[rows, 1:]) if ctx.slope else (upstream[0][rows, :1], None)
            narrow = hidden[rows].to(weight.dtype)
            for block in _blocks(rows.stop - rows.start, hidden, options):
                logits = _block_logits(hidden[rows], weight, block, options)
                grad = _grad_logits(logits, log_z[rows], slope, _place(targets[rows], block))
                if options.temperature != 1.0:
                    grad.div_(options.temperature)
                grad = grad.to(weight.dtype)
                if hidden_grad is not None:
                    if hidden.dtype == weight.dtype:
                        hidden_grad[rows].addmm_(grad, weight[block])
                    else:
                        hidden_grad[rows] += grad @ weight[block]
                if weight_grad is not None:
                    weight_grad[block].addmm_(grad.T, narrow)
        return hidden_grad, weight_grad, None, None, None


def _grad_logits(
    logits: Tensor, log_z: Tensor, slope: tuple[Tensor, Tensor | None], place: tuple[Tensor, Tensor]
) -> Tensor:
    """d log p_y / d z_v = [v = y] - p_v;  d H / d z_v = -p_v (log p_v + H). Overwrites `logits`.

    Args:
        logits: [n, size].
        log_z: [n, 1].
        slope: upstream [n, 1 or 2] and the entropy [n, 1] if it carries gradient.
        place: column of the target in this block and whether it lies there.
    """
    logp = logits.sub_(log_z)
    upstream, entropy = slope
    picked = upstream[:, :1]
    if entropy is None:
        grad = logp.exp_().mul_(-picked)
    else:
        factor = (logp * upstream[:, 1:]).add_(picked + upstream[:, 1:] * entropy)
        grad = logp.exp_().mul_(factor).neg_()
    column, inside = place
    return grad.scatter_add_(1, column, torch.where(inside, picked, 0.0).to(grad.dtype))


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, options: HeadOptions) -> Tensor:
    """Log-probabilities of `targets`, nats.

    Args:
        hidden: [N, H] hidden state that predicts each target.
        weight: [V, H] output matrix.
        targets: [N] token ids below `options.vocab`.
        options: vocabulary, chunk, temperature.

    Returns:
        [N].
    """
    both = _TokenHead.apply(hidden, weight, targets, options, (False, False))
    assert isinstance(both, Tensor)
    return both[:, 0]


def token_logprobs_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, options: HeadOptions, entropy_grad: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of `targets` and entropies in one pass, both `[N]`, nats.

    Args are those of `token_logprobs`; the entropy carries gradient only with `entropy_grad`.
    """
    both = _TokenHead.apply(hidden, weight, targets, options, (True, entropy_grad))
    assert isinstance(both, Tensor)
    logprobs, entropy = both.unbind(1)
    return logprobs, entropy if entropy_grad else entropy.detach()


class _WeightedNll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, options: HeadOptions
    ) -> tuple[Tensor, Tensor]:
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        logprobs = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        weight_grad = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        real = slice(0, options.vocab)
        size = max(options.chunk, SMALL // options.vocab)
        for rows in chunks(len(hidden), size):
            logits = chunk_logits(hidden[rows], weight, options)
            column = targets[rows, None]
            picked = logits.gather(1, column)
            top = logits.amax(1, keepdim=True)
            mass = logits.sub_(top).exp_().sum(1, keepdim=True)
            logprobs[rows] = (picked - top - mass.log()).squeeze(1)
            slope = (weights[rows, None] / options.temperature).to(wide)
            grad = logits.mul_(slope / mass).scatter_add_(1, column, -slope).to(weight.dtype)
            if hidden_grad is not None:
                hidden_grad[rows] = (grad @ weight[real]).to(hidden.dtype)
            if weight_grad is not None:
                weight_grad[real].addmm_(grad.T, hidden[rows].to(weight.dtype))
            del logits, grad  # else the next chunk's logits exist beside them
        ctx.grads = hidden_grad, weight_grad
        ctx.mark_non_differentiable(logprobs)
        return -(weights.to(wide) * logprobs).sum(), logprobs

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        factor = upstream[0]
        grads = [None if grad is None else grad.mul_(factor.to(grad.dtype)) for grad in ctx.grads]
        ctx.grads = None, None
        return grads[0], grads[1], None, None, None


def weighted_nll(
    hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, options: HeadOptions
) -> tuple[Tensor, Tensor]:
    """`-sum_t w_t log p(y_t)` and the log-probs `[N]` (without gradient).

    The gradients are taken in the forward pass and only scaled by backward, once.

    Args:
        hidden: [N, H].
        weight: [V, H] output matrix.
        targets: [N] token ids below `options.vocab`.
        weights: [N] known beforehand; no gradient flows to them.
        options: vocabulary, chunk, temperature.
    """
    total, logprobs = _WeightedNll.apply(hidden, weight, targets, weights.detach(), options)
    return total, logprobs
