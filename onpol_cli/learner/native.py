"""A hand-written forward and backward of Qwen3-type decoders for the CPU.

On a CPU a small model's time goes into elementwise passes and SDPA's backward, not matrix products.
This decoder computes the same function on the same parameters over packed tokens (`packed`), one
autograd node a layer: products in `dtype` (bf16 uses AMX where there is), residual stream, norms and
softmax in float32, few passes, shared prompts computed once. Measured figures: docs of `learner.native`.

Owns nothing but speed: where `supports` says no (other architectures, LoRA with dropout, shards, GPU,
long sequences), `forward` runs the transformers modules, and tests hold both to the same values and gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from onpol_cli.learner.attention import Attention, Saved, Shape
from onpol_cli.learner.packed import PackedLayout
from onpol_cli.learner.weights import ADAPTER

GRAIN = 64
"""bf16 products: rows are filled up to a multiple. oneDNN compiles a kernel for each new shape, 1 to 3 ms a time."""


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
    # Shards replace parameters, other adapters than plain LoRA the arithmetic: both go through their own modules.
    layers = [module for name, module in model.named_modules() if name.endswith("_proj")]
    return plain and all(type(layer) is nn.Linear or is_plain_lora(layer) for layer in layers)


def is_plain_lora(layer: nn.Module) -> bool:
    """Whether a projection is `W + scaling * B A` and nothing else: one adapter, no dropout, no variant of LoRA."""
    adapters: Any = getattr(layer, "lora_A", None)
    if adapters is None or list(adapters) != [ADAPTER]:
        return False
    lora: Any = layer
    return (
        type(lora.base_layer) is nn.Linear
        and isinstance(lora.lora_dropout[ADAPTER], nn.Identity)
        and lora.active_adapters == [ADAPTER]
        and not lora.merged
        and not lora.lora_variant
        and not lora.lora_bias[ADAPTER]
    )


def matrix(layer: nn.Module) -> Tensor:
    """`[out, in]` weight of a projection; with LoRA the sum, through which gradients reach A and B.

    The sum costs (in x out x rank) once where peft's two thin products cost that of every token.
    """
    if type(layer) is nn.Linear:
        return layer.weight
    lora: Any = layer
    base: Tensor = lora.base_layer.weight
    if lora.disable_adapters:
        return base
    up, down = lora.lora_B[ADAPTER].weight, lora.lora_A[ADAPTER].weight
    return torch.addmm(base, up.to(base.dtype), down.to(base.dtype), alpha=float(lora.scaling[ADAPTER]))


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


@dataclass(frozen=True)
class Context:
    """What all layers of one forward share."""

    shape: Shape
    attention: Attention
    rotation: Tensor
    order: Tensor
    dtype: torch.dtype
    recompute: bool


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
        head_norm: [heads + kv, d] interleaved weights of the query and key norms, not reduced; the scale of the
            scores is folded into those of the queries.
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
    norms = [query_norm[order].mul(shape.scale).expand(shape.heads, -1), key_norm[order].expand(shape.kv_heads, -1)]
    return Matrices(
        qkv=(torch.cat([rotated, value]) * first).to(dtype),
        out=out.to(dtype),
        gate=(gate * second).to(dtype),
        up=(up * second).to(dtype),
        down=down.to(dtype),
        head_norm=torch.cat(norms),
    )


class Kept(NamedTuple):
    """What a layer's backward needs beside its parameters."""

    matrices: Matrices
    norms: tuple[NormState, NormState, NormState]
    attended: tuple[Tensor, Tensor, list[list[Saved]]]
    mlp: tuple[Tensor, ...]


def run_layer(context: Context, keep: Tensor | None, x: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, Kept]:
    """The residual stream behind a layer, as `_Layer` has it, and what its backward needs."""
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
    if keep is not None:
        x, mixed = x.index_select(0, keep), mixed.index_select(0, keep)
    middle = x + mixed @ w.out.T
    after = NormState(middle, shape.eps)
    inner = after.unit.to(dtype)
    gate, up = inner @ w.gate.T, inner @ w.up.T
    active = F.silu(gate)
    product = active * up
    kept = Kept(w, (before, heads, after), (entry, mixed, attention), (inner, gate, up, active, product))
    return middle + product @ w.down.T, kept


