"""One model seen as a scorer of sequences: hidden states, token log-probs, entropies.

Owns the forward pass (autocast, layout, which positions are kept) for policy, teacher and reference
alike, so that all of them share chunking and numerics. Knows no loss and no optimiser.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from onpol_cli.core.config import Dtype, LearnerConfig
from onpol_cli.learner import native
from onpol_cli.learner.batch import Layout, Tokens, lay_out, plan
from onpol_cli.learner.head import HeadOptions
from onpol_cli.learner.kernels import compile_layers, steady_attention, use_liger
from onpol_cli.learner.logprobs import token_logprobs, token_logprobs_entropy
from onpol_cli.learner.packed import PackedLayout, pack, plan_packed
from onpol_cli.learner.parallel import World, shard
from onpol_cli.learner.preflight import check_logits
from onpol_cli.learner.weights import evaluating

Pair = tuple[Tokens, Tokens]
"""(prompt_ids, completion_ids)."""
IDLE: Pair = ([0], [0])
"""What a rank computes while others still have micro-batches."""
AnyLayout = Layout | PackedLayout
NATIVE_LIMIT = 1024
"""Longest sequence whose attention scores the native decoder holds as a whole."""


@dataclass(frozen=True)
class TokenScores:
    """What `TokenModel.score` says of one completion: `[T]` each, nats, on the CPU."""

    logprobs: Tensor
    entropy: Tensor


class TokenModel:
    """A causal language model with its real vocabulary and compute settings.

    Args:
        model: transformers model; moved to `device`. If it will be sharded, rank 0's alone need hold weights.
        vocab: number of real tokens (`model.real_vocab`).
        config: token budget, chunk, autocast.
        device: where it runs.
        temperature: logits are divided by it in `logprobs`, `score`.
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
        self.world = world or World()
        self.model = model.to(device) if self.world.size == 1 else model  # type: ignore[arg-type]
        self.vocab = vocab
        self.config = config
        self.device = device
        self.temperature = temperature
        steady_attention(device)
        if self.world.rank == 0:
            check_logits(self.model, vocab)
        trained = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
        wide = torch.float32 in {model.dtype, *trained}  # weights, or adapters on bf16 weights
        self.reduced = wide and config.autocast is Dtype.bfloat16
        if config.liger:
            use_liger(self.model, device)
        if config.compile:
            compile_layers(self.model)
        self.run: Callable[[Callable[[], Tensor]], Tensor] = lambda closure: closure()
        if self.world.size > 1:
            self.run = shard(self.model, config, device)
        alone = self.world.size == 1
        wanted = config.native and not (config.compile or config.liger)
        self.native = wanted and alone and device.type == "cpu" and native.supports(model)

    def at(self, temperature: float) -> TokenModel:
        """The same model, weights shared, scoring at another temperature."""
        twin = copy.copy(self)
        twin.temperature = temperature
        return twin

    @property
    def output_matrix(self) -> Tensor:
        """`[V, H]` matrix from last hidden states to logits, padded rows included."""
        head = self.model.get_output_embeddings()
        weight = head.weight  # type: ignore[union-attr]
        assert isinstance(weight, Tensor)
        return weight

    def options(self, temperature: float | None = None) -> HeadOptions:
        """Head options at `temperature` (default: this model's)."""
        return HeadOptions(self.vocab, self.config.chunk, self.temperature if temperature is None else temperature)

    def autocast(self) -> AbstractContextManager[object]:
        """The forward pass's number format.

        Each weight is used once, so that a cache of autocast's copies would save nothing, and hold all of them until
        the forward pass is over, though layers be recomputed.
        """
        if self.reduced:
            return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)
        return nullcontext()

    @contextmanager
    def products(self) -> Iterator[None]:
        """While it lasts, float32 products may run as TF32 where the layers are bf16 anyway: on CUDA, under autocast.

        These are the output matrix's, forward and backward. TF32 rounds operands to 10 bits (bf16: 7) and keeps float32
        sums and logits. Plain float32 has no tensor cores: at an H100's peak rates (67 and 990 TFLOP/s) the output
        matrix of Qwen3-0.6B would take about five times as long as its layers.
        Set around each use, since vLLM sets the same switch when it starts in this process.
        """
        if self.device.type != "cuda" or self.config.autocast is not Dtype.bfloat16:
            yield
            return
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def _native(self, sequences: Sequence[Pair]) -> bool:
        return self.native and all(len(prompt) + len(completion) <= NATIVE_LIMIT for prompt, completion in sequences)

    def plan(self, units: Sequence[Sequence[Pair]]) -> list[list[int]]:
        """Unit numbers of each micro-batch; the sequences of a unit stay together."""
        if self._native([pair for unit in units for pair in unit]):
            return plan_packed(units, self.config.micro_tokens)
        lengths = [[len(prompt) + len(completion) for prompt, completion in unit] for unit in units]
        return plan(lengths, self.config.micro_tokens)

    def lay_out(self, sequences: Sequence[Pair]) -> AnyLayout:
        """Model input for one micro-batch: packed where the native decoder runs, else right-padded."""
        return pack(sequences) if self._native(sequences) else lay_out(sequences, self.device)

    def hidden_states(self, layout: AnyLayout) -> Tensor:
        """`[N, H]` states (after the final norm) that predict the completion tokens of `layout`.

        Padded layouts need no attention mask: padding is to the right, where causal attention cannot
        see it, so that the attention kernel takes its causal fast path.
        """
        if isinstance(layout, PackedLayout):
            dtype = torch.bfloat16 if self.reduced else self.model.dtype
            return native.decode(self.model, layout, dtype, self.config.gradient_checkpointing)
        with self.autocast():
            states: Tensor = self.model.base_model(input_ids=layout.input_ids, use_cache=False).last_hidden_state
        return states.flatten(0, 1).index_select(0, layout.predict)

    def rounds(self, own: int) -> int:
        """Forward passes that every rank must make: the most that any rank needs (shards are gathered together)."""
        return max(self.world.gather(own))

    @torch.no_grad()
    def _each(self, sequences: Sequence[Pair], compute: Callable[[Tensor, AnyLayout], Tensor]) -> list[Tensor]:
        """`compute` over micro-batches of `sequences`, cut up again per sequence, on the CPU."""
        result: list[Tensor] = [torch.empty(0)] * len(sequences)
        batches = self.plan([[pair] for pair in sequences])
        with evaluating(self.model), self.products():
            for batch in batches + [[]] * (self.rounds(len(batches)) - len(batches)):
                layout = self.lay_out([sequences[index] for index in batch] or [IDLE])
                values = self.run(lambda layout=layout: compute(self.hidden_states(layout), layout)).cpu()  # type: ignore[misc]
                if not batch:
                    continue
                for index, part in zip(batch, values.split(layout.sizes), strict=True):
                    result[index] = part.clone()
        return result

    def logprobs(self, sequences: Sequence[Pair]) -> list[Tensor]:
        """Log-probs `[T]` of each completion given its prompt, nats, on the CPU. No gradient."""
        options = self.options()
        return self._each(sequences, lambda h, layout: token_logprobs(h, self.output_matrix, layout.targets, options))

    def score(self, sequences: Sequence[Pair]) -> list[TokenScores]:
        """Log-probs and entropies of each completion's tokens in one pass. No gradient."""
        options = self.options()

        def both(hidden: Tensor, layout: AnyLayout) -> Tensor:
            return torch.stack(token_logprobs_entropy(hidden, self.output_matrix, layout.targets, options), 1)

        return [TokenScores(*part.unbind(1)) for part in self._each(sequences, both)]

    @torch.no_grad()
    def score_states(self, states: Sequence[Tensor], completions: Sequence[Tokens]) -> list[TokenScores]:
        """As `score`, from states that `hidden` gave for the same completions."""
        targets = torch.tensor([token for completion in completions for token in completion])
        sizes = [len(completion) for completion in completions]
        joined = torch.cat(list(states)).to(self.device)
        with self.products():
            both = token_logprobs_entropy(joined, self.output_matrix, targets.to(self.device), self.options())
        logprobs, entropy = (values.cpu().split(sizes) for values in both)
        return [TokenScores(*parts) for parts in zip(logprobs, entropy, strict=True)]

    def hidden(self, sequences: Sequence[Pair]) -> list[Tensor]:
        """States `[T, H]` that predict each completion's tokens, on the CPU. No gradient."""
        return self._each(sequences, lambda hidden, _: hidden)
