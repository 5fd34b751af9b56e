"""Sequences packed without padding, each distinct prompt once.

Owns the index arithmetic of the native decoder (`native`): which tokens exist, at which positions, and
how attention gathers them into blocks. A group of rollouts shares its prompt's tokens, so that the
layers see `P + sum(T - 1)` tokens instead of `n P + sum T`; the last token of a completion predicts
nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Tokens = Sequence[int]
BLOCK_TOKENS, PADDING = 1024, 0.15
"""Tokens below which an attention block is not closed, and the share of padding from which it then is."""


@dataclass(frozen=True)
class Block:
    """Some segments of the packed tokens as rows of a padded attention block.

    Attributes:
        rows: [B, width] packed token of each place; padding points at token 0.
        blanks: [B, width] the same, padding pointing behind the last token.
        real: [R] flattened places that are not padding, in row order.
        tokens: [R] packed tokens of `real`.
    """

    rows: Tensor
    blanks: Tensor
    real: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Answers:
    """Completions of similar length, of prompts of one part.

    Attributes:
        block: attention block of the completions.
        parent: [C] prompt row of each completion row.
        bias: [C, Tw, Pw + Tw] float32 over prompt keys, then completion keys: 0 where attention is allowed, else -inf.
    """

    block: Block
    parent: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Part:
    """Prompts of similar length with all their completions: what attention computes at once.

    Attributes:
        prompts: attention block of the prompts.
        prompt_bias: [prompts, Pw, Pw] float32, 0 where attention is allowed and -inf elsewhere.
        answers: the completions that have more than one token (may be empty).
    """

    prompts: Block
    prompt_bias: Tensor
    answers: list[Answers]


@dataclass(frozen=True)
class PackedLayout:
    """Packed input of some sequences, completions sharing equal prompts.

    Attributes:
        input_ids: [M] distinct tokens: all prompts, then all completions without their last token.
        positions: [M] position of each token in its sequence.
        parts: cover all tokens, each once.
        predict: [N] packed token whose state predicts each completion token.
        targets: [N] the completion tokens.
        segments: [N] sequence number of each completion token.
        sizes: completion lengths; they sum to N.
        real_tokens: tokens of the sequences as they are, prompts repeated.
    """

    input_ids: Tensor
    positions: Tensor
    parts: list[Part]
    predict: Tensor
    targets: Tensor
    segments: Tensor
    sizes: list[int]
    real_tokens: int

    @property
    def padded_tokens(self) -> int:
        """Positions that the layers compute; never more than `real_tokens`."""
        return len(self.input_ids)


def plan_packed(units: Sequence[Sequence[tuple[Tokens, Tokens]]], budget: int) -> list[list[int]]:
    """Group units into micro-batches of at most `budget` packed tokens, equal prompts side by side.

    Families of one prompt go longest completion first, so that attention blocks are nearly full.

    Args:
        units: `(prompt_ids, completion_ids)` sequences that must share a micro-batch.
        budget: tokens of a micro-batch; a larger unit gets one of its own.

    Returns:
        Unit numbers of each micro-batch.
    """
    families: dict[tuple[int, ...], list[int]] = {}
    longest = [max(len(completion) for _, completion in unit) for unit in units]
    for number, unit in enumerate(units):
        families.setdefault(tuple(unit[0][0]), []).append(number)
    ranked = sorted(families.values(), key=lambda members: (-max(longest[m] for m in members), members[0]))
    batches: list[list[int]] = []
    size = 0
    prompts: set[tuple[int, ...]] = set()
    for number in (m for members in ranked for m in sorted(members, key=lambda m: -longest[m])):
        own = {tuple(prompt) for prompt, _ in units[number]}
        inner = sum(len(completion) - 1 for _, completion in units[number])
        cost = inner + sum(len(prompt) for prompt in own - prompts)
        if not batches or size + cost > budget:
            batches.append([])
            prompts, size = set(), 0
            cost = inner + sum(len(prompt) for prompt in own)
        batches[-1].append(number)
        prompts |= own
        size += cost
    return batches


def _block(starts: Tensor, sizes: Tensor, total: int) -> Block:
    """Rows for segments that lie at `starts` of `total` packed tokens and have `sizes` tokens each."""
    width = int(sizes.max()) if len(sizes) else 0
    places = torch.arange(width)
    valid = places[None, :] < sizes[:, None]
    tokens = starts[:, None] + places[None, :]
    rows = torch.where(valid, tokens, 0)
    real = valid.flatten().nonzero().squeeze(1)
    return Block(rows, torch.where(valid, tokens, total), real, rows.flatten()[real])


def _causal(width: int) -> Tensor:
    return torch.full((width, width), -torch.inf).triu(1)


def pack(sequences: Sequence[tuple[Tokens, Tokens]]) -> PackedLayout:
    """Packed layout of `(prompt_ids, completion_ids)` sequences, on the CPU."""
    numbers: dict[tuple[int, ...], int] = {}
    owner = [numbers.setdefault(tuple(prompt), len(numbers)) for prompt, _ in sequences]
    prompt_sizes = torch.tensor([len(prompt) for prompt in numbers])
    sizes = torch.tensor([len(completion) for _, completion in sequences])
    prompt_starts = prompt_sizes.cumsum(0) - prompt_sizes
    inner = sizes - 1
    starts = int(prompt_sizes.sum()) + inner.cumsum(0) - inner
    parent = torch.tensor(owner)
    flat = [token for prompt in numbers for token in prompt]
    flat += [token for _, completion in sequences for token in completion[:-1]]
    lasts = prompt_starts[parent] + prompt_sizes[parent] - 1
    total = int(sizes.sum())
    segments = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    offsets = torch.arange(total) - (sizes.cumsum(0) - sizes)[segments]
    predict = torch.where(offsets == 0, lasts[segments], starts[segments] + offsets - 1)
    prompt_positions = torch.arange(int(prompt_sizes.sum())) - prompt_starts.repeat_interleave(prompt_sizes)
    inner_positions = torch.arange(int(inner.sum())) - (inner.cumsum(0) - inner).repeat_interleave(inner)
    positions = torch.cat([prompt_positions, inner_positions + prompt_sizes[parent].repeat_interleave(inner)])
    return PackedLayout(
        input_ids=torch.tensor(flat),
        positions=positions,
        parts=[_part(rows, (prompt_starts, prompt_sizes), (starts, inner), parent) for rows in _alike(prompt_sizes)],
        predict=predict,
        targets=torch.tensor([token for _, completion in sequences for token in completion]),
        segments=segments,
        sizes=sizes.tolist(),
        real_tokens=sum(len(prompt) + len(completion) for prompt, completion in sequences),
    )


def _alike(sizes: Tensor) -> list[Tensor]:
    """Numbers of the segments of each block, longest first: a block ends where padding would exceed `PADDING` of it.

    Scores are quadratic in a block's width, so that one long segment would make those of all others costly;
    small blocks on the other hand cost more calls than they save.
    """
    blocks: list[list[int]] = []
    real = width = 0
    ranked = sorted(enumerate(sizes.tolist()), key=lambda pair: -pair[1])
    for number, size in ranked:
        padded = 0 if not blocks else width * (len(blocks[-1]) + 1)
        if not blocks or (real >= BLOCK_TOKENS and padded - real - size > PADDING * padded):
            blocks.append([])
            real, width = 0, size
        blocks[-1].append(number)
        real += size
    return [torch.tensor(block) for block in blocks]


def _part(rows: Tensor, prompts: tuple[Tensor, Tensor], completions: tuple[Tensor, Tensor], owner: Tensor) -> Part:
    """The part of the prompts `rows`.

    Args:
        rows: prompt numbers.
        prompts: starts and sizes of all prompts among the packed tokens.
        completions: starts and sizes (without the last token) of all completions.
        owner: prompt number of each completion.
    """
    starts, sizes = completions
    total = int(prompts[1].sum() + sizes.sum())
    place = torch.full_like(prompts[1], -1)
    place[rows] = torch.arange(len(rows))
    own = ((place[owner] >= 0) & (sizes > 0)).nonzero().squeeze(1)
    asked = _block(prompts[0][rows], prompts[1][rows], total)
    answers = []
    for alike in _alike(sizes[own]):
        chosen = own[alike]
        block, parent = _block(starts[chosen], sizes[chosen], total), place[owner[chosen]]
        answers.append(Answers(block, parent, _answer_bias(asked, block, prompts[1][rows][parent])))
    return Part(asked, _causal(asked.rows.shape[1]).expand(len(rows), -1, -1), answers)


def _answer_bias(prompts: Block, completions: Block, prompt_sizes: Tensor) -> Tensor:
    """All real prompt keys, then earlier and own completion keys. Padding queries see the same: finite."""
    keys, width = prompts.rows.shape[1], completions.rows.shape[1]
    bias = torch.zeros(len(prompt_sizes), width, keys + width)
    beyond = torch.arange(keys)[None, :] >= prompt_sizes[:, None]
    bias[:, :, :keys].masked_fill_(beyond[:, None, :], -torch.inf)
    bias[:, :, keys:] = _causal(width)
    return bias
