"""Sampling through the transformers module itself, for architectures that `lean.py` does not compute.

Owns the same decoder interface on top of a transformers `DynamicCache`. Slower: prompts are padded on
the left and a batch is filled only when it is empty. Holds a model of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from onpol_cli.core.errors import OnpolError
from onpol_cli.learner.head import HeadOptions, chunk_logits
from onpol_cli.rollout.engine import HEAD


class ModulePrefix:
    """Prefilled prompts: logits [P, V], their cache, mask [P, L] of real tokens, lengths."""

    def __init__(self, logits: Tensor, cache: Any, mask: Tensor, lengths: list[int]) -> None:
        self.logits, self.cache, self.mask, self.lengths = logits, cache, mask, lengths


class Float32Logits(torch.nn.Module):
    """An output matrix whose logits are float32 below layers of any format, as `lean.py` and the learner have them.

    A CPU needs the matrix itself in float32: below bf16 layers it is its own one, tied to the embeddings or not.
    """

    def __init__(self, head: Any, device: torch.device) -> None:
        super().__init__()
        wide = head.weight.dtype if device.type == "cuda" else torch.float32
        same = head.weight.dtype == wide  # then a tied matrix stays tied
        self.weight = head.weight if same else torch.nn.Parameter(torch.empty_like(head.weight, dtype=wide))
        self.bias = None if head.bias is None else torch.nn.Parameter(torch.empty_like(head.bias, dtype=wide))

    def forward(self, states: Tensor) -> Tensor:
        """Logits [..., V] of states [..., E]."""
        logits = chunk_logits(states.flatten(0, -2), self.weight, HeadOptions(len(self.weight)))
        if self.bias is not None:
            logits += self.bias
        return logits.view(*states.shape[:-1], -1)


class ModuleDecoder:
    """A transformers causal LM with a growing cache."""

    continuous = False

    def __init__(self, model: Any, vocabulary: int, dtype: torch.dtype, device: torch.device) -> None:
        from transformers import AutoModelForCausalLM

        # Built from the configuration, not copied: the policy may carry adapters. In `dtype` from the start, not
        # cast: that would round the rotary frequencies too, which transformers keeps in float32.
        fresh: Any = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), dtype=dtype)
        fresh.set_output_embeddings(Float32Logits(fresh.get_output_embeddings(), device))
        self.model = fresh.to(device).eval().requires_grad_(False)
        self.vocabulary, self.device = vocabulary, device
        self.cache: Any = None
        self.mask = torch.zeros(0, 0, dtype=torch.long, device=device)

    @property
    def active(self) -> int:
        """Sequences in the cache."""
        return self.mask.shape[0]

    @torch.no_grad()
    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy every weight in.

        Raises:
            OnpolError: a weight is missing or unknown.
        """
        places = self.model.state_dict()
        waiting = {*places, HEAD}
        for name, tensor in weights:
            if name not in places:
                raise OnpolError(f"Weight sync: the sampler has no weight named {name!r}.")
            places[name].copy_(tensor)
            waiting.discard(name)
        if waiting:
            raise OnpolError(
                f"Weight sync: {len(waiting)} weights are missing, first {sorted(waiting)[0]!r}. "
                f"Send all of them, {HEAD} included."
            )

    def bytes_per_token(self) -> int:
        """Cache bytes of one position of one sequence (an upper bound: no shared key heads assumed)."""
        config = self.model.config
        return int(2 * config.num_hidden_layers * config.hidden_size * next(self.model.parameters()).element_size())

    def held_bytes(self) -> int:
        """None: between calls there is no cache."""
        return 0

    def reserve(self, slots: int, length: int) -> None:
        """Nothing to do: the cache grows by itself."""

    def _forward(self, ids: Tensor, positions: Tensor, mask: Tensor, cache: Any) -> Tensor:
        """Float32 logits [B, V] of the last position."""
        out = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = out.logits[:, -1, : self.vocabulary]
        return logits

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> ModulePrefix:
        """Run prompts once, padded on the left."""
        from transformers import DynamicCache

        lengths = [len(ids) for ids in prompts]
        longest = max(lengths)
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        ids, mask, cache = ids.to(self.device), mask.to(self.device), DynamicCache(config=self.model.config)
        logits = self._forward(ids, (mask.cumsum(-1) - 1).clamp_min(0), mask, cache)
        return ModulePrefix(logits, cache, mask, lengths)

    @torch.inference_mode()
    def admit(self, prefix: ModulePrefix, rows: Sequence[int]) -> Tensor:
        """Start a batch of sequences that continue prompts `rows`; returns their logits [len(rows), V]."""
        assert not self.active, "a module decoder admits only into an empty batch"
        index = torch.tensor(rows, device=self.device)
        self.cache = copy.deepcopy(prefix.cache)
        self.cache.batch_select_indices(index)
        self.mask = prefix.mask[index]
        return prefix.logits[index]

    @torch.inference_mode()
    def decode(self, tokens: Tensor) -> Tensor:
        """Append one token to every sequence; tokens: [active]. Returns logits [active, V]."""
        positions = self.mask.sum(-1, keepdim=True)
        self.mask = torch.cat([self.mask, torch.ones_like(positions)], dim=-1)
        return self._forward(tokens[:, None], positions, self.mask, self.cache)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep the sequences in slots `rows`, in that order."""
        index = torch.tensor(list(rows), dtype=torch.long, device=self.device)
        self.mask = self.mask[index]
        if len(rows):
            self.cache.batch_select_indices(index)
        else:
            self.cache = None

    def release(self) -> None:
        """Forget all sequences."""
        self.keep([])
