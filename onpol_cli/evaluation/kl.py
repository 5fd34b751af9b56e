"""KL between two models on each other's samples, exact over the vocabulary at every position.

KL(p || q) = mean over tokens y_t sampled from p of sum_v p(v | y_<t) log(p(v | y_<t) / q(v | y_<t)), nats per
token, denominator = sampled tokens. The inner sum is exact, so the only noise is which prefixes were drawn.
Owns no sampling: callers bring the rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

Ids = Sequence[int]


class States(Protocol):
    """A model that gives hidden states; `learner.scorer.LocalScorer` is one."""

    vocab: int

    @property
    def output_matrix(self) -> Tensor:
        """`[V, H]`."""
        ...

    def hidden(self, sequences: Sequence[tuple[Ids, Ids]]) -> list[Tensor]:
        """`[T, H]` per completion."""
        ...


@torch.no_grad()
def token_kl(
    p_hidden: Tensor, p_matrix: Tensor, q_hidden: Tensor, q_matrix: Tensor, vocab: int, chunk: int = 256
) -> Tensor:
    """KL(p || q) at each position.

    Args:
        p_hidden: [N, H_p] states of p.
        p_matrix: [V, H_p] its output matrix; rows from `vocab` on are padding.
        q_hidden: [N, H_q] states of q at the same positions.
        q_matrix: [V, H_q].
        vocab: real tokens.
        chunk: positions at a time.

    Returns:
        [N] nats, float32.
    """
    parts = []
    for start in range(0, len(p_hidden), chunk):
        rows = slice(start, start + chunk)
        log_p = _log_softmax(p_hidden[rows], p_matrix, vocab)
        log_q = _log_softmax(q_hidden[rows], q_matrix, vocab)
        parts.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return torch.cat(parts) if parts else torch.zeros(0)


def _log_softmax(hidden: Tensor, matrix: Tensor, vocab: int) -> Tensor:
    weight = matrix[:vocab]
    return torch.log_softmax(hidden.to(weight.device, torch.float32) @ weight.float().T, -1)


def mean_kl(p: States, q: States, sequences: Sequence[tuple[Ids, Ids]]) -> tuple[float, int]:
    """KL(p || q) in nats per token over completions sampled from p, and the number of tokens."""
    p_hidden, q_hidden = torch.cat(p.hidden(sequences)), torch.cat(q.hidden(sequences))
    values = token_kl(p_hidden, p.output_matrix, q_hidden, q.output_matrix, min(p.vocab, q.vocab))
    return float(values.mean()), len(values)
