"""Where an update falls: which parameters and which tokens training changed, against the base.

The explanation that the experiment leans on is that SFT pushes probability onto tokens the base finds
unlikely, and on-policy methods do not. These are its measurements:
  share of parameters that changed, and by how much (the sparsity argument);
  |change of log p(token)| against the base's surprisal and entropy (Spearman), its Gini coefficient;
  share of trained tokens to which the base gives under 1%.
Pass rate after a forced wrong token is `forced_prefix`'s. Owns no models: scorers arrive as arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Ids = Sequence[int]
UNLIKELY = float(np.log(0.01))
"""Log-probability under which a trained token counts as unlikely to the base, nats."""


class Scores(Protocol):
    """Log-probs and entropies of one completion, `[T]` each, nats."""

    @property
    def logprobs(self) -> Tensor: ...

    @property
    def entropy(self) -> Tensor: ...


class Scoring(Protocol):
    """A model that scores completions; `learner.scorer.LocalScorer` is one."""

    def score(self, sequences: Sequence[tuple[Ids, Ids]]) -> Sequence[Scores]: ...


def gini(values: np.ndarray) -> float:
    """Gini coefficient of non-negative values: 0 when all are equal, towards 1 when few hold everything."""
    ordered = np.sort(np.abs(values))
    total = ordered.sum()
    if len(ordered) == 0 or total == 0:
        return 0.0
    ranks = np.arange(1, len(ordered) + 1)
    return float((2 * (ranks * ordered).sum() / total - (len(ordered) + 1)) / len(ordered))


def parameter_change(base: Mapping[str, Tensor], model: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
    """Share of parameters that differ in bfloat16, and the norm of the change relative to the base's.

    Raises:
        KeyError: the models have different parameters.
    """
    changed = total = 0
    moved = size = 0.0
    for name, value in model:
        old = base[name]
        changed += int((value.bfloat16() != old.bfloat16()).sum())
        total += value.numel()
        moved += float((value.float() - old.float()).square().sum())
        size += float(old.float().square().sum())
    return {"share_changed": changed / max(1, total), "relative_norm": (moved / size) ** 0.5 if size else 0.0}


def token_change(base: Scoring, model: Scoring, sequences: Sequence[tuple[Ids, Ids]]) -> dict[str, float]:
    """How the change of log-probability is spread over the tokens of `sequences`."""
    from scipy.stats import spearmanr

    before, after = base.score(sequences), model.score(sequences)
    old = torch.cat([s.logprobs for s in before]).double().numpy()
    new = torch.cat([s.logprobs for s in after]).double().numpy()
    entropy = torch.cat([s.entropy for s in before]).double().numpy()
    change = np.abs(new - old)
    if len(change) < 3 or np.ptp(change) == 0:
        return {"tokens": float(len(change)), "mean_change": float(change.mean()) if len(change) else 0.0}
    return {
        "tokens": float(len(change)),
        "mean_change": float(change.mean()),
        "gini": gini(change),
        "spearman_surprisal": float(spearmanr(change, -old).statistic),
        "spearman_entropy": float(spearmanr(change, entropy).statistic),
    }


def low_probability_share(base: Scoring, trained: Sequence[tuple[Ids, Ids]]) -> float:
    """Share of trained tokens to which the base gives under 1%."""
    values = torch.cat([s.logprobs for s in base.score(trained)])
    return float((values < UNLIKELY).float().mean())


def wrong_token(base_logits: Tensor, right: int) -> int:
    """The most likely token other than `right`: the mistake that the base itself would make. `base_logits`: [V]."""
    masked = base_logits.clone()
    masked[right] = -torch.inf
    return int(masked.argmax())


def forced_prefixes(
    hidden: Sequence[Tensor], matrix: Tensor, vocab: int, completions: Sequence[Ids], place: float
) -> list[tuple[tuple[int, ...], int]]:
    """Per reference completion, its first tokens with the last replaced by a wrong one, and where that is.

    Args:
        hidden: [T, H] base states that predict each reference token.
        matrix: [V, H] base output matrix.
        place: relative position of the forced token, in [0, 1).
    """
    result = []
    for states, ids in zip(hidden, completions, strict=True):
        at = min(int(place * len(ids)), len(ids) - 1)
        logits = states[at].float() @ matrix[:vocab].float().T.to(states.device)
        result.append(((*ids[:at], wrong_token(logits, ids[at])), at))
    return result


def as_json(**parts: Any) -> dict[str, Any]:
    """The parts of update.json as plain floats."""
    return {
        name: {k: round(float(v), 6) for k, v in part.items()} if isinstance(part, dict) else part
        for name, part in parts.items()
    }
