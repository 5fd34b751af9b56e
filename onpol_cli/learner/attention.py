"""Attention of the native decoder, forward and backward, over the parts of a packed layout.

Owns the gathering of packed tokens into padded blocks and the products between them. Knows neither
projections nor norms (`native`), nor how a layout is cut into parts (`packed`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from onpol_cli.learner.packed import Block, PackedLayout, Part

Saved = tuple[Tensor, Tensor, Tensor, Tensor]
"""Queries, keys, values and probabilities of one block, as its products use them."""


@dataclass(frozen=True)
class Shape:
    """Sizes of one layer: query heads, key/value heads, head size, epsilon of the norms."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float

    @property
    def scale(self) -> float:
        """What the products of queries and keys are multiplied by."""
        return float(self.head_dim**-0.5)

    @property
    def rotated(self) -> int:
        """Heads that are normed and rotated: queries and keys."""
        return self.heads + self.kv_heads


class PartAttention:
    """Causal attention over one part of a packed layout, forward and backward, for one layer.

    Queries, keys, values: `[M, heads, d]`, queries already divided by `sqrt(d)`. Query heads that share a key
    head are folded into the query length, so that keys are never repeated.
    """

    def __init__(self, part: Part, shape: Shape, dtype: torch.dtype) -> None:
        self.part, self.shape, self.dtype = part, shape, dtype
        self.group = shape.heads // shape.kv_heads
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.prompt_bias = self._fold_bias(part.prompt_bias)
        self.answer_biases = [self._fold_bias(answers.bias) for answers in part.answers]

    def _fold_bias(self, bias: Tensor) -> Tensor:
        """`[B * kv, Tq * group, Tk]` in `dtype`, query position major."""
        rows, queries, keys = bias.shape
        kv, group = self.shape.kv_heads, self.group
        wide = bias.to(self.dtype)[:, None, :, None, :].expand(rows, kv, queries, group, keys)
        return wide.reshape(rows * kv, queries * group, keys)

    def _queries(self, packed: Tensor, places: Tensor) -> Tensor:
        """`[B * kv, Tq * group, d]` of packed `[M, heads, d]` at `places: [B, Tq]`."""
        rows, width = places.shape
        kv, group, size = self.shape.kv_heads, self.group, self.shape.head_dim
        taken = packed.index_select(0, places.flatten())
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
        scores = torch.baddbmm(bias, queries, keys.transpose(1, 2))
        # bf16 softmax is twice as slow as the float32 one with its two casts (torch 2.13 CPU).
        probs: Tensor = torch.softmax(scores, -1, dtype=self.wide)
        return probs.to(self.dtype)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, out: Tensor) -> list[Saved]:
        """Writes this part's rows of the context `out: [M, heads * d]`; returns what backward needs, by block."""
        part = self.part
        keys, values = self._keys(key, part.prompts), self._keys(value, part.prompts)
        saved = [self._attend(query, part.prompts, self.prompt_bias, (keys, values), out)]
        for answers, bias in zip(part.answers, self.answer_biases, strict=True):
            seen = tuple(
                torch.cat([shared.index_select(0, answers.parent), self._keys(packed, answers.block)], 2)
                for shared, packed in ((keys, key), (values, value))
            )
            saved.append(self._attend(query, answers.block, bias, seen, out))
        return saved

    def _attend(self, query: Tensor, block: Block, bias: Tensor, seen: tuple[Tensor, ...], out: Tensor) -> Saved:
        """Writes a block's rows of the context; `seen`: keys and values `[B, kv, Tk, d]` of its queries."""
        queries = self._queries(query, block.rows)
        keys, values = (blocks.reshape(-1, *blocks.shape[2:]) for blocks in seen)
        probs = self._probs(queries, keys, bias)
        self._unqueries(probs @ values, block, out)
        return queries, keys, values, probs

    def backward(self, heads: Tensor, saved: list[Saved], grads: tuple[Tensor, Tensor, Tensor]) -> None:
        """Writes this part's rows of the gradients of query, key and value.

        Args:
            heads: [M + 1, heads, d] gradient of the context, and zeros for padding.
            saved: what `forward` returned.
            grads: of packed query `[M, heads * d]`, key and value `[M, kv, d]`.
        """
        part = self.part
        query_grad, *key_value_grads = grads
        width = part.prompts.rows.shape[1]
        totals = self._block_backward(heads, part.prompts, saved[0], query_grad)
        for answers, own in zip(part.answers, saved[1:], strict=True):
            found = self._block_backward(heads, answers.block, own, query_grad)
            for total, grad, out in zip(totals, found, key_value_grads, strict=True):
                total.index_add_(0, answers.parent, grad[:, :, :width])
                self._unkeys(grad[:, :, width:], answers.block, out)
        for total, out in zip(totals, key_value_grads, strict=True):
            self._unkeys(total, part.prompts, out)

    def _block_backward(
        self, heads: Tensor, block: Block, saved: Saved, query_grad: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Writes the block's share of the query gradient; returns those of its keys and values `[B, kv, Tk, d]`."""
        queries, keys, values, probs = saved
        rows = len(block.rows)
        out_grad = self._queries(heads, block.blanks)
        value_grad = probs.transpose(1, 2) @ out_grad
        probs_grad = out_grad @ values.transpose(1, 2)
        wide = torch._softmax_backward_data(probs_grad.to(self.wide), probs.to(self.wide), -1, self.wide)
        scores_grad = wide.to(self.dtype)
        self._unqueries(scores_grad @ keys, block, query_grad)
        key_grad = scores_grad.transpose(1, 2) @ queries
        size = self.shape.head_dim
        return key_grad.view(rows, -1, keys.shape[1], size), value_grad.view(rows, -1, keys.shape[1], size)


class Attention:
    """All parts of a packed layout; every token belongs to exactly one."""

    def __init__(self, layout: PackedLayout, shape: Shape, dtype: torch.dtype) -> None:
        self.shape, self.dtype, self.tokens = shape, dtype, len(layout.input_ids)
        self.parts = [PartAttention(part, shape, dtype) for part in layout.parts]

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, list[list[Saved]]]:
        """Context `[M, heads * d]` and what backward needs. Rows beyond the layout's tokens are 0."""
        out = torch.empty(len(query), self.shape.heads * self.shape.head_dim, dtype=self.dtype)
        out[self.tokens :] = 0
        return out, [part.forward(query, key, value, out) for part in self.parts]

    def backward(self, grad: Tensor, saved: list[list[Saved]]) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of packed query, key, value from that of the context `[M, heads * d]`."""
        heads = F.pad(grad[: self.tokens], (0, 0, 0, 1)).view(-1, self.shape.heads, self.shape.head_dim)
        key_grad = torch.empty(len(grad), self.shape.kv_heads, self.shape.head_dim, dtype=grad.dtype)
        grads = torch.empty_like(grad), key_grad, torch.empty_like(key_grad)
        for filled in grads:
            filled[self.tokens :] = 0
        for part, own in zip(self.parts, saved, strict=True):
            part.backward(heads, own, grads)
        return grads
