"""The learner at full shapes with random weights, and its loss against the plain route."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gpu_parts.common import REAL_VOCABULARY, Found, Peak, Setting, best, random_model, step_flops
from onpol_cli.core.config import Config, Dtype, LoraConfig
from onpol_cli.learner.batch import TrainExample
from onpol_cli.learner.head import HeadOptions
from onpol_cli.learner.learner import Learner
from onpol_cli.learner.logprobs import token_logprobs, token_logprobs_entropy, weighted_nll
from onpol_cli.learner.model import add_adapters

RANK = 16


class PlainAdapter(nn.Module):
    """`W x + B A x` with W frozen: stands in for peft's layer where peft is not installed."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False, device=base.weight.device, dtype=base.weight.dtype)
        self.up = nn.Linear(rank, base.out_features, bias=False, device=base.weight.device, dtype=base.weight.dtype)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        result: Tensor = self.base(x) + 2.0 * self.up(self.down(x))
        return result


def adapt(model: nn.Module) -> str:
    """Rank-16 adapters on every projection; says by what means."""
    if importlib.util.find_spec("peft"):
        add_adapters(model, LoraConfig(rank=RANK), 0)  # type: ignore[arg-type]
        return "peft"
    model.requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name.endswith("_proj") and isinstance(child, nn.Linear):
                setattr(parent, name, PlainAdapter(child, RANK))
    return "plain low-rank layers (peft is not installed)"


def make_examples(rows: int, prompt: int, completion: int, vocab: int) -> list[TrainExample]:
    """Random sequences with a cross-entropy stream."""
    ids = torch.randint(0, vocab, (rows, prompt + completion), generator=torch.Generator().manual_seed(0)).tolist()
    return [TrainExample(row[:prompt], row[prompt:], ce_weights=torch.ones(completion)) for row in ids]


def as_rollouts(examples: list[TrainExample], logprobs: list[Tensor]) -> list[TrainExample]:
    """The same sequences as on-policy distillation sees them: own log-probs, and a teacher's nearby."""
    draw = torch.Generator().manual_seed(1)
    return [
        TrainExample(
            example.prompt_ids, example.completion_ids, pg_mask=torch.ones(len(own)), sampler_logprobs=own,
            teacher_logprobs=own + 0.1 * torch.randn(len(own), generator=draw), teacher_coef=1.0,
        )
        for example, own in zip(examples, logprobs, strict=True)
    ]  # fmt: skip


def learner(setting: Setting, size: str, lora: bool = False, master: bool = False) -> Found:
    """Tokens/s, useful operations a second and peak memory of whole optimiser steps, and of scoring.

    Args:
        size: `0.6b` or `4b`.
        lora: train rank-16 adapters instead of all weights.
        master: float32 weights under bf16 autocast (`learner=gpu`) instead of bf16 weights.
    """
    device, size = setting.place, setting.pick(size, "small")
    rows, prompt, completion = setting.pick((16, 256, 768), (4, 16, 48))
    config = Config()
    config.learner.gradient_checkpointing = True
    config.learner.micro_tokens = setting.pick(16384, 128)
    config.learner.autocast = Dtype.bfloat16
    peak = Peak(device)
    model = random_model(size, torch.float32 if master else torch.bfloat16, device)
    yield "adapters", adapt(model) if lora else None
    policy = Learner(model, REAL_VOCABULARY[size], config, 1000, device)
    yield "parameters", sum(p.numel() for p in model.parameters())
    yield "trained", sum(p.numel() for p in model.parameters() if p.requires_grad)
    examples = make_examples(rows, prompt, completion, REAL_VOCABULARY[size])
    shape = (size, rows, prompt, completion)
    yield "step", {"sequences": rows, "prompt": prompt, "completion": completion}
    passes = 2 if lora else 3
    yield "sft", speed(lambda: policy.step(examples), shape, passes, device)
    pairs = [(e.prompt_ids, e.completion_ids) for e in examples]
    yield "scoring", speed(lambda: policy.logprobs(pairs), shape, 1, device)
    rollouts = as_rollouts(examples, policy.logprobs(pairs))
    yield "opd", speed(lambda: policy.step(rollouts), shape, passes, device)
    metrics = policy.step(rollouts)
    yield "opd_step_finite", all(math.isfinite(value) for value in metrics.values())
    yield "peak_gib", peak.gib()


