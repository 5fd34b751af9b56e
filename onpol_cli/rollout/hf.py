"""The embedded sampler: a continuous batch over a key-value cache, without vLLM.

Owns scheduling: prompts are prefilled once and shared by their samples, finished sequences leave
the batch and waiting ones enter, every token's log-probability comes from the forward pass that it
was drawn from. The forward pass itself is `lean.py` (or `module.py` for other architectures), the
draw is `sampling.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from onpol_cli.core.config import RolloutConfig, SamplingConfig
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.types import Finish, Rollout
from onpol_cli.learner.weights import Adapter, merged_weights
from onpol_cli.rollout.engine import EngineStats, Prompt, check_prompts, real_vocabulary
from onpol_cli.rollout.lean import LeanDecoder, supports
from onpol_cli.rollout.sampling import draw, draw_keys, repetition_penalty

PREFILL_TOKENS, PREFILL_TOKENS_CPU = 8192, 1024
"""Prompt tokens run through the model at once; on a CPU few, since there padding costs more than small products."""
FIRST_TOKENS = 64
"""Room for completions that the cache starts with; it grows when needed."""


class Decoder(Protocol):
    """A model with a cache of sequences in slots 0 ... active - 1."""

    continuous: bool

    @property
    def active(self) -> int: ...

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None: ...

    def bytes_per_token(self) -> int: ...

    def held_bytes(self) -> int: ...

    def reserve(self, slots: int, length: int) -> None: ...

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Any: ...

    def admit(self, prefix: Any, rows: Sequence[int]) -> Tensor: ...

    def keep(self, rows: Sequence[int]) -> None: ...

    def decode(self, tokens: Tensor) -> Tensor: ...

    def release(self) -> None: ...


@dataclass(frozen=True)
class Job:
    """One rollout to make: its prompt's place in the call, sample number, place in the result, token limit."""

    prompt: int
    sample: int
    place: int
    limit: int


