"""Frozen models that score tokens: the teacher's side of distillation.

Owns the `TeacherScorer` protocol and two scorers in the learner's own engine: a second model, and the base
under the policy's adapters, which costs no memory.
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
from onpol_cli.learner.parallel import World
from onpol_cli.learner.weights import adapters_off


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
        world: processes that shard the model; every one of them must then call the same methods.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        vocab: int,
        config: LearnerConfig,
        device: torch.device,
        temperature: float = 1.0,
        world: World | None = None,
    ) -> None:
        model.eval()
        model.requires_grad_(False)
        super().__init__(model, vocab, config, device, temperature, world)


class BaseScorer:
    """The policy with its adapters off: the frozen start as reference or teacher, from the weights already here.

    Args:
        policy: a model with adapters; its other weights are frozen.
        temperature: of the base's distribution.
    """

    def __init__(self, policy: TokenModel, temperature: float = 1.0) -> None:
        self.base = policy.at(temperature)

    def logprobs(self, sequences: Sequence[Pair]) -> list[Tensor]:
        """Log-probs `[T]` of each completion's tokens, nats, on the CPU."""
        with adapters_off(self.base.model):
            return self.base.logprobs(sequences)

    def hidden(self, sequences: Sequence[Pair]) -> list[Tensor]:
        """Last hidden states `[T, H]` that predict each completion's tokens, on the CPU."""
        with adapters_off(self.base.model):
            return self.base.hidden(sequences)

    @property
    def output_matrix(self) -> Tensor:
        """`[V, H]` matrix from hidden states to logits, the policy's own."""
        return self.base.output_matrix
