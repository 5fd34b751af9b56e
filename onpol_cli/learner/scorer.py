"""Frozen models that score tokens: the teacher's side of distillation.

Owns the `TeacherScorer` protocol and the scorer that runs a second model in the learner's own engine.
The vLLM scorer lives in `rollout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from onpol_cli.core.config import LearnerConfig
from onpol_cli.learner.forward import Pair, TokenModel


class TeacherScorer(Protocol):
    """Something that knows a frozen model's view of given completions."""

    def logprobs(self, sequences: Sequence[Pair]) -> list[Tensor]:
        """Log-probs `[T]` of each completion's tokens, nats, on the CPU."""
        ...

    def hidden(self, sequences: Sequence[Pair]) -> list[Tensor]:
        """Last hidden states `[T, H]` that predict each completion's tokens, on the CPU."""
        ...

    @property
    def output_matrix(self) -> Tensor:
        """`[V, H]` matrix from hidden states to logits."""
        ...


class LocalScorer(TokenModel):
    """A frozen model in this process; same chunking and numerics as the learner.

    Args:
        model: the teacher, set to evaluation and frozen.
        vocab: number of real tokens.
        config: token budget, chunk, autocast.
        device: where it runs.
        temperature: of the teacher's distribution.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocab: int,
        config: LearnerConfig,
        device: torch.device,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(model, vocab, config, device, temperature)
        self.model.eval()
        self.model.requires_grad_(False)
