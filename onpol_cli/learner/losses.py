"""The loss components, as *sums* over tokens or pairs.

Every function returns a sum; the learner divides by the component's global count (over micro-batches
and ranks), so a result never depends on how a batch is cut. Owns formulas and signs, knows no model.
All log-probs are in nats; `[N]` runs over the completion tokens of a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onpol_cli.core.config import MethodConfig, RatioMode


def cross_entropy(policy_logprobs: Tensor, weights: Tensor) -> Tensor:
    """`-sum_t w_t log p(y_t)`; denominator: tokens with nonzero weight.

    Args:
        policy_logprobs: [N] with gradient.
        weights: [N].
    """
    return -(weights * policy_logprobs).sum()


def total_advantage(
    advantages: Tensor, teacher_coef: Tensor, teacher_logprobs: Tensor, policy_logprobs: Tensor, clip: float
) -> Tensor:
    """`A + coef * (log p_teacher - log p_policy)`, the bracket clipped to +-`clip` nats if `clip` > 0.

    Positive where the teacher likes the sampled token better than the policy does. `[N]`, no gradient.
    Tokens with coefficient 0 may carry any finite `teacher_logprobs`.
    """
    signal = teacher_logprobs - policy_logprobs.detach()
    if clip > 0:
        signal = signal.clamp(-clip, clip)
    return advantages + teacher_coef * signal


@dataclass(frozen=True)
class Ratios:
    """Importance ratios policy / sampler of a micro-batch.

    Attributes:
        ratio: [N] `exp(policy - sampler)`, untruncated.
        weight: [N] what multiplies the advantage: the ratio after truncation and masks, 0 outside `mask`.
        dropped: [N] bool: trained tokens whose weight the masks set to 0.
    """

    ratio: Tensor
    weight: Tensor
    dropped: Tensor


def importance(
    policy_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, segments: Tensor, method: MethodConfig
) -> Ratios:
    """Ratio of each token, with token-level and sequence-level masks applied.

    A token outside `[ratio_low, ratio_high]` is masked or truncated (`ratio_mode`). A sequence whose
    geometric-mean ratio leaves `[sequence_ratio_low, sequence_ratio_high]`, or with any ratio above
    `sequence_ratio_max`, is masked whole: there sampler and learner disagree too much to be trusted.

    Args:
        policy_logprobs: [N]; only its value is used.
        sampler_logprobs: [N].
        mask: [N] 1 for trained tokens; only these count in the sequence statistics.
        segments: [N] sequence number of each token.
        method: bounds and mode.
    """
    log_ratio = policy_logprobs.detach() - sampler_logprobs
    ratio = log_ratio.exp()
    trained = mask != 0
    keep = trained & _sequences_kept(log_ratio, trained, segments, method)
    weight = ratio
    if method.ratio_mode is RatioMode.mask:
        keep = keep & (ratio >= method.ratio_low) & (ratio <= method.ratio_high)
    elif method.ratio_mode is RatioMode.truncate:
        weight = ratio.clamp(method.ratio_low, method.ratio_high)
    # torch.where, not a product: an infinite ratio times 0 would be NaN.
    return Ratios(ratio, torch.where(keep, weight, 0.0), trained & ~keep)


def _sequences_kept(log_ratio: Tensor, trained: Tensor, segments: Tensor, method: MethodConfig) -> Tensor:
    """`[N]` bool: the token's whole sequence is inside the sequence-level bounds."""
    count = int(segments.max()) + 1 if len(segments) else 0
    values = torch.where(trained, log_ratio, 0.0)
    zeros = torch.zeros(count, dtype=log_ratio.dtype, device=log_ratio.device)
    total = zeros.index_add(0, segments, values)
    tokens = zeros.index_add(0, segments, trained.to(log_ratio.dtype)).clamp(min=1)
    largest = zeros.scatter_reduce(0, segments, values, "amax")
    mean = (total / tokens).exp()
    kept = (mean >= method.sequence_ratio_low) & (mean <= method.sequence_ratio_high)
    kept &= largest.exp() <= method.sequence_ratio_max
    return kept[segments]


def policy_gradient(policy_logprobs: Tensor, weight: Tensor, advantages: Tensor) -> Tensor:
    """`-sum_t [w_t A_t] log p(y_t)`, bracket constant: REINFORCE with importance weights.

    Its gradient is `-sum_t w_t A_t grad log p(y_t)`, for `w` the ratio the gradient of the importance
    sampled objective. Denominator: trained tokens, masked by ratio or not.

    Args:
        policy_logprobs: [N] with gradient.
        weight: [N] from `importance`.
        advantages: [N].
    """
    return -((weight * advantages).detach() * policy_logprobs).sum()


def reference_kl(policy_logprobs: Tensor, reference_logprobs: Tensor, mask: Tensor) -> Tensor:
    """`sum_t exp(d_t) - d_t - 1`, `d = log p_reference - log p_policy`: the k3 estimate of KL(policy || reference)."""
    delta = reference_logprobs - policy_logprobs
    return (mask * (delta.exp() - delta - 1)).sum()


def preference(chosen: Tensor, rejected: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """DPO (arXiv 2305.18290): `-sum_pairs log sigmoid(beta (chosen - rejected))`; denominator: pairs.

    Args:
        chosen: [P] sums over tokens of log p_policy - log p_reference of the preferred completions.
        rejected: [P] the same of the others.
        beta: inverse temperature of the implicit reward.

    Returns:
        The loss sum and the margins `[P]` beta (chosen - rejected), without gradient.
    """
    margin = beta * (chosen - rejected)
    return -torch.nn.functional.logsigmoid(margin).sum(), margin.detach()
