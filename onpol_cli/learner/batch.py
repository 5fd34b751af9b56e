"""Training examples and their micro-batches.

Owns what one example carries, how examples are grouped under a token budget, and the index arithmetic
from padded model input to the flat `[N]` completion tokens that losses see. Knows no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from onpol_cli.core.errors import OnpolError

Tokens = Sequence[int]
PAD = 0
"""Any valid id: padding sits to the right, where no completion token can attend to it."""
FEW = 256
"""Tokens of padding in a whole step that cost less than more micro-batches: small ones are bound by kernel launches."""


@dataclass
class TrainExample:
    """One sequence with its per-token streams.

    Every stream is `[T]` float32 over the completion tokens, or None where the component is not used.

    Attributes:
        prompt_ids: tokens before the completion, at least one.
        completion_ids: T tokens, at least one.
        ce_weights: cross-entropy weight of each token.
        pg_mask: 1 for tokens trained by policy gradient.
        advantages: advantage of each token (None is 0).
        sampler_logprobs: log-probs of the rollout engine; needed with `pg_mask`.
        teacher_logprobs: teacher's log-probs of the same tokens; needed if `teacher_coef` is not 0.
        teacher_coef: weight of `teacher_logprobs - policy_logprobs` in the advantage.
        reference_logprobs: needed by `reference_kl` and by preference pairs.
        div_mask: 1 for tokens trained by the exact divergence.
        teacher_hidden: [T, H_teacher] teacher states that predict each token; needed with `div_mask`.
        pair: number shared by exactly two examples of a step, one of them `chosen`.
        chosen: the preferred one of its pair.
        problem_id: of what it answers, for messages and dumps.
    """

    prompt_ids: Tokens
    completion_ids: Tokens
    ce_weights: Tensor | None = None
    pg_mask: Tensor | None = None
    advantages: Tensor | None = None
    sampler_logprobs: Tensor | None = None
    teacher_logprobs: Tensor | None = None
    teacher_coef: float = 0.0
    reference_logprobs: Tensor | None = None
    div_mask: Tensor | None = None
    teacher_hidden: Tensor | None = None
    pair: int | None = None
    chosen: bool = False
    problem_id: str | None = None

    def __len__(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.prompt_ids) + len(self.completion_ids)


STREAMS = (
    "ce_weights",
    "pg_mask",
    "advantages",
    "sampler_logprobs",
    "teacher_logprobs",
    "reference_logprobs",
    "div_mask",
    "teacher_hidden",
)


def check_example(example: TrainExample, number: int) -> None:
    """Raise `OnpolError` for an example that a loss could not be computed from."""
    where = f"Example {number} of this step"
    size = len(example.completion_ids)
    if not size or not len(example.prompt_ids):
        raise OnpolError(f"{where} has an empty prompt or completion; both need at least one token.")
    for name in STREAMS:
        stream = getattr(example, name)
        if stream is not None and len(stream) != size:
            raise OnpolError(f"{where}: {name} has {len(stream)} entries for {size} completion tokens.")
    if example.pg_mask is not None and example.sampler_logprobs is None:
        raise OnpolError(f"{where} is trained by policy gradient but has no sampler_logprobs.")
    if example.teacher_coef != 0 and example.teacher_logprobs is None:
        raise OnpolError(f"{where} has teacher_coef={example.teacher_coef} but no teacher_logprobs; never taken as 0.")
    if example.teacher_logprobs is not None and not bool(torch.isfinite(example.teacher_logprobs).all()):
        raise OnpolError(f"{where}: some teacher_logprobs are missing or not finite.")
    if example.div_mask is not None and example.teacher_hidden is None:
        raise OnpolError(f"{where} is trained by divergence but has no teacher_hidden.")
    if example.pair is not None and example.reference_logprobs is None:
        raise OnpolError(f"{where} belongs to a preference pair but has no reference_logprobs.")


def units(examples: Sequence[TrainExample]) -> list[list[int]]:
    """Indices that must share a micro-batch: the two of a pair, everything else alone."""
    pairs: dict[int, list[int]] = {}
    result: list[list[int]] = []
    for index, example in enumerate(examples):
        if example.pair is None:
            result.append([index])
        elif example.pair in pairs:
            pairs[example.pair].append(index)
        else:
            pairs[example.pair] = [index]
            result.append(pairs[example.pair])
    for pair, members in pairs.items():
        if len(members) != 2 or examples[members[0]].chosen == examples[members[1]].chosen:
            raise OnpolError(f"Preference pair {pair} needs one chosen and one rejected example, got {len(members)}.")
    return result


@dataclass
class _Bucket:
    """Units that share a micro-batch, longest first. `real` are the tokens that any grouping has."""

    members: list[int]
    width: int
    rows: int
    real: int

    @property
    def padded(self) -> int:
        return self.rows * self.width

    def joined(self, shorter: _Bucket) -> _Bucket:
        members = self.members + shorter.members
        return _Bucket(members, self.width, self.rows + shorter.rows, self.real + shorter.real)


def plan(unit_lengths: Sequence[Sequence[int]], budget: int, waste: float = 0.05) -> list[list[int]]:
    """Group units into few micro-batches of similar length whose padding stays below a share of the step.

    Buckets are first cut so that none is above `waste`, then neighbours are joined, the cheapest join first, while
    the padding of the whole step stays within `waste`, or within `FEW` tokens. That of a pair's shorter side, which
    no grouping can spare, comes on top.

    Args:
        unit_lengths: lengths of the sequences of each unit.
        budget: tokens of a micro-batch, padding included. A longer unit gets one of its own.
        waste: largest share of padding among all tokens.

    Returns:
        Unit numbers of each micro-batch.
    """
    order = sorted(range(len(unit_lengths)), key=lambda unit: (-max(unit_lengths[unit]), unit))
    buckets: list[_Bucket] = []
    for unit in order:
        lengths = unit_lengths[unit]
        # What a pair pads its shorter side by cannot be helped, and counts as its own.
        one = _Bucket([unit], max(lengths), len(lengths), max(lengths) * len(lengths))
        wider = buckets[-1].joined(one) if buckets else None
        if wider and wider.padded <= budget and wider.padded - wider.real <= waste * wider.padded:
            buckets[-1] = wider
        else:
            buckets.append(one)
    return [bucket.members for bucket in _joined(buckets, budget, waste)]


def _joined(buckets: list[_Bucket], budget: int, waste: float) -> list[_Bucket]:
    """Neighbours of `buckets` (longest first) joined while the padding of all stays within bounds."""
    real = sum(bucket.real for bucket in buckets)
    padded = sum(bucket.padded for bucket in buckets)
    while True:
        joins = [
            ((left.width - right.width) * right.rows, place)
            for place, (left, right) in enumerate(pairwise(buckets))
            if left.width * (left.rows + right.rows) <= budget
        ]
        added, place = min(joins, default=(0, -1))
        if place < 0 or padded + added - real > max(FEW, waste * (padded + added)):
            return buckets
        padded += added
        buckets = [*buckets[:place], buckets[place].joined(buckets[place + 1]), *buckets[place + 2 :]]


@dataclass(frozen=True)
class Layout:
    """Model input of some sequences and where their completion tokens are.

    Attributes:
        input_ids: [B, L] right-padded.
        predict: [N] index into the flattened [B * L] of the position whose hidden state predicts each
            completion token, sequence after sequence.
        targets: [N] the completion tokens.
        segments: [N] sequence number (0-based within this layout) of each completion token.
        sizes: completion length of each sequence; they sum to N.
        real_tokens: tokens that are not padding.
    """

    input_ids: Tensor
    predict: Tensor
    targets: Tensor
    segments: Tensor
    sizes: list[int]
    real_tokens: int

    @property
    def padded_tokens(self) -> int:
        """Positions that the model computes."""
        return self.input_ids.numel()


def lay_out(sequences: Sequence[tuple[Tokens, Tokens]], device: torch.device) -> Layout:
    """Right-padded layout of `(prompt_ids, completion_ids)` sequences on `device`."""
    lengths = [len(prompt) + len(completion) for prompt, completion in sequences]
    width = max(lengths)
    ids = torch.full((len(sequences), width), PAD, dtype=torch.long)
    predict, sizes = [], []
    for row, (prompt, completion) in enumerate(sequences):
        ids[row, : lengths[row]] = torch.as_tensor([*prompt, *completion], dtype=torch.long)
        first = row * width + len(prompt) - 1
        predict.append(torch.arange(first, first + len(completion)))
        sizes.append(len(completion))
    index = torch.cat(predict)
    targets = ids.flatten()[index + 1]
    segments = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return Layout(ids.to(device), index.to(device), targets.to(device), segments.to(device), sizes, sum(lengths))


def stream(examples: Sequence[TrainExample], name: str, device: torch.device, fill: float = 0.0) -> Tensor:
    """One stream of all examples, concatenated to `[N]` (or `[N, H]`); absent ones are `fill`."""
    parts = []
    for example in examples:
        value = getattr(example, name)
        parts.append(torch.full((len(example.completion_ids),), fill) if value is None else value)
    joined = torch.cat(parts).to(device)
    return joined if joined.dtype == torch.float64 else joined.float()