def speed(
    work: Callable[[], Any], shape: tuple[str, int, int, int], passes: int, device: torch.device
) -> dict[str, Any]:
    """Tokens/s (prompt and completion) and useful 10^12 operations a second."""
    taken = best(work, device, repeats=4, limit=8.0)
    _, rows, prompt, completion = shape
    return {
        "seconds": round(taken, 4),
        "tokens_per_s": round(rows * (prompt + completion) / taken),
        "tflops": round(step_flops(*shape, passes=passes) / taken / 1e12, 4),
    }


Route = Callable[[Tensor, Tensor, Tensor], Tensor]


def routes(chunk: int) -> dict[str, Route]:
    """Ways to the mean negative log-prob over a large vocabulary."""

    def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logprobs = (hidden @ weight.T).float().log_softmax(1)
        return -logprobs.gather(1, targets[:, None]).mean()

    def ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return -token_logprobs(hidden, weight, targets, HeadOptions(len(weight), chunk)).mean()

    def with_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return -token_logprobs_entropy(hidden, weight, targets, HeadOptions(len(weight), chunk))[0].mean()

    def summed(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        share = torch.full_like(targets, 1.0 / len(targets), dtype=torch.float32)
        return weighted_nll(hidden, weight, targets, share, HeadOptions(len(weight), chunk))[0]

    return {"plain": plain, "log-probs": ours, "with entropy": with_entropy, "weighted sum": summed}


def loss(setting: Setting) -> Found:
    """Chunked loss against plain `log_softmax`: seconds and GiB above the inputs, forward and backward.

    `gradient_error` is relative to the plain route in float32 on the same (bf16-representable) inputs.
    """
    device = setting.place
    tokens, hidden, vocab = setting.pick((4096, 1024, 151936), (256, 64, 4096))
    yield "shape", {"tokens": tokens, "hidden": hidden, "vocab": vocab, "chunk": 256}
    draw = torch.Generator(device).manual_seed(0)
    states = torch.randn(tokens, hidden, device=device, generator=draw).bfloat16()
    matrix = (4 * hidden**-0.5 * torch.randn(vocab, hidden, device=device, generator=draw)).bfloat16()
    targets = torch.randint(0, vocab, (tokens,), device=device, generator=draw)
    wanted = gradients(routes(256)["plain"], states.float(), matrix.float(), targets)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = (states.to(dtype), matrix.to(dtype), targets)
        yield str(dtype).removeprefix("torch."), {name: cost(way, inputs, wanted) for name, way in routes(256).items()}


def cost(way: Route, inputs: tuple[Tensor, Tensor, Tensor], wanted: tuple[Tensor, ...]) -> dict[str, Any]:
    """Seconds, memory and gradient error of one route."""
    found = gradients(way, *inputs)
    errors = [float((a.float() - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]
    del found
    device = inputs[0].device
    peak = Peak(device)
    gradients(way, *inputs)
    memory = peak.gib(above=True)
    taken = best(lambda: gradients(way, *inputs), device, repeats=5, limit=4.0)
    return {"seconds": round(taken, 5), "gib_above_inputs": memory, "gradient_error": max(errors)}


def gradients(way: Route, states: Tensor, matrix: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Gradients of hidden states and output matrix."""
    leaves = [tensor.detach().requires_grad_() for tensor in (states, matrix)]
    return torch.autograd.grad(way(leaves[0], leaves[1], targets), leaves)
