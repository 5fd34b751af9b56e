"""A hand-written forward and backward of Qwen3-type decoders for the CPU.

On a CPU a small model's time goes into elementwise passes and SDPA's backward, not matrix products.
This decoder computes the same function on the same parameters over packed tokens (`packed`), one
autograd node a layer: products in `dtype` (bf16 uses AMX where there is), residual stream, norms and
softmax in float32, few passes, shared prompts computed once. Measured figures: docs of `learner.native`.

Owns nothing but speed: where `supports` says no (other architectures, adapters, shards, GPU, long
sequences), `forward` runs the transformers modules, and tests hold both to the same values and gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from onpol_cli.learner.packed import Block, PackedLayout


def supports(model: PreTrainedModel) -> bool:
    """Whether the native decoder computes exactly what `model` does."""
    config = model.config
    rope = getattr(config, "rope_parameters", None) or {}
    plain = (
        config.model_type == "qwen3"
        and config.hidden_act == "silu"
        and not config.attention_bias
        and not config.attention_dropout
        and not getattr(config, "use_sliding_window", False)
        and rope.get("rope_type", "default") == "default"
    )
    if model.dtype not in (torch.float32, torch.float64):  # complex rotations exist in these formats only
        return False
    # Adapters and shards replace layers or parameters; both must go through their own modules.
    return plain and all(
        type(module) is nn.Linear for name, module in model.named_modules() if name.endswith("_proj")
    )


@dataclass(frozen=True)
class Shape:
    """Sizes of one layer: query heads, key/value heads, head size, epsilon of the norms."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float

    @property
    def rotated(self) -> int:
        """Heads that are normed and rotated: queries and keys."""
        return self.heads + self.kv_heads


class NormState:
    """`unit = x / sqrt(mean x^2 + eps)` over the last dimension, in float32 or float64."""

    def __init__(self, x: Tensor, eps: float) -> None:
        size = x.shape[-1]
        self.scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(size).add_(eps).rsqrt_()
        self.unit = x * self.scale

    def backward(self, grad: Tensor) -> Tensor:
        """Gradient of x from that of `unit`: scale (g - unit mean(g unit)). Overwrites `grad`."""
        inner = (grad * self.unit).mean(-1, keepdim=True)
        return grad.addcmul_(self.unit, inner, value=-1).mul_(self.scale)


def rotation(positions: Tensor, model: PreTrainedModel, dtype: torch.dtype) -> Tensor:
    """`[M, 1, d / 2]` complex factors of the rotary embedding at `positions: [M]`."""
    rotary: Any = model.base_model.rotary_emb
    angles = positions[:, None].to(torch.float32) * rotary.inv_freq.float()[None, :]
    factors = torch.polar(torch.full_like(angles, float(rotary.attention_scaling)), angles)
    return factors.to(torch.complex128 if dtype == torch.float64 else torch.complex64).unsqueeze(1)


