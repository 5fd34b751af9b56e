"""Drawing tokens from logits: one uniform number a token, inverse of the cumulative distribution.

Owns the order of the logit processors (vLLM's: repetition penalty, temperature, min_p, top_k, top_p)
and the random numbers. Knows no model and no engine.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from onpol_cli.core.config import SamplingConfig


def uniforms(seed: int, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) of the counter-based stream `seed`; a longer request only appends."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count)


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


def draw(logits: Tensor, uniform: Tensor, sampling: SamplingConfig) -> tuple[Tensor, Tensor]:
    """One token a row.

    Token = first index whose cumulative probability exceeds `uniform`. The sum runs in float64: in
    float32 the rare tokens of a 150k vocabulary would add nothing and never be drawn.

    Args:
        logits: [B, V] float32, real vocabulary only.
        uniform: [B] float64 in [0, 1).
        sampling: temperature and cuts; any repetition penalty is already applied.

    Returns:
        tokens: [B] int64.
        logprobs: [B] float32, log-probability of each token under the sampled distribution.
    """
    logprobs = processed_logprobs(logits, sampling)
    if sampling.temperature == 0:
        tokens = logits.argmax(-1, keepdim=True)
    else:
        cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
        # just below the total, so that rounding never points past the last possible token
        target = (uniform * cumulative[:, -1]).unsqueeze(1)
        target = torch.minimum(target, cumulative[:, -1:] * (1.0 - 1e-12))
        tokens = torch.searchsorted(cumulative, target, right=True)
    return tokens.squeeze(1), logprobs.gather(1, tokens).squeeze(1)
