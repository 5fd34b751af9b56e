"""The output matrix in chunks of tokens: per-token numbers whose full logits are never held.

Owns how a chunk of logits is made, everywhere in onpol, and the autograd function that divergences go through
(log-probs have their own, in `logprobs`). What is computed from a chunk there is a `Rule`
(`divergence.DivergenceRule`); this module knows none.

Why hand-written: autograd (also with checkpointing) makes one `[V, H]` weight gradient per chunk and
adds them up. Here backward recomputes a chunk's logits, turns them in place into their gradient, and
adds its share to a single buffer, so the peak is one or two chunks of logits above inputs and gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Rule(Protocol):
    """Per-token numbers as a function of logits, with its derivative.

    Both methods may overwrite `logits: [n, V]` (float32, or float64 in tests), the rows `rows` of the
    whole batch, restricted to the real vocabulary and already divided by the temperature.
    """

    columns: int
    """Numbers per token."""

    def values(self, logits: Tensor, rows: slice) -> Tensor:
        """`[n, columns]` numbers of these rows. May keep small per-row state for `grad_logits`."""
        ...

    def grad_logits(self, logits: Tensor, rows: slice, upstream: Tensor) -> Tensor:
        """`[n, V]`: sum over columns of `upstream: [n, columns]` times d value / d logits."""
        ...


@dataclass(frozen=True)
class HeadOptions:
    """How logits are formed from hidden states.

    Attributes:
        vocab: rows of the output matrix that are real tokens; padded rows beyond are never read.
        chunk: tokens whose logits exist at a time.
        temperature: logits are divided by it.
    """

    vocab: int
    chunk: int = 256
    temperature: float = 1.0


def chunks(total: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` rows that cover `total`."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def chunk_logits(hidden: Tensor, weight: Tensor, options: HeadOptions) -> Tensor:
    """Logits `[n, vocab]` in float32 (float64 if `hidden` is), divided by the temperature.

    Half-precision operands on CUDA are multiplied as they are with float32 accumulation *and* output;
    rounding logits to bf16 would cost up to 0.06 nats at a logit of 20.

    Args:
        hidden: [n, H].
        weight: [V, H] output matrix, V >= vocab.
    """
    rows = weight.detach()[: options.vocab]
    if hidden.dtype == rows.dtype and hidden.dtype in (torch.float32, torch.float64):
        logits = hidden @ rows.T
    elif hidden.is_cuda:
        logits = torch.mm(hidden.to(rows.dtype), rows.T, out_dtype=torch.float32)
    else:
        logits = (hidden.to(rows.dtype) @ rows.T).float()
    return logits if options.temperature == 1.0 else logits.div_(options.temperature)


class _ChunkedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, rule: Rule, options: HeadOptions) -> Tensor:
        dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        out = torch.empty(len(hidden), rule.columns, dtype=dtype, device=hidden.device)
        for rows in chunks(len(hidden), options.chunk):
            out[rows] = rule.values(chunk_logits(hidden[rows], weight, options), rows)
        ctx.save_for_backward(hidden, weight)
        ctx.rule, ctx.options = rule, options
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        options: HeadOptions = ctx.options
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for rows in chunks(len(hidden), options.chunk):
            grad = ctx.rule.grad_logits(chunk_logits(hidden[rows], weight, options), rows, upstream[0][rows])
            if options.temperature != 1.0:
                grad.div_(options.temperature)
            grad = grad.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (grad @ weight[: options.vocab]).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight[: options.vocab].addmm_(grad.T, hidden[rows].to(weight.dtype))
        return grad_hidden, grad_weight, None, None


def chunked_head(hidden: Tensor, weight: Tensor, rule: Rule, options: HeadOptions) -> Tensor:
    """Apply `rule` to the logits of every row, differentiable in `hidden` and `weight`.

    Args:
        hidden: [N, H] last hidden states (after the final norm) at the predicting positions.
        weight: [V, H] output matrix.
        rule: what to compute; used for this call only (it keeps per-row state for backward).
        options: vocabulary, chunk, temperature.

    Returns:
        [N, rule.columns], float32 (float64 for float64 input).
    """
    result = _ChunkedHead.apply(hidden, weight, rule, options)
    assert isinstance(result, Tensor)
    return result
