"""How fast a step was, against what the device can do: tokens per second and model FLOP utilisation (MFU).

MFU = FLOPs that the step's tokens need / (seconds x processes x matmul peak of this device), the peak measured
once per process. A token's forward pass takes 2 FLOPs a weight, its backward pass 2 for the activations' gradient
and 2 for the weight's own where it is trained. Attention scores and recomputed activations are not counted, so
that the share errs low; on a loaded machine the peak is measured low as well. Owns arithmetic, times nothing else.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache

import torch
from transformers import PreTrainedModel

from onpol_cli.core.config import Dtype

SIZES = {"cpu": 1024, "cuda": 8192}
"""Side of the square matrices whose product gives the peak."""
REPEATS = 4


@dataclass(frozen=True)
class Work:
    """FLOPs of one training step by unit.

    Attributes:
        token: of a token through the layers, forward and backward.
        prediction: of one prediction through the output matrix.
    """

    token: float
    prediction: float

    def flops(self, tokens: int, predictions: int) -> float:
        """FLOPs of a step over `tokens` computed positions, `predictions` of them with a loss."""
        return self.token * tokens + self.prediction * predictions


def work_of(model: PreTrainedModel, vocab: int) -> Work:
    """What `model` needs per token; adapters and frozen weights are told apart by `requires_grad`.

    Args:
        model: sharded or not.
        vocab: rows of the output matrix that are real tokens.
    """
    head = model.get_output_embeddings().weight  # type: ignore[union-attr]
    ends = {id(head), id(model.get_input_embeddings().weight)}
    inner = [p for p in model.parameters() if id(p) not in ends]
    layers = sum(p.numel() * (6.0 if p.requires_grad else 4.0) for p in inner)
    return Work(layers, vocab * head.shape[1] * (6.0 if head.requires_grad else 4.0))  # type: ignore[operator, index]


@lru_cache(maxsize=8)
def matmul_peak(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """FLOPs per second of the best of a few large matrix products (0.1-0.3 s, once per process).

    Args:
        device: where.
        dtype: format of both factors.
        threads: torch's number of threads, for the cache: on a CPU the peak depends on it.
    """
    size = SIZES["cuda" if device.type == "cuda" else "cpu"]
    left = torch.full((size, size), 0.5, device=device, dtype=dtype)  # drawn numbers would move the run's random state
    best = float("inf")
    for _ in range(REPEATS):
        start = _now(device)
        torch.mm(left, left)
        best = min(best, _now(device) - start)
    return 2.0 * size**3 / best


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def compute_dtype(autocast: Dtype, weights: torch.dtype) -> torch.dtype:
    """Format in which the layers' products run."""
    return torch.bfloat16 if autocast is Dtype.bfloat16 else weights


def rates(seconds: float, tokens: float, flops: float, peak: float) -> dict[str, float]:
    """Metrics of one step: tokens a second through forward and backward, and MFU as a share.

    Args:
        seconds: of the step.
        tokens: prompts and completions of all processes.
        flops: from `Work.flops`, of all processes.
        peak: of all processes together.
    """
    return {"rate/train_tokens_per_s": tokens / seconds, "rate/mfu": flops / (seconds * peak)}