class _Layer(torch.autograd.Function):
    """One decoder layer on packed tokens: `x: [M, H]` residual stream in, residual stream out.

    With `keep: [K]` (distinct tokens) only these are computed beyond attention and returned, `[K, H]`:
    nobody reads the others after the last layer. With `context.recompute`, x alone is kept and backward runs the
    layer again.
    """

    @staticmethod
    def forward(ctx: Any, context: Context, keep: Tensor | None, x: Tensor, *weights: Tensor) -> Tensor:
        result, kept = run_layer(context, keep, x, weights)
        ctx.context, ctx.keep = context, keep
        ctx.kept = None if context.recompute else kept
        ctx.save_for_backward(*weights, *((x,) if context.recompute else ()))
        return result

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        context, kept, saved = ctx.context, ctx.kept, ctx.saved_tensors
        if context.recompute:
            *weights, x = saved
            kept = run_layer(context, ctx.keep, x, tuple(weights))[1]
        else:
            weights = list(saved)
        needs = Needs(*ctx.needs_input_grad[-len(weights) :])
        middle_grad, gate_wg, up_wg, down_wg = _mlp_backward(upstream[0], kept, needs)
        x_grad, qkv_wg, out_wg, norm_g = _attention_backward(middle_grad, context, ctx.keep, kept, needs)
        first, second, query, key, value, _, gate, up, *_ = weights
        entering = (None, None, None) if qkv_wg is None else _split_qkv(qkv_wg, context)
        first_g = _norm_gradient((query, key, value), entering) if needs.first else None
        second_g = _norm_gradient((gate, up), (gate_wg, up_wg)) if needs.second else None
        gate_up = (_unfold(gate_wg, second), _unfold(up_wg, second))
        unfolded = (*(_unfold(m, first) for m in entering), out_wg, *gate_up, down_wg)
        matrices = [None if m is None else m.to(first.dtype) for m in unfolded]
        shape = context.shape
        head_norms = (norm_g[: shape.heads].sum(0) * shape.scale, norm_g[shape.heads :].sum(0))
        return None, None, x_grad, first_g, second_g, *matrices, *head_norms


class Needs(NamedTuple):
    """Which of a layer's parameters want a gradient, in the order of `gather`: under LoRA, few may."""

    first: bool
    second: bool
    query: bool
    key: bool
    value: bool
    out: bool
    gate: bool
    up: bool
    down: bool
    query_norm: bool
    key_norm: bool

    @property
    def qkv(self) -> bool:
        """Whether the joint matrix of queries, keys and values does."""
        return self.query or self.key or self.value or self.first


def _weight_gradient(wanted: bool, upstream: Tensor, entry: Tensor) -> Tensor | None:
    """`[out, in]` gradient of W in `entry @ W.T` from that of the product; None where nobody wants it."""
    return upstream.T @ entry if wanted else None


def _unfold(gradient: Tensor | None, norm: Tensor) -> Tensor | None:
    """Gradient of W from that of `W diag(norm)`."""
    return None if gradient is None else gradient * norm


