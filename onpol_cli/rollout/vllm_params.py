"""What vLLM is asked for: every sampling parameter in full, and a vocabulary without padded rows.

Owns the request fields shared by the engine in process and by servers, and the checks on what comes
back. A field left out would be filled from a checkpoint's `generation_config.json`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from onpol_cli.core.config import Dtype, RolloutConfig, SamplingConfig
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.core.types import Finish, Rollout
from onpol_cli.rollout.engine import HEAD, Prompt

SEED_RANGE = 2**63 - 1
CPU_BLOCK = 32
"""Cache block of the CPU build, tokens: its default of 128 would leave short prompts unshared."""
CPU_STEP_TOKENS = 8192
"""Most tokens that one step of the CPU build computes."""
ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM (0.32) can reserve adapters for."""


def request_fields(prompt: Prompt, sample: int, sampling: SamplingConfig, eos: int | None) -> dict[str, Any]:
    """Sampling parameters of one rollout, by the names that `SamplingParams` and the servers share."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": max(sampling.top_k, 0),
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": prompt.sample_seed(sample) % SEED_RANGE,
        "max_tokens": prompt.limit(sample, sampling),
        "min_tokens": 0,
        "n": 1,
        "logprobs": 0,  # of the sampled token only
        # the policy tokenizer's end of sequence and nothing that a checkpoint adds to it
        "ignore_eos": True,
        "stop_token_ids": [] if eos is None else [eos],
    }


def hf_overrides(config: RolloutConfig) -> dict[str, Any]:
    """Changes to a checkpoint's configuration: float32 logits, whatever the format of the layers.

    Logits rounded to bf16 are most of what separates the sampler's log-probs from the learner's (docs/gpu.md). Versions
    of vLLM that know `head_dtype` for pooling models only go on without.
    """
    return {} if config.dtype is Dtype.float32 else {"head_dtype": "float32"}


def cpu_step_tokens(max_batch: int, context: int) -> int:
    """Token budget of one step of the CPU build: every prompt fits whole.

    With a prompt cut over two steps (chunked prefill, which is therefore off) and a seeded request, the CPU build
    (0.32) takes a draw back from a random generator that cannot go back: "CPU Generator does not use offset".
    """
    return max(context, min(CPU_STEP_TOKENS, max_batch * context))


def adapter_rank(config: RolloutConfig, gpu: bool) -> int:
    """The smallest rank that vLLM offers and an adapter of `rollout.max_lora_rank` fits into.

    Raises:
        OnpolError: it offers none, or no adapter in this number format.
    """
    if gpu and config.dtype is Dtype.float32:  # its Triton kernels assert float16 or bfloat16 (0.24 to 0.33)
        raise OnpolError(
            "rollout.lora_sync=adapter on a GPU needs rollout.dtype=bfloat16: vLLM has no kernels for "
            "float32 adapters. Or use rollout.lora_sync=merged."
        )
    largest = config.max_lora_rank
    found = next((rank for rank in ADAPTER_RANKS if rank >= largest), None)
    if found is None:
        raise OnpolError(
            f"rollout.max_lora_rank={largest} is beyond vLLM's {ADAPTER_RANKS[-1]}. Use rollout.lora_sync=merged."
        )
    return found


def make_rollout(
    prompt: Prompt, sample: int, ids: Sequence[int], logprobs: Sequence[float | None], text: str, *,
    eos: int | None, vocabulary: int, version: int,
) -> Rollout:
    """A rollout from an engine's answer, after checking it.

    Raises:
        RunFailed: no token, a missing or impossible log-prob, or a token outside the real vocabulary.
    """
    where = f"Sample {sample} of {prompt.problem_id!r}"
    if not ids:
        raise RunFailed(f"{where}: vLLM returned no token. Look into its log; resume with --resume.")
    if len(logprobs) != len(ids) or not all(map(_usable, logprobs)):
        raise RunFailed(
            f"{where}: vLLM returned {len(ids)} tokens without a usable log-prob for each. A missing log-prob is never "
            "taken as 0; the server must run with logprobs enabled (--logprobs-mode processed_logprobs)."
        )
    if max(ids) >= vocabulary:
        raise RunFailed(
            f"{where}: vLLM sampled token {max(ids)} of a vocabulary of {vocabulary}: it serves padded rows or another "
            "model. Serve the policy's own checkpoint."
        )
    return Rollout(
        problem_id=prompt.problem_id,
        sample=sample,
        prompt_ids=prompt.ids,
        completion_ids=tuple(ids),
        sampler_logprobs=tuple(float(value) for value in logprobs if value is not None),
        finish=Finish.STOP if ids[-1] == eos else Finish.LENGTH,
        text=text,
        weight_version=version,
    )


def _usable(logprob: float | None) -> bool:
    """Whether it can be the log of a probability (with float32's rounding)."""
    return logprob is not None and math.isfinite(logprob) and logprob < 1e-4


def real_rows(weights: Iterable[tuple[str, Tensor]], vocabulary: int) -> Iterator[tuple[str, Tensor]]:
    """`weights` with the embedding and output matrices cut to the real vocabulary."""
    for name, tensor in weights:
        cut = name == HEAD or name.endswith("embed_tokens.weight")
        yield name, tensor[:vocabulary] if cut else tensor


class CompleteWeights:
    """A stream of weights that refuses to end before every expected name has passed.

    vLLM loads what it is given and says nothing of the rest; with tied embeddings and no
    `lm_head.weight` the CPU build (0.32) keeps the packed output layer of the old weights.

    Args:
        weights: names and tensors.
        expected: names of the first sync; empty the first time.
    """

    def __init__(self, weights: Iterable[tuple[str, Tensor]], expected: set[str]) -> None:
        self.weights, self.expected = weights, expected | {HEAD}
        self.seen: set[str] = set()

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.weights:
            self.seen.add(name)
            yield name, tensor
        self.check()

    def check(self) -> None:
        """Raise `OnpolError` if a name is missing."""
        missing = sorted(self.expected - self.seen)
        if missing:
            raise OnpolError(
                f"Weight sync: {len(missing)} weights are missing, first {missing[0]!r}. Send all of them, {HEAD} "
                "included even where it is tied to the embeddings: vLLM would go on sampling with the old ones."
            )
