"""What every rollout engine offers, and the choice of one by configuration.

Owns the `Prompt` noun, the `RolloutEngine` protocol and `build_engine`. Does not sample anything:
`hf.py`, `vllm.py` and `vllm_server.py` do, and each is imported only when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from onpol_cli.core.config import Engine, RolloutConfig, SamplingConfig
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.seeding import derive_seed
from onpol_cli.core.types import Rollout
from onpol_cli.learner.parallel import ALONE, World
from onpol_cli.learner.weights import Adapter

HEAD = "lm_head.weight"
"""Name of the output matrix. Tied models must send it too: vLLM's CPU build keeps a packed copy."""


@dataclass(frozen=True)
class Prompt:
    """One prompt and how many samples are wanted of it.

    Attributes:
        problem_id: copied into every rollout.
        ids: token ids of the prompt.
        samples: number of rollouts.
        seed: rollout i is seeded `derive_seed(seed, i)`, so results do not depend on what else is in the call.
        limits: optional token limit per sample, below `max_new_tokens` (forced ragged ends in benchmarks).
    """

    problem_id: str
    ids: tuple[int, ...]
    samples: int = 1
    seed: int = 0
    limits: tuple[int, ...] = ()

    def sample_seed(self, sample: int) -> int:
        """Seed of rollout number `sample`, 63 bits."""
        return derive_seed(self.seed, sample)

    def limit(self, sample: int, sampling: SamplingConfig) -> int:
        """Most tokens that rollout number `sample` may have."""
        return min(self.limits[sample], sampling.max_new_tokens) if self.limits else sampling.max_new_tokens


@dataclass(frozen=True)
class EngineStats:
    """What the last `generate` did: completion tokens and wall-clock seconds."""

    tokens: int = 0
    seconds: float = 0.0


class RolloutEngine(Protocol):
    """A sampler of completions whose weights can be replaced. A context manager; leaving it closes it."""

    weight_version: int
    """Number of weight syncs received; stamped on every rollout."""
    last_stats: EngineStats

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> list[Rollout]:
        """Rollouts ordered by prompt, then sample."""
        ...

    def sync_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights (Hugging Face names; `lm_head.weight` always included) and raise `weight_version`."""
        ...

    def sync_adapter(self, adapter: Adapter) -> None:
        """Sample with the starting weights and this LoRA adapter from now on, and raise `weight_version`.

        Raises:
            OnpolError: the engine was not built with `rollout.lora_sync=adapter`.
        """
        ...

    def sleep(self) -> None:
        """Give memory back while the learner trains."""
        ...

    def wake(self) -> None:
        """Be ready to generate again."""
        ...

    def close(self) -> None:
        """Release everything; safe to call twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def real_vocabulary(tokenizer: Any, rows: int) -> int:
    """Number of tokens that may be sampled: the tokenizer's, not the padded rows of the output matrix.

    Raises:
        OnpolError: the tokenizer knows more tokens than the model has rows.
    """
    size = len(tokenizer)
    if size > rows:
        raise OnpolError(
            f"The tokenizer has {size} tokens but the model's output matrix has {rows} rows: "
            "they do not belong together. Use the tokenizer that is stored beside the model."
        )
    return size


def reserved_context(config: RolloutConfig, positions: int) -> int:
    """Longest prompt plus completion that a vLLM engine reserves for: `max_context` (0: all), at most `positions`."""
    return min(config.max_context or positions, positions)


def check_prompts(prompts: Sequence[Prompt], sampling: SamplingConfig, vocabulary: int, context: int) -> None:
    """Refuse prompts that no engine could answer.

    Args:
        vocabulary: real vocabulary size.
        context: longest prompt plus completion, tokens.

    Raises:
        OnpolError: an empty prompt, an id outside the vocabulary (a wrong tokenizer), or too long a prompt.
    """
    for prompt in prompts:
        if not prompt.ids:
            raise OnpolError(f"Prompt {prompt.problem_id!r} is empty; a prompt needs at least one token.")
        if max(prompt.ids) >= vocabulary or min(prompt.ids) < 0:
            raise OnpolError(
                f"Prompt {prompt.problem_id!r} holds token id {max(prompt.ids)}, but the sampler's vocabulary has "
                f"{vocabulary} tokens: prompt and sampler use different tokenizers."
            )
        longest = max((prompt.limit(i, sampling) for i in range(prompt.samples)), default=0)
        if len(prompt.ids) + longest > context:
            raise OnpolError(
                f"Prompt {prompt.problem_id!r} has {len(prompt.ids)} tokens and may grow by {longest}, beyond the "
                f"sampler's context of {context} (the model's own, or vLLM's rollout.max_context). Lower "
                "rollout.sampling.max_new_tokens (evaluation: eval.max_new_tokens) or drop the prompt."
            )
        assert not prompt.limits or len(prompt.limits) == prompt.samples, "one limit per sample"


def build_engine(
    config: RolloutConfig,
    model_path: str,
    tokenizer: Any,
    seed: int,
    device: torch.device | str,
    model: Any = None,
    world: World = ALONE,
) -> RolloutEngine:
    """The engine named by `config.engine`, loaded with the weights at `model_path` (or of `model`).

    Args:
        tokenizer: the policy's tokenizer; its length is the real vocabulary and its EOS ends a rollout.
        seed: seeds engine internals; rollouts are seeded by their prompts.
        device: where the hf engine computes.
        model: an already loaded transformers model whose weights are taken; `model_path` then gives the configuration.
        world: the learner's processes. Servers serve all of them; any other engine is each process's own.

    Raises:
        OnpolError: vLLM is asked for and not installed, or model and tokenizer do not fit.
    """
    if config.engine is Engine.hf:
        from onpol_cli.rollout.hf import HfEngine

        return HfEngine(config, model_path, tokenizer, device, model)
    if config.engine is Engine.vllm:
        from onpol_cli.rollout.vllm import VllmEngine

        return VllmEngine(config, model_path, tokenizer, seed, model)
    from onpol_cli.rollout.vllm_server import ServerEngine

    return ServerEngine(config, model_path, tokenizer, seed, model, world)