def _norm_gradient(matrices: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """`[H]` gradient of the n in `W diag(n)`, summed over several W: the sum over rows of W * grad."""
    total = torch.zeros_like(matrices[0][0])
    for weight, gradient in zip(matrices, gradients, strict=True):
        assert gradient is not None, "a norm that wants a gradient needs those of all its matrices"
        total = total + (weight * gradient).sum(0)
    return total


def _split_qkv(grad: Tensor, context: Context) -> tuple[Tensor, ...]:
    """Gradients of query, key and value rows in the parameters' own order and float format."""
    shape = context.shape
    wide = grad.to(torch.float64 if grad.dtype == torch.float64 else torch.float32)
    heads, size = shape.heads, shape.head_dim
    rotated, value = wide.split([shape.rotated * size, shape.kv_heads * size])
    back = torch.argsort(context.order)
    query_key = rotated.view(shape.rotated, size, -1)[:, back].flatten(0, 1)
    return *query_key.split([heads * size, shape.kv_heads * size]), value


def _attention_backward(
    middle_grad: Tensor, context: Context, keep: Tensor | None, kept: Kept, needs: Needs
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Gradients of x, of qkv and out matrices, and of the head norms `[heads + kv, d]`."""
    w, shape, dtype = kept.matrices, context.shape, context.dtype
    before, heads, _ = kept.norms
    entry, mixed, attention = kept.attended
    narrow = middle_grad.to(dtype)
    mixed_g = narrow @ w.out
    if keep is not None:
        mixed_g = mixed_g.new_zeros(len(entry), mixed_g.shape[1]).index_copy_(0, keep, mixed_g)
    query_g, key_g, value_g = context.attention.backward(mixed_g, attention)
    query_key_g = torch.cat([query_g.view(len(entry), shape.heads, -1), key_g], 1).to(middle_grad.dtype)
    turned = torch.view_as_complex(query_key_g.unflatten(2, (-1, 2))) * context.rotation.conj()
    normed_g = torch.view_as_real(turned).flatten(2)
    norm_g = (normed_g * heads.unit).sum(0)[:, torch.argsort(context.order)]
    raw_g = heads.backward(normed_g.mul_(w.head_norm))
    qkv_g = torch.cat([raw_g.to(dtype), value_g], 1).flatten(1)
    x_grad = before.backward((qkv_g @ w.qkv).to(middle_grad.dtype))
    if keep is None:
        x_grad.add_(middle_grad)
    else:
        x_grad.index_add_(0, keep, middle_grad)  # the kept are distinct: nothing depends on an order
    out_wg = _weight_gradient(needs.out, narrow, mixed)
    return x_grad, _weight_gradient(needs.qkv, qkv_g, entry), out_wg, norm_g


def _mlp_backward(
    grad: Tensor, kept: Kept, needs: Needs
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the residual stream before the MLP and of gate, up and down."""
    w, after = kept.matrices, kept.norms[2]
    inner, gate, up, active, product = kept.mlp
    narrow = grad.to(product.dtype)
    down_wg = _weight_gradient(needs.down, narrow, product)
    product_g = narrow @ w.down
    up_g = product_g * active
    gate_g = torch.ops.aten.silu_backward(product_g.mul_(up), gate)
    inner_g = torch.addmm(gate_g @ w.gate, up_g, w.up)
    middle_grad = after.backward(inner_g.to(grad.dtype)).add_(grad)
    gate_wg = _weight_gradient(needs.gate or needs.second, gate_g, inner)
    return middle_grad, gate_wg, _weight_gradient(needs.up or needs.second, up_g, inner), down_wg


def kept_tokens(predict: Tensor, total: int, grain: int) -> tuple[Tensor, Tensor]:
    """Distinct tokens `[K]`, those of `predict: [N]` first, and the place `[N]` of each of `predict` among them.

    K is rounded up to a multiple of `grain` with other tokens of the `total`, whose states nobody reads.
    """
    kept, places = predict.unique(return_inverse=True)
    missing = -len(kept) % grain
    if not missing:
        return kept, places
    unread = torch.ones(total, dtype=torch.bool).index_fill_(0, kept, False).nonzero().squeeze(1)
    return torch.cat([kept, unread[:missing]]), places


def decode(model: PreTrainedModel, layout: PackedLayout, dtype: torch.dtype, recompute: bool = False) -> Tensor:
    """`[N, H]` states (after the final norm) that predict the completion tokens of `layout`.

    Args:
        model: a model that `supports` accepts, on the CPU.
        layout: packed sequences.
        dtype: format of the matrix products; norms and the residual stream keep the weights' format.
        recompute: between layers only the residual stream is kept; backward runs each layer again.
    """
    base: Any = model.base_model
    config = model.config
    shape = Shape(config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.rms_norm_eps)
    grain = GRAIN if dtype == torch.bfloat16 else 1
    filling = -len(layout.input_ids) % grain
    x = F.embedding(F.pad(layout.input_ids, (0, filling)), base.embed_tokens.weight)
    context = Context(
        shape,
        Attention(layout, shape, dtype),
        rotation(F.pad(layout.positions, (0, filling)), model, x.dtype),
        interleave(shape.head_dim),
        dtype,
        recompute,
    )
    kept, places = kept_tokens(layout.predict, len(x), grain)
    for layer in base.layers:
        attention, mlp = layer.self_attn, layer.mlp
        x = _Layer.apply(
            context, kept if layer is base.layers[-1] else None, x,
            layer.input_layernorm.weight, layer.post_attention_layernorm.weight,
            *map(matrix, (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)),
            *map(matrix, (mlp.gate_proj, mlp.up_proj, mlp.down_proj)),
            attention.q_norm.weight, attention.k_norm.weight,
        )  # fmt: skip
    states = F.rms_norm(x.index_select(0, places), (config.hidden_size,), base.norm.weight, config.rms_norm_eps)
    assert isinstance(states, Tensor)
    return states
