"""The chunked losses on the GPU: against float64 on the CPU, and their memory and time against plain log_softmax."""

import time

import pytest
import torch

from onpol_cli.core.config import OpdSignal
from onpol_cli.learner.divergence import DivergenceSettings, token_divergence
from onpol_cli.learner.head import HeadOptions
from onpol_cli.learner.logprobs import token_logprobs, token_logprobs_entropy, weighted_nll

TOKENS, HIDDEN, ROWS, VOCAB = 300, 64, 5_100, 5_003
OPTIONS = HeadOptions(VOCAB, 64, 0.9)
DIVERGENCES = [kind for kind in OpdSignal if kind is not OpdSignal.sampled]


def inputs(device, dtype):
    """Hidden states and output matrix as leaves, teacher's of another width, targets; the same numbers everywhere."""
    draw = torch.Generator().manual_seed(1)

    def leaf(*shape, scale=1.0):
        return (scale * torch.randn(*shape, generator=draw)).to(torch.bfloat16).to(device, dtype)

    states, weight = leaf(TOKENS, HIDDEN).requires_grad_(), leaf(ROWS, HIDDEN, scale=0.5).requires_grad_()
    teacher = leaf(TOKENS, 48), leaf(ROWS + 9, 48, scale=0.5)
    return states, weight, teacher, torch.randint(0, VOCAB, (TOKENS,), generator=draw).to(device)


def logprob_and_entropy(states, weight, _, targets):
    return torch.stack(token_logprobs_entropy(states, weight, targets, OPTIONS, entropy_grad=True), 1)


def cross_entropy(states, weight, _, targets):
    weights = torch.linspace(0, 2, TOKENS, device=states.device)
    return weighted_nll(states, weight, targets, weights, OPTIONS)[0][None]


def divergence(kind):
    def value(states, weight, teacher, _):
        return token_divergence(states, weight, teacher, DivergenceSettings(kind, 0.3, 16, 1.1), OPTIONS)

    return value


CASES = {"log-prob and entropy": logprob_and_entropy, "cross-entropy": cross_entropy}
CASES |= {kind.value: divergence(kind) for kind in DIVERGENCES}


def solved(case, device, dtype):
    """Values and both gradients of a case, as float64 on the CPU."""
    states, weight, teacher, targets = inputs(device, dtype)
    values = CASES[case](states, weight, teacher, targets)
    slope = torch.linspace(-1, 1, values.numel(), device=device).view_as(values)
    grads = torch.autograd.grad((values * slope).sum(), [states, weight])
    return [found.detach().double().cpu() for found in (values, *grads)]


def error(found, wanted):
    """Of each of values and gradients, relative to the whole (Frobenius)."""
    return [float((f - w).norm() / w.norm()) for f, w in zip(found, wanted, strict=True)]


@pytest.mark.parametrize("case", CASES)
def test_float32_equals_float64_on_the_cpu(device, case):
    values, *gradients = error(solved(case, device, torch.float32), solved(case, torch.device("cpu"), torch.float64))
    assert 0 < values < 1e-5  # equal to the bit would mean that both were the same computation
    assert 0 < max(gradients) < 1e-4  # those of jsd are small differences of large numbers


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_operands_lose_their_own_rounding_only(device, case):
    # the same numbers in both: they were rounded to bf16 first
    values, *gradients = error(solved(case, device, torch.bfloat16), solved(case, torch.device("cpu"), torch.float64))
    kept = device.type == "cuda"  # CUDA accumulates and returns float32; a CPU rounds logits, which moves top-k tokens
    assert values < (1e-4 if kept else 2e-2)
    assert max(gradients) < (1e-2 if kept else 6e-2)


def plain(states, weight, targets):
    return (states @ weight.T).float().log_softmax(1).gather(1, targets[:, None])[:, 0].sum()


def log_probs(states, weight, targets):
    return token_logprobs(states, weight, targets, HeadOptions(len(weight))).sum()


def summed(states, weight, targets):
    ones = torch.ones(len(targets), device=targets.device)
    return weighted_nll(states, weight, targets, ones, HeadOptions(len(weight)))[0]


TIME = {log_probs: 1.5, summed: 1.15}
"""Of the plain route's. Log-probs whose slope is known only afterwards take four products instead of three."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_vocabulary_needs_a_twentieth_of_the_memory(cuda, dtype):
    draw = torch.Generator(cuda).manual_seed(2)
    states = torch.randn(4096, 1024, generator=draw, device=cuda).to(dtype).requires_grad_()
    weight = (torch.randn(151_936, 1024, generator=draw, device=cuda) / 32).to(dtype).requires_grad_()
    targets = torch.randint(0, 151_936, (4096,), generator=draw, device=cuda)
    found = {route: cost(route, (states, weight, targets), cuda) for route in (plain, log_probs, summed)}
    print(dtype, {route.__name__: numbers for route, numbers in found.items()})
    for route, limit in TIME.items():
        assert found[route][0] <= 0.05 * found[plain][0], route.__name__
        assert found[route][1] <= limit * found[plain][1], route.__name__


def cost(route, inputs, cuda):
    """Bytes at the peak above inputs and their gradients, and seconds (the best of four), forward and backward."""
    seconds = []
    for _ in range(4):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(cuda)
        torch.cuda.synchronize(cuda)
        held, began = torch.cuda.memory_allocated(cuda), time.perf_counter()
        grads = torch.autograd.grad(route(*inputs), inputs[:2])
        torch.cuda.synchronize(cuda)
        seconds.append(time.perf_counter() - began)
        peak = torch.cuda.max_memory_allocated(cuda) - held - sum(grad.nbytes for grad in grads)
        del grads
    return peak, min(seconds)
