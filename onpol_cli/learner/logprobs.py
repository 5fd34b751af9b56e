"""Token log-probabilities and entropies from hidden states.

`log p(y) = z_y - log sum_v exp z_v` and `H = -sum_v p_v log p_v`, in nats, over the real vocabulary,
`z = hidden @ weight.T / temperature`. Owns the formulas and their derivatives; chunking is `head`'s.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onpol_cli.learner.head import HeadOptions, chunked_head


class TokenRule:
    """Log-prob of given tokens and, optionally, the entropy of the distribution.

    Args:
        targets: [N] token ids.
        entropy: add the entropy as a second column.
        entropy_grad: let gradient flow through the entropy (off where it is only watched: cheaper).
    """

    def __init__(self, targets: Tensor, entropy: bool, entropy_grad: bool) -> None:
        self.targets = targets
        self.entropy = entropy
        self.entropy_grad = entropy and entropy_grad
        self.columns = 2 if entropy else 1
        self._log_z: dict[int, Tensor] = {}
        self._entropy: dict[int, Tensor] = {}

    def values(self, logits: Tensor, rows: slice) -> Tensor:
        """`[n, 1 or 2]`: log-prob, entropy."""
        picked = logits.gather(1, self.targets[rows, None])
        top = logits.amax(1, keepdim=True)
        shifted = logits.sub_(top)
        weights = shifted.exp()
        mass = weights.sum(1, keepdim=True)
        log_z = top + mass.log()
        self._log_z[rows.start] = log_z
        if not self.entropy:
            return picked - log_z
        # H = log Z - sum_v p_v z_v, with z shifted by its maximum; vecdot avoids a third [n, V] buffer.
        mean = torch.linalg.vecdot(weights, shifted).unsqueeze(1) / mass
        entropy = mass.log() - mean
        self._entropy[rows.start] = entropy
        return torch.cat([picked - log_z, entropy], 1)

    def grad_logits(self, logits: Tensor, rows: slice, upstream: Tensor) -> Tensor:
        """d log p_y / d z_v = [v = y] - p_v;  d H / d z_v = -p_v (log p_v + H)."""
        logp = logits.sub_(self._log_z[rows.start])
        picked = upstream[:, :1]
        if self.entropy_grad:
            slope = upstream[:, 1:]
            factor = (logp * slope).add_(picked + slope * self._entropy[rows.start])
            grad = logp.exp_().mul_(factor).neg_()
        else:
            grad = logp.exp_().mul_(-picked)
        return grad.scatter_add_(1, self.targets[rows, None], picked.to(grad.dtype))


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
    return chunked_head(hidden, weight, TokenRule(targets, False, False), options).squeeze(1)


def token_logprobs_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, options: HeadOptions, entropy_grad: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of `targets` and entropies in one pass, both `[N]`, nats.

    Args are those of `token_logprobs`; the entropy carries gradient only with `entropy_grad`.
    """
    both = chunked_head(hidden, weight, TokenRule(targets, True, entropy_grad), options)
    logprobs, entropy = both.unbind(1)
    return logprobs, entropy if entropy_grad else entropy.detach()
