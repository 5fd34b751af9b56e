"""Attention of the native decoder, forward and backward, over the parts of a packed layout.

Owns the gathering of packed tokens into padded blocks and the products between them. Knows neither
projections nor norms (`native`), nor how a layout is cut into parts (`packed`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onpol_cli.learner.packed import Block, PackedLayout, Part


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


class PartAttention:
    """Causal attention over one part of a packed layout, forward and backward, for one layer.

    Queries, keys, values: `[M, heads, d]`. Query heads that share a key head are folded into the
    query length, so that keys are never repeated.
    """

    def __init__(self, part: Part, shape: Shape, dtype: torch.dtype) -> None:
        self.part, self.shape, self.dtype = part, shape, dtype
        self.group = shape.heads // shape.kv_heads
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.prompt_bias = self._fold_bias(part.prompt_bias)
        self.completion_bias = self._fold_bias(part.completion_bias)

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

    def forward(self, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> tuple[Tensor, ...]:
        """Writes this part's rows of the context `out: [M, heads * d]`; returns what backward needs."""
        part = self.part
        key_blocks = self._keys(key, part.prompts), self._keys(key, part.completions)
        value_blocks = self._keys(value, part.prompts), self._keys(value, part.completions)
        saved: list[Tensor] = []
        for block, bias, first in (
            (part.prompts, self.prompt_bias, True),
            (part.completions, self.completion_bias, False),
        ):
            if not block.rows.numel():
                continue
            queries = self._queries(query, block)
            keys, values = self._joined(key_blocks, first), self._joined(value_blocks, first)
            probs = self._probs(queries, keys, bias)
            self._unqueries(probs @ values, block, out)
            saved += [queries, keys, values, probs]
        return tuple(saved)

    def _joined(self, blocks: tuple[Tensor, Tensor], first: bool) -> Tensor:
        """Keys or values `[B * kv, Tk, d]` that a block's queries see."""
        seen = blocks[0] if first else torch.cat([blocks[0].index_select(0, self.part.parent), blocks[1]], 2)
        return seen.reshape(-1, *seen.shape[2:])

    def backward(self, heads: Tensor, saved: tuple[Tensor, ...], grads: tuple[Tensor, Tensor, Tensor]) -> None:
        """Writes this part's rows of the gradients of query, key and value.

        Args:
            heads: [M, heads, d] gradient of the context.
            saved: what `forward` returned.
            grads: of packed query `[M, heads * d]`, key and value `[M, kv, d]`.
        """
        part = self.part
        query_grad, key_grad, value_grad = grads
        totals: list[Tensor] = []
        for number, block in enumerate((part.prompts, part.completions)):
            if not block.rows.numel():
                continue
            keys, values = self._block_backward(heads, block, saved[4 * number : 4 * number + 4], query_grad)
            totals += [keys, values]
        if len(totals) == 4:
            width = part.prompts.rows.shape[1]
            for total, shared, out in ((totals[0], totals[2], key_grad), (totals[1], totals[3], value_grad)):
                total.index_add_(0, part.parent, shared[:, :, :width])
                self._unkeys(shared[:, :, width:], part.completions, out)
        self._unkeys(totals[0], part.prompts, key_grad)
        self._unkeys(totals[1], part.prompts, value_grad)

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


class Attention:
    """All parts of a packed layout; every token belongs to exactly one."""

    def __init__(self, layout: PackedLayout, shape: Shape, dtype: torch.dtype) -> None:
        self.shape, self.dtype = shape, dtype
        self.parts = [PartAttention(part, shape, dtype) for part in layout.parts]

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """Context `[M, heads * d]` and what backward needs."""
        out = torch.empty(len(query), self.shape.heads * self.shape.head_dim, dtype=self.dtype)
        return out, [part.forward(query, key, value, out) for part in self.parts]

    def backward(self, grad: Tensor, saved: list[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of packed query, key, value from that of the context `[M, heads * d]`."""
        heads = grad.view(len(grad), self.shape.heads, self.shape.head_dim)
        key_grad = torch.empty(len(grad), self.shape.kv_heads, self.shape.head_dim, dtype=grad.dtype)
        grads = torch.empty_like(grad), key_grad, torch.empty_like(key_grad)
        for part, own in zip(self.parts, saved, strict=True):
            part.backward(heads, own, grads)
        return grads
