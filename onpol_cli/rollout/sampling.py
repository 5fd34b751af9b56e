"""Drawing tokens from logits: a race of exponential numbers that depend on the rollout and its step alone.

Owns the order of the logit processors (vLLM's: repetition penalty, temperature, min_p, top_k, top_p)
and the random numbers. Knows no model and no engine.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from onpol_cli.core.config import SamplingConfig


def draw_keys(seed: int, count: int) -> np.ndarray:
    """[count, 2] int32 keys of the counter-based stream `seed`, one row a token; a longer request only appends."""
    keys = np.random.Generator(np.random.Philox(key=seed)).integers(0, 2**32, size=(count, 2), dtype=np.uint32)
    return keys.view(np.int32)


def exponentials(keys: Tensor, size: int) -> Tensor:
    """Independent standard exponential numbers [B, size], a function of (key row, column) alone.

    A 32-bit integer finaliser (xor-shift and multiply) of the column under the row's two keys; 31 of its bits u
    give -log(1 - u), whose small values, the ones that win a draw, keep float32's relative precision.

    Args:
        keys: [B, 2] int32.
    """
    bits = torch.arange(size, dtype=torch.int32, device=keys.device).mul_(-1640531535)  # 2^32 / golden ratio
    x = (bits ^ keys[:, :1]).mul_(_signed(0x9E3779B1)).add_(keys[:, 1:])
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        x ^= (x >> shift).bitwise_and_((1 << (32 - shift)) - 1)  # torch shifts in the sign; the mask drops it
        if factor != 1:
            x *= _signed(factor)
    uniform = x.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31)
    return uniform.neg_().log1p_().neg_()


def _signed(value: int) -> int:
    """A 32-bit pattern as a Python int that fits int32."""
    return value - 2**32 if value >= 2**31 else value


def is_plain(sampling: SamplingConfig) -> bool:
    """Whether the distribution is the model's own (temperature 1, nothing cut)."""
    return (
        sampling.temperature == 1.0
        and sampling.top_p == 1.0
        and sampling.top_k <= 0
        and sampling.min_p == 0.0
        and sampling.repetition_penalty == 1.0
    )


def repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits [B, V] of tokens in `seen` [B, V] divided (positive) or multiplied (negative) by `penalty` (CTRL)."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _top_k(logits: Tensor, k: int) -> Tensor:
    """All but the `k` largest of [B, V] at -inf; ties with the k-th stay."""
    smallest = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def _top_p(logits: Tensor, p: float) -> Tensor:
    """All but the smallest set of tokens whose probability reaches `p` at -inf, [B, V]."""
    ordered, order = logits.sort(dim=-1, descending=False)
    below = ordered.softmax(-1).cumsum(-1) <= 1.0 - p
    below[:, -1] = False  # the most likely token always stays
    return logits.masked_fill(torch.zeros_like(below).scatter_(1, order, below), -torch.inf)


def processed_logprobs(logits: Tensor, sampling: SamplingConfig) -> Tensor:
    """Log-probabilities [B, V] of the distribution that is sampled, nats.

    Greedy (temperature 0) reports the model's own distribution at temperature 1, as vLLM does.
    """
    if sampling.temperature > 0 and sampling.temperature != 1.0:
        logits = logits / sampling.temperature
    if sampling.temperature > 0:
        if sampling.min_p > 0:
            floor = logits.max(-1, keepdim=True).values + float(np.log(sampling.min_p))
            logits = logits.masked_fill(logits < floor, -torch.inf)
        if sampling.top_k > 0:
            logits = _top_k(logits, sampling.top_k)
        if sampling.top_p < 1.0:
            logits = _top_p(logits, sampling.top_p)
    return logits.log_softmax(-1)


def draw(logits: Tensor, keys: Tensor, sampling: SamplingConfig) -> tuple[Tensor, Tensor]:
    """One token a row: argmax of probability / exponential number (the exponential race, or Gumbel-max).

    Not the inverse of the cumulative distribution: there a rounding difference of 1e-7 in the logits, which the
    batch around a sequence can cause, moves every later boundary, and over a flat distribution of 150k tokens
    changes one draw in a hundred. Here it changes a draw only where the two best scores are that close.

    Args:
        logits: [B, V] float32, real vocabulary only.
        keys: [B, 2] int32, the random numbers of each row's draw.
        sampling: temperature and cuts; any repetition penalty is already applied.

    Returns:
        tokens: [B] int64.
        logprobs: [B] float32, log-probability of each token under the sampled distribution.
    """
    logprobs = processed_logprobs(logits, sampling)
    if sampling.temperature == 0:
        tokens = logits.argmax(-1, keepdim=True)
    else:
        tokens = logprobs.exp().div_(exponentials(keys, logits.shape[-1])).argmax(-1, keepdim=True)
    return tokens.squeeze(1), logprobs.gather(1, tokens).squeeze(1)
