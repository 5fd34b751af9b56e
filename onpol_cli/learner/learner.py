"""The learner: one optimiser step over examples, scoring, weights and state.

Knows no method: examples carry per-token streams, `objective` sums their loss components. Owns the
micro-batch loop, guards against non-finite numbers, and the metrics of a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from onpol_cli.core.config import Config
from onpol_cli.core.errors import OnpolError
from onpol_cli.learner.batch import TrainExample, check_example, units
from onpol_cli.learner.forward import IDLE, AnyLayout, Pair, TokenModel, TokenScores
from onpol_cli.learner.memory import keep_freed_memory
from onpol_cli.learner.model import real_vocab
from onpol_cli.learner.nonfinite import NonFinite, Part, described, payload, suspects
from onpol_cli.learner.objective import COMPONENTS, MicroBatch, Objective, PlainTally, Tally, count, trained_tokens
from onpol_cli.learner.optim import Optimiser
from onpol_cli.learner.parallel import join_world, like, whole, whole_state
from onpol_cli.learner.throughput import compute_dtype, matmul_peak, rates, work_of
from onpol_cli.learner.weights import Adapter, adapter_of, adapters_off, merged_weights, to_saved, write_folder

Dump = Callable[[dict[str, Any]], str]
"""Writes what led to a non-finite number somewhere and returns where."""


@dataclass(frozen=True)
class Accumulated:
    """What the gradients of one batch were made of.

    Attributes:
        examples: those that fit the context, of this process.
        counts: global denominators by component.
        sizes: this process's tokens: `real`, `padded`, `computed` by the layers, `predicted`, `trained`.
        tally: this process's sums behind the metrics.
        parts: this process's micro-batches with their losses.
    """

    examples: list[TrainExample]
    counts: dict[str, float]
    sizes: dict[str, int]
    tally: Tally
    parts: list[Part]


class Learner:
    """A policy in training.

    Args:
        model: the policy, with adapters injected if only these are trained.
        tokenizer: its tokenizer (saved with checkpoints), or just the number of real tokens.
        config: `learner`, `optim`, `method` and the sampling temperature are read.
        total_steps: length of the learning-rate schedule; `plan_steps` changes it.
        device: where it runs.
        teacher_head: [V, H_teacher] teacher's output matrix, whole or sharded, for exact divergences.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | int,
        config: Config,
        total_steps: int,
        device: torch.device,
        teacher_head: Tensor | None = None,
    ) -> None:
        if config.learner.threads > 0:
            torch.set_num_threads(config.learner.threads)
        self.config = config
        self.device = device
        self.tokenizer = None if isinstance(tokenizer, int) else tokenizer
        vocab = tokenizer if isinstance(tokenizer, int) else real_vocab(tokenizer, model)
        temperature = config.rollout.sampling.temperature or 1.0
        if device.type == "cpu":
            keep_freed_memory()
        self.world = join_world(config.parallel, device)
        if self.world.size > 1 and config.optim.name == "muon":
            raise OnpolError("optim.name=muon works in one process only (its update needs whole matrices). Use adamw.")
        self.engine = TokenModel(model, vocab, config.learner, device, temperature, self.world)
        self.model = self.engine.model
        self.model.train()
        if config.learner.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        head = None if teacher_head is None else whole(teacher_head).to(device)
        self.objective = Objective(self.engine, config.method, head)
        self.optimiser = Optimiser(self._trainable(), self._outer_names(), config.optim, total_steps)
        self.work = work_of(self.model, vocab)
        self.dump: Dump | None = None
        self.random = self._random_state()

    def _trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def _outer_names(self) -> set[str]:
        """Names of embedding and output matrices, which are no hidden matrices."""
        ends = {id(self.model.get_input_embeddings().weight), id(self.engine.output_matrix)}
        return {name for name, parameter in self.model.named_parameters() if id(parameter) in ends}

    @property
    def steps_done(self) -> int:
        """Optimiser steps taken."""
        return self.optimiser.steps_done

    def plan_steps(self, total: int) -> None:
        """Spread the learning-rate schedule over `total` steps, the run's own number once it is known."""
        self.optimiser.total_steps = max(1, total)

    def step(self, examples: Sequence[TrainExample]) -> dict[str, float]:
        """One optimiser step over all `examples`, in micro-batches of `learner.micro_tokens`.

        With several processes, `examples` are this rank's share (`world.share`) and every rank calls.

        Returns:
            Metrics by name; means are over trained tokens (pairs for `preference/*`), nats.

        Raises:
            OnpolError: an example that no loss can be computed from.
            NonFinite: a loss or gradient is not; weights and random state are as before the step.
        """
        start = time.perf_counter()
        batch = self.accumulate(examples)
        rate = self.optimiser.rate
        norm = self.optimiser.clip()
        parts = self.world.gather((batch.tally.plain(), batch.sizes))
        metrics = summarise([plain for plain, _ in parts])
        self._guard(metrics["loss/total"], "loss", batch.parts)
        self._guard(float(norm), "gradient", batch.parts)
        self.optimiser.step()
        total = {name: sum(own[name] for _, own in parts) for name in batch.sizes}
        seconds = time.perf_counter() - start
        flops = self.work.flops(total["computed"], total["predicted"])
        return metrics | {
            "grad_norm": float(norm),
            "lr": rate,
            "tokens/trained": float(total["trained"]),
            "tokens/processed": float(total["real"]),
            "tokens/padding_share": max(0.0, 1 - total["real"] / max(1, total["padded"])),
            "tokens/dropped_sequences": float(total["dropped"]),
            "time/train": seconds,
            **rates(seconds, total["real"], flops, self.world.size * self._peak()),
        }

    def _peak(self) -> float:
        """FLOPs per second that one process could do in the layers' number format."""
        dtype = compute_dtype(self.config.learner.autocast, self.model.dtype)
        return matmul_peak(self.device, dtype, torch.get_num_threads())

    def accumulate(self, examples: Sequence[TrainExample]) -> Accumulated:
        """Add the gradients of all micro-batches to the weights' `grad`; nothing is stepped.

        With several processes, `examples` are this rank's share and every rank calls.

        Raises:
            OnpolError: an example that no loss can be computed from.
            NonFinite: a loss is not (with several processes `step` finds it); gradients are then cleared.
        """
        self.random = self._random_state()
        for number, example in enumerate(examples):
            check_example(example, number)
        kept = self._within_context(examples)
        groups, tally = units(kept), Tally()
        pairs = [[(kept[index].prompt_ids, kept[index].completion_ids) for index in group] for group in groups]
        batches = self.engine.plan(pairs) if pairs else []
        everyone = self.world.gather((count(kept), len(batches), [len(e) for e in examples]))
        self._require_some(max(number for _, number, _ in everyone), [own for _, _, own in everyone])
        counts = {name: sum(own[name] for own, _, _ in everyone) for name in COMPONENTS}
        idle: list[list[int]] = [[] for _ in range(max(number for _, number, _ in everyone) - len(batches))]
        sizes = dict.fromkeys(("real", "padded", "computed", "predicted"), 0)
        sizes |= {"dropped": len(examples) - len(kept), "trained": sum(map(trained_tokens, kept))}
        parts: list[Part] = []
        for batch in batches + idle:
            members = [kept[index] for unit in batch for index in groups[unit]] or [idle_example()]
            layout = self.engine.lay_out([(e.prompt_ids, e.completion_ids) for e in members])
            part = MicroBatch(members, layout, counts, tally)
            with self.engine.products():
                loss = self.engine.run(lambda part=part: self.objective(part))  # type: ignore[misc]
                found = Part(len(parts) + 1, members, loss.detach())
                if self.world.size == 1:  # else one rank would stop alone; the step's loss shows it to all
                    self._guard(float(found.loss), "loss", [found])
                loss.backward()
            if batch:
                count_tokens(sizes, layout)
                parts.append(found)
        return Accumulated(kept, counts, sizes, tally, parts)

    def _within_context(self, examples: Sequence[TrainExample]) -> list[TrainExample]:
        """Examples that fit `model.max_context`; a pair goes if either side does not."""
        limit = self.config.model.max_context
        long_pairs = {e.pair for e in examples if len(e) > limit and e.pair is not None}
        return [e for e in examples if len(e) <= limit and (e.pair is None or e.pair not in long_pairs)]

    def _require_some(self, most: int, lengths: Sequence[Sequence[int]]) -> None:
        """Refuse a step of which no process kept anything: `most` micro-batches, `lengths` before the cut, by process.

        Both were gathered, so that all processes stop together.
        """
        if most > 0:
            return
        every = [length for own in lengths for length in own]
        raise OnpolError(
            f"No training sequence of this step fits model.max_context={self.config.model.max_context} tokens "
            f"(longest {max(every, default=0)}, {len(every)} in all). Raise model.max_context or shorten the data."
        )

    def _guard(self, value: float, what: str, parts: Sequence[Part]) -> None:
        """Stop if `value` is not finite, the same on every rank. `parts`: where it may come from."""
        if math.isfinite(value):
            return
        self.optimiser.zero_grad()
        self._set_random_state(*self.random)
        step, found = self.optimiser.steps_done + 1, suspects(parts, self.world)
        text, where = described(found, self.world), ""
        if self.dump is not None and found:
            where = f" Dump: {self.dump(payload(step, what, value, found))}."
        raise NonFinite(
            f"Non-finite {what} ({value}) at step {step} {text}.{where} "
            "The weights are those before this step; lower optim.lr or look at the dump, then --resume."
        )

    def _random_state(self) -> tuple[Tensor, Tensor | None]:
        """torch's own generators on the CPU and on this learner's GPU."""
        return torch.get_rng_state(), torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None

    def _set_random_state(self, cpu: Tensor, cuda: Tensor | None) -> None:
        torch.set_rng_state(cpu)
        if self.device.type == "cuda" and cuda is not None:
            torch.cuda.set_rng_state(cuda, self.device)

    def logprobs(self, sequences: Sequence[Pair]) -> list[Tensor]:
        """Policy log-probs `[T]` of each completion, nats, on the CPU; no gradient."""
        return self.engine.logprobs(sequences)

    def score(self, sequences: Sequence[Pair]) -> list[TokenScores]:
        """Policy log-probs and entropies of each completion; no gradient."""
        return self.engine.score(sequences)

    def hidden(self, sequences: Sequence[Pair]) -> list[Tensor]:
        """Policy hidden states `[T, H]` that predict each completion's tokens, on the CPU; no gradient."""
        return self.engine.hidden(sequences)

    def adapter_off(self) -> AbstractContextManager[None]:
        """While it lasts, the policy is the base without its adapters: reference or teacher for free."""
        return adapters_off(self.model)

    def teach_from_own_head(self) -> None:
        """The teacher's output matrix is the policy's own, which adapters leave as it is."""
        self.objective = replace(self.objective, teacher_head=whole(self.engine.output_matrix))

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Hugging Face name and value of every weight, adapters merged, `lm_head.weight` always included."""
        return merged_weights(self.model)

    def adapter(self) -> Adapter:
        """The LoRA matrices alone, for samplers that hold the base and take adapters."""
        return adapter_of(self.model)

    def state_dict(self, keep: bool = True) -> dict[str, Any]:
        """Trainable weights, optimiser, schedule position and every process's random state, for exact resume.

        Whole tensors on the CPU, whatever the number of processes (of which every one must call, those that do not
        need the result with `keep` false, which leaves its tensors out).
        """
        cpu, cuda = self._random_state()
        return {
            "weights": whole_state(dict(self._trainable()), keep),
            "optimiser": whole_state(self.optimiser.state_dict(), keep),
            "torch_rng": self.world.gather(cpu),
            "cuda_rng": self.world.gather(cuda),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; afterwards training goes on bit for bit on the CPU."""
        weights = dict(self._trainable())
        if weights.keys() != state["weights"].keys():
            raise OnpolError("The saved state is of another model or LoRA setting than this configuration's.")
        with torch.no_grad():
            for name, value in state["weights"].items():
                weights[name].copy_(like(value, weights[name]))
        self.optimiser.load_state_dict(state["optimiser"])
        own = self.world.rank % len(state["torch_rng"])
        self._set_random_state(state["torch_rng"][own], state["cuda_rng"][own])

    def save_pretrained(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a plain Hugging Face folder, adapters merged, in `dtype` (default: the weights' own).

        With several processes every one must call and rank 0 writes.
        """
        state = to_saved(self.named_weights(), self.model, dtype or self.model.dtype, keep=self.world.rank == 0)
        if self.world.rank == 0:
            write_folder(Path(path), state, self.model, self.tokenizer, dtype or self.model.dtype)


def count_tokens(sizes: dict[str, int], layout: AnyLayout) -> None:
    """Add a micro-batch's tokens to `sizes`; padding is not `computed`, nor a shared prompt twice."""
    sizes["real"] += layout.real_tokens
    sizes["padded"] += layout.padded_tokens
    sizes["computed"] += min(layout.real_tokens, layout.padded_tokens)
    sizes["predicted"] += sum(layout.sizes)


def idle_example() -> TrainExample:
    """Something without weight, for a rank that has run out of micro-batches before others."""
    return TrainExample(*IDLE, ce_weights=torch.zeros(1))


def summarise(parts: Sequence[PlainTally]) -> dict[str, float]:
    """Means and ratio quantiles of a step from every rank's sums."""
    sums: dict[str, float] = {}
    numbers: dict[str, float] = {}
    for own_sums, own_numbers, _ in parts:
        for name, value in own_sums.items():
            sums[name] = sums.get(name, 0.0) + value
            numbers[name] = numbers.get(name, 0.0) + own_numbers[name]
    metrics = {name: total / numbers[name] for name, total in sums.items() if numbers[name] > 0}
    ratios = torch.cat([ratios for _, _, ratios in parts])
    if len(ratios):
        low, high = ratios.sort().values[[int(0.01 * (len(ratios) - 1)), int(0.99 * (len(ratios) - 1))]].tolist()
        metrics |= {"ratio/p01": low, "ratio/p99": high}
    losses = [value for name, value in metrics.items() if name.startswith("loss/")]
    return metrics | {"loss/total": sum(losses)}
