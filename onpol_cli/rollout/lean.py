"""A lean forward pass for sampling: Llama, Qwen2 and Qwen3 decoders written directly on their weights.

Owns fused weight matrices, a preallocated key-value cache with one slot a sequence, prefill and
one-token decode. A transformers module spends most of a small model's decode step in Python; this
one issues about ten operations a layer. Does not sample, schedule or train; `hf.py` does the first
two. Its logits are held against transformers' in the tests.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onpol_cli.core.errors import OnpolError
from onpol_cli.learner.head import HeadOptions, chunk_logits
from onpol_cli.learner.kernels import steady_attention
from onpol_cli.rollout.engine import HEAD

ARCHITECTURES = ("qwen3", "qwen2", "llama")
GROWTH = 64
"""The cache grows by at least this many positions at once."""


def supports(model: Any) -> bool:
    """Whether `model` (transformers causal LM) is computed exactly by `LeanDecoder`."""
    config = model.config
    full = all(kind == "full_attention" for kind in getattr(config, "layer_types", None) or [])
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    plain = config.model_type in ARCHITECTURES and full and rope in ("default", "llama3", "yarn", "linear")
    return plain and getattr(config, "hidden_act", "silu") == "silu" and not getattr(config, "mlp_bias", False)


class Shape:
    """Sizes read from a transformers model: hidden E, layers, heads H, kv_heads KV, head_dim D, ffn M."""

    def __init__(self, model: Any) -> None:
        config = model.config
        self.hidden, self.layers = config.hidden_size, config.num_hidden_layers
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or self.hidden // self.heads
        self.ffn, self.eps = config.intermediate_size, config.rms_norm_eps
        first = model.model.layers[0].self_attn
        self.qkv_bias, self.out_bias = first.q_proj.bias is not None, first.o_proj.bias is not None
        self.qk_norm = hasattr(first, "q_norm")


class Layer:
    """Fused weights of one decoder layer, in the sampler's number format.

    Attributes:
        qkv: [(H + 2 KV) D, E] and its bias or None; out: [E, H D]; gate_up: [2 M, E]; down: [E, M].
        norm_in, norm_mid: [E]. norm_qk: [H + KV, D] or None, Qwen3's per-head norms repeated by head.
    """

    def __init__(self, shape: Shape, make: Any) -> None:
        heads, width = shape.heads + shape.kv_heads, shape.head_dim
        self.qkv = make((heads + shape.kv_heads) * width, shape.hidden)
        self.qkv_bias = make((heads + shape.kv_heads) * width) if shape.qkv_bias else None
        self.out = make(shape.hidden, shape.heads * width)
        self.out_bias = make(shape.hidden) if shape.out_bias else None
        self.gate_up = make(2 * shape.ffn, shape.hidden)
        self.down = make(shape.hidden, shape.ffn)
        self.norm_in, self.norm_mid = make(shape.hidden), make(shape.hidden)
        self.norm_qk = make(heads, width) if shape.qk_norm else None


class Prefix:
    """Prefilled prompts: last-position logits [P, V], keys and values [layers, 2, P, KV, L, D], lengths."""

    def __init__(self, logits: Tensor, cache: Tensor, lengths: list[int]) -> None:
        self.logits, self.cache, self.lengths = logits, cache, lengths


class LeanDecoder:
    """Weights and cache of one decoder-only model on one device.

    The cache is [layers, 2, slots, KV, L, D]; the sequence in slot i has its tokens at positions
    0 ... lengths[i] - 1, so that neither prompts nor answers need padding on the left.
    """

    continuous = True
    """New sequences may join while others are being decoded."""

    def __init__(self, model: Any, vocabulary: int, dtype: torch.dtype, device: torch.device) -> None:
        steady_attention(device)
        self.shape, self.vocabulary, self.dtype, self.device = Shape(model), vocabulary, dtype, device
        self.rotary = copy.deepcopy(model.model.rotary_emb)  # moved to `device`; the model's own stays where it is

        def make(*size: int) -> Tensor:
            return torch.empty(size, dtype=dtype, device=device)

        self.embed = make(model.model.embed_tokens.weight.shape[0], self.shape.hidden)
        # Logits are float32 below bf16 layers too: CUDA multiplies bf16 into float32, a CPU needs the matrix itself so.
        self.head = make(vocabulary, self.shape.hidden).to(dtype if device.type == "cuda" else torch.float32)
        self.norm = make(self.shape.hidden)
        self.layers = [Layer(self.shape, make) for _ in range(self.shape.layers)]
        self.cache = make(self.shape.layers, 2, 0, self.shape.kv_heads, 0, self.shape.head_dim)
        self.lengths: list[int] = []
        self.positions = torch.zeros(0, dtype=torch.long, device=device)
        self.cos = self.sin = make(0, self.shape.head_dim)
        self.columns = torch.zeros(0, dtype=torch.long, device=device)

    # ---- weights

    def destinations(self) -> dict[str, Tensor]:
        """Where each Hugging Face weight goes: name -> view into the fused matrices."""
        s, d = self.shape, self.shape.head_dim
        found = {"model.embed_tokens.weight": self.embed, "model.norm.weight": self.norm, HEAD: self.head}
        cuts = [s.heads * d, s.kv_heads * d, s.kv_heads * d]
        for i, layer in enumerate(self.layers):
            at = f"model.layers.{i}."
            for name, part in zip("qkv", layer.qkv.split(cuts), strict=True):
                found[f"{at}self_attn.{name}_proj.weight"] = part
            if layer.qkv_bias is not None:
                for name, part in zip("qkv", layer.qkv_bias.split(cuts), strict=True):
                    found[f"{at}self_attn.{name}_proj.bias"] = part
            found[f"{at}self_attn.o_proj.weight"] = layer.out
            if layer.out_bias is not None:
                found[f"{at}self_attn.o_proj.bias"] = layer.out_bias
            gate, up = layer.gate_up.split(s.ffn)
            found |= {f"{at}mlp.gate_proj.weight": gate, f"{at}mlp.up_proj.weight": up}
            found |= {f"{at}mlp.down_proj.weight": layer.down, f"{at}input_layernorm.weight": layer.norm_in}
            found[f"{at}post_attention_layernorm.weight"] = layer.norm_mid
            if layer.norm_qk is not None:
                found[f"{at}self_attn.q_norm.weight"] = layer.norm_qk[: s.heads]
                found[f"{at}self_attn.k_norm.weight"] = layer.norm_qk[s.heads :]
        return found

    @torch.no_grad()
    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy every weight in.

        Raises:
            OnpolError: a weight is missing, unknown or of another shape.
        """
        waiting = self.destinations()
        for name, tensor in weights:
            place = waiting.pop(name, None)
            if place is None:
                raise OnpolError(f"Weight sync: the sampler has no weight named {name!r} (or received it twice).")
            if name == HEAD:
                tensor = tensor[: self.vocabulary]
            if tensor.shape[-1] != place.shape[-1] or (tensor.ndim == 2 and tensor.shape != place.shape):
                raise OnpolError(f"Weight sync: {name} has shape {tuple(tensor.shape)}, not {tuple(place.shape)}.")
            place.copy_(tensor)  # the per-head norms broadcast over heads
        if waiting:
            raise OnpolError(
                f"Weight sync: {len(waiting)} weights are missing, first {sorted(waiting)[0]!r}. Send all of them, "
                f"{HEAD} included even where it is tied to the embeddings: a sampler with old weights is off-policy."
            )

    # ---- cache

    @property
    def active(self) -> int:
        """Sequences in the cache; they occupy slots 0 ... active - 1."""
        return len(self.lengths)

    def bytes_per_token(self) -> int:
        """Cache bytes of one position of one sequence."""
        s = self.shape
        return int(2 * s.layers * s.kv_heads * s.head_dim * self.dtype.itemsize)

    def held_bytes(self) -> int:
        """Bytes of the cache as it is."""
        return self.cache.nbytes

    def reserve(self, slots: int, length: int) -> None:
        """Make room for `slots` sequences of `length` positions, keeping what is cached."""
        old = self.cache
        if slots <= old.shape[2] and length <= old.shape[4]:
            return
        if self.active:
            slots, length = max(slots, old.shape[2]), max(length, old.shape[4])
        else:  # nothing to keep: the old cache goes before the new one comes
            old = self.cache = old.new_empty(*old.shape[:2], 0, old.shape[3], 0, old.shape[5])
        # zeros, for masked positions must be finite: -inf + nan is nan
        self.cache = old.new_zeros(*old.shape[:2], slots, old.shape[3], length, old.shape[5])
        if self.active:
            self.cache[:, :, : self.active, :, : old.shape[4]] = old[:, :, : self.active]
        if length > self.cos.shape[0]:
            self.columns = torch.arange(length, device=self.device)
            probe = torch.empty(1, dtype=torch.float32, device=self.device)
            cos, sin = self.rotary.to(self.device)(probe, self.columns[None])
            self.cos, self.sin = cos[0].to(self.dtype), sin[0].to(self.dtype)
            half = self.shape.head_dim // 2
            self.sin = torch.cat([-self.sin[:, :half], self.sin[:, half:]], dim=-1)  # sign of rotate_half

    def release(self) -> None:
        """Forget all sequences and free the cache."""
        self.keep([])
        self.cache = self.cache.new_empty(*self.cache.shape[:2], 0, self.cache.shape[3], 0, self.cache.shape[5])

    def keep(self, rows: Sequence[int]) -> None:
        """Keep the sequences in slots `rows`, in that order; only those whose slot changes are copied."""
        moves = [(new, old) for new, old in enumerate(rows) if new != old]
        longest = max((self.lengths[old] for _, old in moves), default=0)
        if moves:
            new, old = (torch.tensor(side, device=self.device) for side in zip(*moves, strict=True))
            part = self.cache[:, :, :, :, :longest]
            part[:, :, new] = part[:, :, old]
        self.lengths = [self.lengths[row] for row in rows]
        self.positions = torch.tensor(self.lengths, dtype=torch.long, device=self.device)

    # ---- forward

    def _attend_inputs(self, layer: Layer, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [N, H, D], rotated keys [N, KV, D] and values [N, KV, D] of N tokens x: [N, E]."""
        s = self.shape
        fused = F.linear(F.rms_norm(x, (s.hidden,), layer.norm_in, s.eps), layer.qkv, layer.qkv_bias)
        fused = fused.view(-1, s.heads + 2 * s.kv_heads, s.head_dim)
        both, values = fused.split([s.heads + s.kv_heads, s.kv_heads], dim=1)
        if layer.norm_qk is not None:
            both = F.rms_norm(both, (s.head_dim,), None, s.eps) * layer.norm_qk
        half = s.head_dim // 2
        both = both * cos + torch.cat([both[..., half:], both[..., :half]], dim=-1) * sin
        return both[:, : s.heads], both[:, s.heads :], values

    def _finish(self, layer: Layer, x: Tensor, mixed: Tensor) -> Tensor:
        """Output projection and MLP with their residuals; mixed: [N, H D], x: [N, E]."""
        x = x + F.linear(mixed, layer.out, layer.out_bias)
        gate, up = F.linear(
            F.rms_norm(x, (self.shape.hidden,), layer.norm_mid, self.shape.eps), layer.gate_up
        ).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, layer.down)

    def _logits(self, x: Tensor) -> Tensor:
        """Float32 logits [N, V] over the real vocabulary."""
        states = F.rms_norm(x, (self.shape.hidden,), self.norm, self.shape.eps)
        return chunk_logits(states, self.head, HeadOptions(self.vocabulary))

    @torch.inference_mode()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> Prefix:
        """Run prompts once; nothing enters the cache yet."""
        s, count = self.shape, len(prompts)
        lengths = [len(ids) for ids in prompts]
        longest = max(lengths)
        self.reserve(0, longest)
        ids = torch.zeros(count, longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        x = F.embedding(ids.to(self.device).view(-1), self.embed)
        cos = self.cos[:longest].repeat(count, 1).unsqueeze(1)
        sin = self.sin[:longest].repeat(count, 1).unsqueeze(1)
        stored = self.cache.new_empty(s.layers, 2, count, s.kv_heads, longest, s.head_dim)
        last = torch.tensor([row * longest + length - 1 for row, length in enumerate(lengths)], device=self.device)
        for number, layer in enumerate(self.layers):
            q, k, v = (t.reshape(count, longest, -1, s.head_dim).transpose(1, 2)
                       for t in self._attend_inputs(layer, x, cos, sin))
            stored[number, 0], stored[number, 1] = k, v
            if self.device.type == "cuda" and self.dtype == torch.float32:
                # flash attention has no float32 and others no shared key heads: they would hold all L x L scores
                k, v = (t.repeat_interleave(s.heads // s.kv_heads, 1) for t in (k, v))
            # padding stands on the right, where causal attention never looks
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=s.heads != k.shape[1])
            mixed = mixed.transpose(1, 2).reshape(count * longest, -1)
            if layer is self.layers[-1]:  # beyond its keys and values only the last tokens matter
                x, mixed = x[last], mixed[last]
            x = self._finish(layer, x, mixed)
        return Prefix(self._logits(x), stored, lengths)

    @torch.inference_mode()
    def admit(self, prefix: Prefix, rows: Sequence[int]) -> Tensor:
        """Append sequences that continue prompts `rows` of `prefix`; returns their logits [len(rows), V]."""
        longest = max(prefix.lengths[row] for row in rows)
        first = self.active
        self.reserve(first + len(rows), longest + GROWTH)
        index = torch.tensor(rows, device=self.device)
        place = self.cache[:, :, first : first + len(rows), :, :longest]
        place.copy_(prefix.cache[:, :, :, :, :longest].index_select(2, index))
        self.lengths += [prefix.lengths[row] for row in rows]
        self.positions = torch.tensor(self.lengths, dtype=torch.long, device=self.device)
        return prefix.logits.index_select(0, index)

    @torch.inference_mode()
    def decode(self, tokens: Tensor) -> Tensor:
        """Append one token to every cached sequence; tokens: [active] int64. Returns logits [active, V]."""
        s, count, longest = self.shape, self.active, max(self.lengths) + 1
        if longest > self.cache.shape[4]:
            self.reserve(count, longest + max(GROWTH, longest // 4))
        slots = self.cache.shape[4]
        cos, sin = self.cos[self.positions].unsqueeze(1), self.sin[self.positions].unsqueeze(1)
        heads = torch.arange(count * s.kv_heads, device=self.device) * slots
        rows = heads + self.positions.repeat_interleave(s.kv_heads)
        mask = (self.columns[:longest] <= self.positions[:, None]).view(count, 1, 1, longest)
        bias = torch.zeros(mask.shape, dtype=self.dtype, device=self.device).masked_fill_(~mask, -torch.inf)
        group = s.heads // s.kv_heads
        x = F.embedding(tokens, self.embed)
        for number, layer in enumerate(self.layers):
            q, k, v = self._attend_inputs(layer, x, cos, sin)
            keys, values = self.cache[number, 0], self.cache[number, 1]
            keys.view(-1, s.head_dim).index_copy_(0, rows, k.reshape(-1, s.head_dim))
            values.view(-1, s.head_dim).index_copy_(0, rows, v.reshape(-1, s.head_dim))
            # the query heads of one key head stand as its query rows: no repeated keys
            mixed = F.scaled_dot_product_attention(
                q.reshape(count, s.kv_heads, group, s.head_dim),
                keys[:count, :, :longest], values[:count, :, :longest], attn_mask=bias,
            )
            x = self._finish(layer, x, mixed.reshape(count, -1))
        self.lengths = [length + 1 for length in self.lengths]
        self.positions = self.positions + 1
        return self._logits(x)