def interleave(size: int) -> Tensor:
    """Order that puts the halves of a head next to each other: 0, d/2, 1, d/2 + 1, ...

    Rotary pairs become adjacent, so that a rotation is one complex product. Scores do not change,
    as queries and keys are permuted alike.
    """
    return torch.arange(size).view(2, size // 2).T.flatten()


class Attention:
    """Causal attention over a packed layout, forward and backward, for one layer.

    Queries, keys, values: `[M, heads, d]`. Query heads that share a key head are folded into the
    query length, so that keys are never repeated.
    """

    def __init__(self, layout: PackedLayout, shape: Shape, dtype: torch.dtype) -> None:
        self.layout, self.shape, self.dtype = layout, shape, dtype
        self.group = shape.heads // shape.kv_heads
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.prompt_bias = self._fold_bias(layout.prompt_bias)
        self.completion_bias = self._fold_bias(layout.completion_bias)

    def _fold_bias(self, bias: Tensor) -> Tensor:
        """`[B * kv, Tq * group, Tk]` in `dtype`, query position major."""
        rows, queries, keys = bias.shape
        kv, group = self.shape.kv_heads, self.group
        wide = bias.to(self.dtype)[:, None, :, None, :].expand(rows, kv, queries, group, keys)
        return wide.reshape(rows * kv, queries * group, keys)

    def _queries(self, packed: Tensor, block: Block) -> Tensor:
        """`[B * kv, Tq * group, d]` of packed `[M, heads, d]`."""
        rows, width = block.rows.shape
        kv, group, size = self.shape.kv_heads, self.group, self.shape.head_dim
        taken = packed.index_select(0, block.rows.flatten())
        split = taken.view(rows, width, kv, group, size)
        return split.transpose(1, 2).reshape(rows * kv, width * group, size)

    def _unqueries(self, blocked: Tensor, block: Block, out: Tensor) -> None:
        """Write the real places of `[B * kv, Tq * group, d]` to packed `out: [M, heads * d]`."""
        rows, width = block.rows.shape
        kv, group, size = self.shape.kv_heads, self.group, self.shape.head_dim
        flat = blocked.view(rows, kv, width, group * size).transpose(1, 2).reshape(rows * width, -1)
        out.index_copy_(0, block.tokens, flat.index_select(0, block.real))

    def _keys(self, packed: Tensor, block: Block) -> Tensor:
        """`[B, kv, Tk, d]` of packed `[M, kv, d]`."""
        rows, width = block.rows.shape
        taken = packed.index_select(0, block.rows.flatten())
        return taken.view(rows, width, self.shape.kv_heads, self.shape.head_dim).transpose(1, 2)

    def _unkeys(self, blocked: Tensor, block: Block, out: Tensor) -> None:
        """Write the real places of `[B, kv, Tk, d]` to packed `out: [M, kv, d]`."""
        flat = blocked.transpose(1, 2).reshape(block.rows.numel(), self.shape.kv_heads, self.shape.head_dim)
        out.index_copy_(0, block.tokens, flat.index_select(0, block.real))

    def _probs(self, queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
        scores = torch.baddbmm(bias, queries, keys.transpose(1, 2), alpha=self.shape.head_dim**-0.5)
        # bf16 softmax is twice as slow as the float32 one with its two casts (torch 2.13 CPU).
        probs: Tensor = torch.softmax(scores, -1, dtype=self.wide)
        return probs.to(self.dtype)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Context `[M, heads * d]` and what backward needs."""
        layout = self.layout
        out = torch.empty(len(query), self.shape.heads * self.shape.head_dim, dtype=self.dtype)
        key_blocks = self._keys(key, layout.prompts), self._keys(key, layout.completions)
        value_blocks = self._keys(value, layout.prompts), self._keys(value, layout.completions)
        saved: list[Tensor] = []
        for block, bias, first in (
            (layout.prompts, self.prompt_bias, True),
            (layout.completions, self.completion_bias, False),
        ):
            if not block.rows.numel():
                continue
            queries = self._queries(query, block)
            keys, values = self._joined(key_blocks, first), self._joined(value_blocks, first)
            probs = self._probs(queries, keys, bias)
            self._unqueries(probs @ values, block, out)
            saved += [queries, keys, values, probs]
        return out, tuple(saved)

    def _joined(self, blocks: tuple[Tensor, Tensor], first: bool) -> Tensor:
        """Keys or values `[B * kv, Tk, d]` that a block's queries see."""
        seen = blocks[0] if first else torch.cat([blocks[0].index_select(0, self.layout.parent), blocks[1]], 2)
        return seen.reshape(-1, *seen.shape[2:])

    def backward(self, grad: Tensor, saved: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of packed query, key, value from that of the context `[M, heads * d]`."""
        layout, shape = self.layout, self.shape
        heads = grad.view(len(grad), shape.heads, shape.head_dim)
        query_grad = torch.empty_like(grad)
        key_grad = torch.empty(len(grad), shape.kv_heads, shape.head_dim, dtype=grad.dtype)
        value_grad = torch.empty_like(key_grad)
        totals: list[Tensor] = []
        for number, block in enumerate((layout.prompts, layout.completions)):
            if not block.rows.numel():
                continue
            keys, values = self._block_backward(heads, block, saved[4 * number : 4 * number + 4], query_grad)
            totals += [keys, values]
        if len(totals) == 4:
            width = layout.prompts.rows.shape[1]
            for total, shared, out in ((totals[0], totals[2], key_grad), (totals[1], totals[3], value_grad)):
                total.index_add_(0, layout.parent, shared[:, :, :width])
                self._unkeys(shared[:, :, width:], layout.completions, out)
        self._unkeys(totals[0], layout.prompts, key_grad)
        self._unkeys(totals[1], layout.prompts, value_grad)
        return query_grad, key_grad, value_grad

    def _block_backward(
        self, heads: Tensor, block: Block, saved: tuple[Tensor, ...], query_grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Writes the block's share of the query gradient; returns those of its keys and values `[B, kv, Tk, d]`."""
        queries, keys, values, probs = saved
        rows, width = block.rows.shape
        flat = torch.zeros(rows * width, *heads.shape[1:], dtype=heads.dtype)
        flat.index_copy_(0, block.real, heads.index_select(0, block.tokens))
        places = Block(torch.arange(rows * width).view(rows, width), block.real, block.tokens)
        out_grad = self._queries(flat, places)
        value_grad = probs.transpose(1, 2) @ out_grad
        probs_grad = out_grad @ values.transpose(1, 2)
        wide = torch._softmax_backward_data(probs_grad.to(self.wide), probs.to(self.wide), -1, self.wide)
        scores_grad = wide.mul_(self.shape.head_dim**-0.5).to(self.dtype)
        self._unqueries(scores_grad @ keys, block, query_grad)
        key_grad = scores_grad.transpose(1, 2) @ queries
        size = self.shape.head_dim
        return key_grad.view(rows, -1, keys.shape[1], size), value_grad.view(rows, -1, keys.shape[1], size)


@dataclass(frozen=True)
class Context:
    """What all layers of one forward share."""

    shape: Shape
    attention: Attention
    rotation: Tensor
    order: Tensor
    dtype: torch.dtype


@dataclass(frozen=True)
class Matrices:
    """A layer's projections as products use them, in `dtype`.

    The norms' weights are folded into the columns of the matrices that follow them (`W diag(n)`), which
    saves a pass over the tokens in each direction.

    Attributes:
        qkv: [(heads + 2 kv) d, H] query and key rows interleaved, first norm folded in.
        out: [H, heads d].
        gate, up: [F, H] second norm folded in.
        down: [H, F].
        head_norm: [heads + kv, d] interleaved weights of the query and key norms, not reduced.
    """

    qkv: Tensor
    out: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor
    head_norm: Tensor


def gather(weights: tuple[Tensor, ...], context: Context) -> Matrices:
    """The matrices of a layer from its parameters in the order that `decode` passes them."""
    shape, order, dtype = context.shape, context.order, context.dtype
    first, second, query, key, value, out, gate, up, down, query_norm, key_norm = weights
    columns = query.shape[1]
    rotated = torch.cat([query, key]).view(shape.rotated, shape.head_dim, columns)[:, order].reshape(-1, columns)
    norms = [query_norm[order].expand(shape.heads, -1), key_norm[order].expand(shape.kv_heads, -1)]
    return Matrices(
        qkv=(torch.cat([rotated, value]) * first).to(dtype),
        out=out.to(dtype),
        gate=(gate * second).to(dtype),
        up=(up * second).to(dtype),
        down=down.to(dtype),
        head_norm=torch.cat(norms),
    )


class _Layer(torch.autograd.Function):
    """One decoder layer on packed tokens: `x: [M, H]` residual stream in, residual stream out."""

    @staticmethod
    def forward(ctx: Any, context: Context, x: Tensor, *weights: Tensor) -> Tensor:
        shape, dtype = context.shape, context.dtype
        w = gather(weights, context)
        before = NormState(x, shape.eps)
        entry = before.unit.to(dtype)
        qkv = (entry @ w.qkv.T).view(len(x), -1, shape.head_dim)
        heads = NormState(qkv[:, : shape.rotated].to(x.dtype), shape.eps)
        turned = torch.view_as_complex((heads.unit * w.head_norm).unflatten(2, (-1, 2))) * context.rotation
        query_key = torch.view_as_real(turned).flatten(2).to(dtype)
        query, key, value = query_key[:, : shape.heads], query_key[:, shape.heads :], qkv[:, shape.rotated :]
        mixed, attention = context.attention.forward(query, key, value)
        middle = x + mixed @ w.out.T
        after = NormState(middle, shape.eps)
        inner = after.unit.to(dtype)
        gate, up = inner @ w.gate.T, inner @ w.up.T
        active = F.silu(gate)
        product = active * up
        ctx.context, ctx.matrices, ctx.norms = context, w, (before, heads, after)
        ctx.attended = (entry, mixed, attention)
        ctx.mlp = (inner, gate, up, active, product)
        ctx.save_for_backward(*weights)
        result: Tensor = middle + product @ w.down.T
        return result

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        weights, w = ctx.saved_tensors, ctx.matrices
        grad = upstream[0]
        middle_grad, gate_wg, up_wg, down_wg = _mlp_backward(grad, w, ctx.mlp, ctx.norms[2])
        x_grad, qkv_wg, out_wg, norm_g = _attention_backward(middle_grad, ctx)
        first, second, query, key, value, _, gate, up, *_ = weights
        query_wg, key_wg, value_wg = _split_qkv(qkv_wg, ctx.context)
        # d/dn of W diag(n): sum over rows of W * grad; d/dW: grad * n.
        first_g = query.mul(query_wg).sum(0) + key.mul(key_wg).sum(0) + value.mul(value_wg).sum(0)
        second_g = gate.mul(gate_wg).sum(0) + up.mul(up_wg).sum(0)
        entering = (query_wg * first, key_wg * first, value_wg * first)
        matrices = (*entering, out_wg, gate_wg * second, up_wg * second, down_wg)
        heads = ctx.context.shape.heads
        head_norms = (norm_g[:heads].sum(0), norm_g[heads:].sum(0))
        return None, x_grad, first_g, second_g, *(m.to(first.dtype) for m in matrices), *head_norms


def _split_qkv(grad: Tensor, context: Context) -> tuple[Tensor, ...]:
    """Gradients of query, key and value rows in the parameters' own order and float format."""
    shape = context.shape
    wide = grad.to(torch.float64 if grad.dtype == torch.float64 else torch.float32)
    heads, size = shape.heads, shape.head_dim
    rotated, value = wide.split([shape.rotated * size, shape.kv_heads * size])
    back = torch.argsort(context.order)
    query_key = rotated.view(shape.rotated, size, -1)[:, back].flatten(0, 1)
    return *query_key.split([heads * size, shape.kv_heads * size]), value


def _attention_backward(middle_grad: Tensor, ctx: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of qkv and out matrices, and of the head norms `[heads + kv, d]`."""
    context, w = ctx.context, ctx.matrices
    shape, dtype = context.shape, context.dtype
    before, heads, _ = ctx.norms
    entry, mixed, attention = ctx.attended
    narrow = middle_grad.to(dtype)
    query_g, key_g, value_g = context.attention.backward(narrow @ w.out, attention)
    query_key_g = torch.cat([query_g.view(len(narrow), shape.heads, -1), key_g], 1).to(middle_grad.dtype)
    turned = torch.view_as_complex(query_key_g.unflatten(2, (-1, 2))) * context.rotation.conj()
    normed_g = torch.view_as_real(turned).flatten(2)
    norm_g = (normed_g * heads.unit).sum(0)[:, torch.argsort(context.order)]
    raw_g = heads.backward(normed_g.mul_(w.head_norm))
    qkv_g = torch.cat([raw_g.to(dtype), value_g], 1).flatten(1)
    x_grad = before.backward((qkv_g @ w.qkv).to(middle_grad.dtype)).add_(middle_grad)
    return x_grad, qkv_g.T @ entry, narrow.T @ mixed, norm_g


def _mlp_backward(
    grad: Tensor, w: Matrices, kept: tuple[Tensor, ...], after: NormState
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the residual stream before the MLP and of gate, up and down."""
    inner, gate, up, active, product = kept
    narrow = grad.to(product.dtype)
    down_wg = narrow.T @ product
    product_g = narrow @ w.down
    up_g = product_g * active
    gate_g = torch.ops.aten.silu_backward(product_g.mul_(up), gate)
    inner_g = torch.addmm(gate_g @ w.gate, up_g, w.up)
    middle_grad = after.backward(inner_g.to(grad.dtype)).add_(grad)
    return middle_grad, gate_g.T @ inner, up_g.T @ inner, down_wg


def decode(model: PreTrainedModel, layout: PackedLayout, dtype: torch.dtype) -> Tensor:
    """`[N, H]` states (after the final norm) that predict the completion tokens of `layout`.

    Args:
        model: a model that `supports` accepts, on the CPU.
        layout: packed sequences.
        dtype: format of the matrix products; norms and the residual stream keep the weights' format.
    """
    base: Any = model.base_model
    config = model.config
    shape = Shape(config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.rms_norm_eps)
    x = F.embedding(layout.input_ids, base.embed_tokens.weight)
    context = Context(
        shape,
        Attention(layout, shape, dtype),
        rotation(layout.positions, model, x.dtype),
        interleave(shape.head_dim),
        dtype,
    )
    for layer in base.layers:
        attention, mlp = layer.self_attn, layer.mlp
        x = _Layer.apply(
            context, x, layer.input_layernorm.weight, layer.post_attention_layernorm.weight,
            attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight, attention.o_proj.weight,
            mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight,
            attention.q_norm.weight, attention.k_norm.weight,
        )  # fmt: skip
    states = F.rms_norm(x.index_select(0, layout.predict), (config.hidden_size,), base.norm.weight, config.rms_norm_eps)
    assert isinstance(states, Tensor)
    return states
