"""Whether the sampler is the policy: canary, mismatch, noise floor.

Owns the comparison of the log-probs that came with sampled tokens against the learner's for the same
tokens. A sampler with old weights, a cut distribution or another tokenizer trains without any error and
learns nonsense; these numbers are where it shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from onpol_cli.core.config import SamplingConfig
from onpol_cli.core.errors import RunFailed
from onpol_cli.core.types import Rollout
from onpol_cli.learner.parallel import ALONE, World
from onpol_cli.rollout.engine import Prompt, RolloutEngine

Pair = tuple[tuple[int, ...], tuple[int, ...]]
Scorer = Callable[[Sequence[Pair]], list[Tensor]]
"""(prompt ids, completion ids) of many sequences -> log-probs [T] of each completion, nats."""

CANARY_TOKENS = 16


class OutOfSync(RunFailed):
    """The sampler's log-probs are not the learner's."""


@dataclass(frozen=True)
class Mismatch:
    """How far two sets of log-probs of the same tokens are apart.

    Attributes:
        kl: mean over tokens of r - 1 - log r with r = p_other / p_sampler, nats; an unbiased and never
            negative estimate of KL(sampler || other) for tokens drawn from the sampler (k3,
            http://joschu.net/blog/kl-approx.html).
        mean_abs: mean |log p_other - log p_sampler|, nats.
        largest: largest of these.
        tokens: number of tokens compared.
    """

    kl: float
    mean_abs: float
    largest: float
    tokens: int

    def metrics(self, prefix: str) -> dict[str, float]:
        """`<prefix>/kl`, `<prefix>/mean_abs`, `<prefix>/max_abs`."""
        return {f"{prefix}/kl": self.kl, f"{prefix}/mean_abs": self.mean_abs, f"{prefix}/max_abs": self.largest}


def log_ratios(rollouts: Sequence[Rollout], other: Sequence[Tensor]) -> Tensor:
    """log p_other - log p_sampler of every token of all rollouts, [N] float64."""
    pairs = list(zip(rollouts, other, strict=True))
    assert all(len(rollout.completion_ids) == len(logprobs) for rollout, logprobs in pairs), "one value a token"
    return torch.cat([s.double() - torch.tensor(r.sampler_logprobs, dtype=torch.float64) for r, s in pairs])


def mismatch(rollouts: Sequence[Rollout], other: Sequence[Tensor]) -> Mismatch:
    """Sampler log-probs of `rollouts` against `other` log-probs [T] of the same tokens."""
    gap = log_ratios(rollouts, other)
    kl = (gap.exp() - 1 - gap).mean().item()
    return Mismatch(kl, gap.abs().mean().item(), gap.abs().max().item(), len(gap))


def score_rollouts(rollouts: Sequence[Rollout], score: Scorer) -> list[Tensor]:
    """Log-probs [T] of every rollout's tokens according to `score`."""
    return score([(rollout.prompt_ids, rollout.completion_ids) for rollout in rollouts])


def canary(
    engine: RolloutEngine,
    score: Scorer,
    prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    tolerance: float,
    world: World = ALONE,
) -> Mismatch:
    """Sample a few tokens after fixed prompts with fixed seeds, and let the learner score the same tokens.

    Args:
        engine: just synced.
        score: the learner's log-probs with the weights that were sent.
        prompts: a handful, the same every time.
        sampling: the run's own settings, so that a cut distribution shows.
        tolerance: largest allowed difference at any token, nats.
        world: processes that sample and score like this one: all of them stop or none.

    Raises:
        OutOfSync: sampler and learner disagree.
    """
    short = replace(sampling, max_new_tokens=min(CANARY_TOKENS, sampling.max_new_tokens))
    rollouts = engine.generate([replace(prompt, limits=()) for prompt in prompts], short)
    found = worst_of(world.gather(mismatch(rollouts, score_rollouts(rollouts, score))))
    # not "greater than": a NaN must not pass
    if not found.largest <= tolerance:
        raise OutOfSync(_disagreement(found, tolerance, sampling, engine.weight_version))
    return found


def _disagreement(found: Mismatch, tolerance: float, sampling: SamplingConfig, version: int) -> str:
    """The canary's message, with the likeliest cause first."""
    cut = sampling.top_p < 1 or sampling.top_k > 0 or sampling.min_p > 0 or sampling.repetition_penalty != 1
    cause = (
        "The sampler cuts its distribution (top_p, top_k, min_p or a penalty): train with them off (top_p=1, top_k=-1)"
        if cut
        else "The sampler's weights, vocabulary or number format are not the learner's: a sync did not arrive in full, "
        "another tokenizer, or rollout.dtype unlike learner.autocast"
    )
    return (
        f"Canary after weight sync {version}: sampler and learner disagree by up to {found.largest:.3g} nats (mean "
        f"{found.mean_abs:.3g}) on {found.tokens} tokens; {tolerance:g} is allowed (rollout.canary_tolerance). "
        f"{cause}."
    )


def worst_of(found: Sequence[Mismatch]) -> Mismatch:
    """The one with the largest difference; what is not finite is larger than any number."""
    return max(found, key=lambda one: one.largest if math.isfinite(one.largest) else math.inf)


def noise_floor(rollouts: Sequence[Rollout], score: Scorer) -> dict[str, float]:
    """How far learner and sampler are apart with the same weights: pure numerical noise.

    Of token t: log p_learner - log p_sampler. It enters the importance ratio; a teacher in another format or behind
    a server adds noise of its own to the signal, which is not in it.

    Returns:
        `noise/mean`, `noise/std` (nats), `noise/kl`, `noise/max_abs`.
    """
    scores = score_rollouts(rollouts, score)
    gap = log_ratios(rollouts, scores)
    found = mismatch(rollouts, scores)
    return {
        "noise/mean": gap.mean().item(),
        "noise/std": gap.std(unbiased=False).item(),
        "noise/kl": found.kl,
        "noise/max_abs": found.largest,
    }