class Tape:
    """What has been drawn so far: tokens and log-probs [N, T], and the keys [N, T, 2] to draw with."""

    def __init__(self, jobs: Sequence[Job], prompts: Sequence[Prompt], device: torch.device) -> None:
        longest = max(job.limit for job in jobs)
        keys = np.zeros((len(jobs), longest, 2), dtype=np.int32)
        for job in jobs:
            keys[job.place, : job.limit] = draw_keys(prompts[job.prompt].sample_seed(job.sample), job.limit)
        self.keys = torch.from_numpy(keys).to(device)
        self.tokens = torch.zeros(len(jobs), longest, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(len(jobs), longest, device=device)
        self.lengths = [0] * len(jobs)


class Queue:
    """Waiting rollouts, longest prompts first, with their prompts prefilled in bulk just in time."""

    def __init__(self, decoder: Decoder, prompts: Sequence[Prompt], jobs: Sequence[Job], budget: int) -> None:
        self.decoder, self.prompts, self.budget = decoder, prompts, budget
        # neighbours of similar length waste little padding; the result does not depend on the order
        self.jobs = sorted(jobs, key=lambda job: (-len(prompts[job.prompt].ids), job.place))
        self.next = 0
        self.prefixes: dict[int, tuple[Any, int]] = {}

    def _prefill(self, upto: int) -> None:
        """Prefill the prompts of the jobs from `next` to `upto` that are not yet, and forget used ones."""
        wanted = dict.fromkeys(job.prompt for job in self.jobs[self.next : upto])
        self.prefixes = {number: self.prefixes[number] for number in wanted if number in self.prefixes}
        batch: list[int] = []
        for number in [n for n in wanted if n not in self.prefixes] + [-1]:
            longest = max([len(self.prompts[n].ids) for n in [*batch, number] if n >= 0], default=0)
            if batch and (number < 0 or longest * (len(batch) + 1) > self.budget):
                prefix = self.decoder.prefill([self.prompts[n].ids for n in batch])
                self.prefixes |= {n: (prefix, row) for row, n in enumerate(batch)}
                batch = []
            batch.append(number)

    def admit(self, room: int) -> tuple[list[Job], Tensor | None]:
        """Let up to `room` waiting rollouts into the batch; returns them and their first logits."""
        jobs = self.jobs[self.next : self.next + room]
        if not jobs or (self.decoder.active and not self.decoder.continuous):
            return [], None
        if any(job.prompt not in self.prefixes for job in jobs):
            # look ahead by half a batch so that later joins of one or two seldom prefill alone
            self._prefill(self.next + max(len(jobs), room) + self.decoder.active // 2)
        if not self.decoder.continuous:
            first = self.prefixes[jobs[0].prompt][0]
            jobs = list(takewhile(lambda job: self.prefixes[job.prompt][0] is first, jobs))
        self.next += len(jobs)
        logits: list[Tensor] = []
        start = 0
        for end in range(1, len(jobs) + 1):
            prefix = self.prefixes[jobs[start].prompt][0]
            if end == len(jobs) or self.prefixes[jobs[end].prompt][0] is not prefix:
                rows = [self.prefixes[job.prompt][1] for job in jobs[start:end]]
                logits.append(self.decoder.admit(prefix, rows))
                start = end
        return jobs, torch.cat(logits)


class HfEngine:
    """`rollout.engine=hf`. See `RolloutEngine` for the contract.

    Args:
        config: batch size and number format.
        model_path: folder or hub name, read only if `model` is None.
        tokenizer: gives the real vocabulary, the end-of-sequence token and the text.
        device: where to compute.
        model: transformers causal LM whose weights are copied; never changed.
    """

    def __init__(
        self, config: RolloutConfig, model_path: str, tokenizer: Any, device: torch.device | str, model: Any = None
    ) -> None:
        from transformers import AutoModelForCausalLM

        self.config, self.tokenizer, self.device = config, tokenizer, torch.device(device)
        dtype: torch.dtype = getattr(torch, config.dtype.value)
        if model is None:
            model = AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype)
        self.vocabulary = real_vocabulary(tokenizer, model.get_output_embeddings().weight.shape[0])
        self.context: int = model.config.max_position_embeddings
        self.eos: int | None = tokenizer.eos_token_id
        self.decoder = _decoder(model, self.vocabulary, dtype, self.device)
        self.decoder.load(merged_weights(model))
        self.weight_version = 0
        self.last_stats = EngineStats()
        # a decoder that is not continuous decodes what was prefilled together: there a small batch would stay small
        few = self.device.type == "cpu" and self.decoder.continuous
        self.prefill_tokens = PREFILL_TOKENS_CPU if few else PREFILL_TOKENS

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> list[Rollout]:
        """Rollouts ordered by prompt, then sample; independent of what else is in the call."""
        check_prompts(prompts, sampling, self.vocabulary, self.context)
        began = time.perf_counter()
        jobs: list[Job] = []
        for number, prompt in enumerate(prompts):
            for sample in range(prompt.samples):
                jobs.append(Job(number, sample, len(jobs), prompt.limit(sample, sampling)))
        if not jobs:
            return []
        with torch.inference_mode():
            tape = self._run(prompts, jobs, sampling)
        rollouts = self._collect(prompts, jobs, tape)
        self.last_stats = EngineStats(sum(tape.lengths), time.perf_counter() - began)
        return rollouts

    def _slots(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> int:
        """Sequences decoded at once: `max_batch`, or fewer where a GPU's free memory asks for it."""
        if self.device.type != "cuda":
            return self.config.max_batch
        longest = max(len(prompt.ids) for prompt in prompts) + sampling.max_new_tokens
        free = torch.cuda.mem_get_info(self.device)[0]
        # what torch holds without using it counts, and so does the cache of the last call, which serves again
        free += torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        free += self.decoder.held_bytes()
        # a third: the cache is copied when it grows, and prefill needs room beside it
        return max(1, min(self.config.max_batch, int(free / 3 / (longest * self.decoder.bytes_per_token()))))

    def _run(self, prompts: Sequence[Prompt], jobs: Sequence[Job], sampling: SamplingConfig) -> Tape:
        """The decode loop: draw for every sequence, drop finished ones, admit waiting ones, decode."""
        tape = Tape(jobs, prompts, self.device)
        queue = Queue(self.decoder, prompts, jobs, self.prefill_tokens)
        slots = min(self._slots(prompts, sampling), len(jobs))
        self.decoder.keep([])  # whatever an interrupted call left behind
        self.decoder.reserve(slots, max(len(prompt.ids) for prompt in prompts) + FIRST_TOKENS)
        running, logits = queue.admit(slots)
        seen = self._seen(prompts, running, sampling)
        while running:
            assert logits is not None
            if seen is not None:
                logits = repetition_penalty(logits, seen, sampling.repetition_penalty)
            tokens = self._draw(tape, running, logits, sampling)
            if seen is not None:
                seen.scatter_(1, tokens[:, None], True)
            alive = self._alive(tape, running, tokens)
            if len(alive) < len(running):
                self.decoder.keep(alive)
                running = [running[row] for row in alive]
                index = torch.tensor(alive, dtype=torch.long, device=self.device)
                tokens, seen = tokens[index], None if seen is None else seen[index]
            logits = self.decoder.decode(tokens) if running else None
            if len(running) < slots:
                joined, first = queue.admit(slots - len(running))
                running = running + joined
                parts = [part for part in (logits, first) if part is not None]
                logits = torch.cat(parts) if parts else None
                if seen is not None and joined:
                    fresh = self._seen(prompts, joined, sampling)
                    assert fresh is not None
                    seen = torch.cat([seen, fresh])
        return tape

    def _draw(self, tape: Tape, running: Sequence[Job], logits: Tensor, sampling: SamplingConfig) -> Tensor:
        """Draw one token for every running rollout and write it on the tape."""
        places = torch.tensor([job.place for job in running], device=self.device)
        steps = torch.tensor([tape.lengths[job.place] for job in running], device=self.device)
        tokens, logprobs = draw(logits, tape.keys[places, steps], sampling)
        tape.tokens[places, steps] = tokens
        tape.logprobs[places, steps] = logprobs
        return tokens

    def _alive(self, tape: Tape, running: Sequence[Job], tokens: Tensor) -> list[int]:
        """Rows that go on, in their new order; counts the drawn token of every row."""
        alive = []
        for row, (job, token) in enumerate(zip(running, tokens.tolist(), strict=True)):
            tape.lengths[job.place] += 1
            if token != self.eos and tape.lengths[job.place] < job.limit:
                alive.append(row)
        if len(alive) == len(running):
            return alive
        # the last rows fill the holes: few cache copies, instead of a shift of all behind a hole
        count = len(alive)
        stay = {row for row in alive if row < count}
        movers = iter([row for row in alive if row >= count])
        return [row if row in stay else next(movers) for row in range(count)]

    def _seen(self, prompts: Sequence[Prompt], jobs: Sequence[Job], sampling: SamplingConfig) -> Tensor | None:
        """[len(jobs), V] bool, tokens of each prompt; None where no repetition penalty is asked for."""
        if sampling.repetition_penalty == 1.0:
            return None
        seen = torch.zeros(len(jobs), self.vocabulary, dtype=torch.bool, device=self.device)
        for row, job in enumerate(jobs):
            seen[row, torch.tensor(prompts[job.prompt].ids, device=self.device)] = True
        return seen

    def _collect(self, prompts: Sequence[Prompt], jobs: Sequence[Job], tape: Tape) -> list[Rollout]:
        """The tape as rollouts, in the order of `jobs`."""
        tokens, logprobs = tape.tokens.tolist(), tape.logprobs.tolist()
        completions = [tuple(tokens[job.place][: tape.lengths[job.place]]) for job in jobs]
        texts = self.tokenizer.batch_decode(completions, skip_special_tokens=True)
        return [
            Rollout(
                problem_id=prompts[job.prompt].problem_id,
                sample=job.sample,
                prompt_ids=prompts[job.prompt].ids,
                completion_ids=ids,
                sampler_logprobs=tuple(logprobs[job.place][: len(ids)]),
                finish=Finish.STOP if ids[-1] == self.eos else Finish.LENGTH,
                text=text,
                weight_version=self.weight_version,
            )
            for job, ids, text in zip(jobs, completions, texts, strict=True)
        ]

    def sync_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy the policy's weights into the fused matrices."""
        self.decoder.load(weights)
        self.weight_version += 1

    def sync_adapter(self, adapter: Adapter) -> None:
        """Not offered: the learner merges adapters at no cost here.

        Raises:
            OnpolError: always.
        """
        raise OnpolError(
            f"rollout=hf takes merged weights (rank {adapter.rank} given): rollout.lora_sync=adapter needs vLLM."
        )

    def sleep(self) -> None:
        """Free the key-value cache."""
        self.decoder.release()

    def wake(self) -> None:
        """Nothing to do: the cache is allocated when needed."""

    def close(self) -> None:
        """Free the cache."""
        self.decoder.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _decoder(model: Any, vocabulary: int, dtype: torch.dtype, device: torch.device) -> Decoder:
    """The lean decoder where it computes the model's architecture, else the transformers module itself."""
    if supports(model):
        return LeanDecoder(model, vocabulary, dtype, device)
    from onpol_cli.rollout.module import ModuleDecoder

    return ModuleDecoder(model, vocabulary, dtype, device)
