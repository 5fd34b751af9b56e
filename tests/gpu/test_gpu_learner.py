"""The learner's step on the GPU: same gradients as on the CPU, number formats, kernels, flat memory, resume."""

import time
from importlib.util import find_spec

import pytest
import torch
from learner_cases import CPU, assert_same, gradient, make_config, make_examples, make_learner, make_model
from needed import missing

from onpol_cli.core.config import Dtype, LoraConfig
from onpol_cli.learner.head import HeadOptions, chunk_logits
from onpol_cli.learner.model import add_adapters

KINDS = ["sft", "pg", "div", "dpo"]


def learner_on(device, kind="sft", dtype=torch.float32, lora=0, **settings):
    """A learner of the toy model; `settings` are fields of `learner`. The native decoder is the CPU's alone."""
    config = make_config(kind)
    config.learner.native = False
    for name, value in settings.items():
        assert hasattr(config.learner, name)
        setattr(config.learner, name, value)
    model = make_model().to(dtype)  # the same numbers in every format
    if lora:
        add_adapters(model, LoraConfig(rank=lora), 0)
    return make_learner(kind, dtype=dtype, config=config, model=model, device=device)


def step_on(device, kind, **settings):
    """Gradients on the CPU and metrics of one step."""
    grads, metrics = gradient(learner_on(device, kind, **settings), make_examples(kind))
    return {name: value.cpu() for name, value in grads.items()}, metrics


def cosine(first, second):
    """Between two gradients as one vector each."""
    flat = [torch.cat([value.flatten().float() for value in grads.values()]) for grads in (first, second)]
    return float(torch.nn.functional.cosine_similarity(*flat, 0))


@pytest.mark.parametrize("lora", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_float32_gradients_are_those_of_float64_on_the_cpu(device, kind, lora):
    exact, metrics = step_on(CPU, kind, dtype=torch.float64, lora=lora)
    found, own = step_on(device, kind, lora=lora)
    assert_same({name: value.float() for name, value in exact.items()}, found, 1e-4)
    assert own["loss/total"] == pytest.approx(metrics["loss/total"], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_change_nothing(device, kind):
    whole, _ = step_on(device, kind)
    split, _ = step_on(device, kind, micro_tokens=16)
    assert_same(whole, split, 1e-4)


def test_checkpointing_changes_nothing(device):
    plain, _ = step_on(device, "pg")
    again, _ = step_on(device, "pg", gradient_checkpointing=True)
    assert_same(plain, again, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_autocast_points_the_same_way(device, kind):
    exact, metrics = step_on(device, kind)
    rounded, own = step_on(device, kind, autocast=Dtype.bfloat16)
    assert 0.99 < cosine(exact, rounded) < 1 - 1e-7
    assert own["loss/total"] == pytest.approx(metrics["loss/total"], rel=0.05, abs=0.02)


def test_compiled_layers_give_the_same_gradients(device):
    plain, _ = step_on(device, "pg")
    compiled, _ = step_on(device, "pg", compile=True)
    assert_same(plain, compiled, 1e-4)


@pytest.mark.parametrize("kind", ["sft", "pg"])
def test_ligers_kernels_give_the_same_gradients(cuda, kind):
    if find_spec("liger_kernel") is None:
        missing("liger-kernel is not installed: pip install 'onpol[liger]'")
    plain, _ = step_on(cuda, kind)
    fused, _ = step_on(cuda, kind, liger=True)
    assert_same(plain, fused, 1e-4)


def losses_of(learner, steps):
    return [learner.step(make_examples("pg", seed=number))["loss/total"] for number in steps]


@pytest.mark.parametrize("lora", [0, 2])
def test_a_resumed_learner_goes_on_as_if_nothing_had_been(device, lora):
    straight = learner_on(device, "pg", lora=lora)
    losses_of(straight, range(3))
    state = straight.state_dict()
    wanted = losses_of(straight, range(3, 6))
    resumed = learner_on(device, "pg", lora=lora)
    resumed.load_state_dict(state)
    assert losses_of(resumed, range(3, 6)) == pytest.approx(wanted, rel=1e-5)  # CUDA's sums have no fixed order


def test_a_state_of_the_gpu_goes_on_on_the_cpu(cuda):
    straight = learner_on(cuda, "pg")
    losses_of(straight, range(3))
    elsewhere = learner_on(CPU, "pg")
    elsewhere.load_state_dict(straight.state_dict())
    assert losses_of(elsewhere, range(3, 6)) == pytest.approx(losses_of(straight, range(3, 6)), rel=1e-3)


def test_the_output_matrix_uses_tensor_cores_beside_bf16_layers(cuda):
    hidden, weight = torch.randn(4096, 2048, device=cuda), torch.randn(32_768, 2048, device=cuda)
    seconds = []
    for autocast in (Dtype.float32, Dtype.bfloat16):
        engine = learner_on(cuda, autocast=autocast).engine
        with engine.products():
            for _ in range(3):
                torch.cuda.synchronize(cuda)
                began = time.perf_counter()
                logits = chunk_logits(hidden, weight, HeadOptions(len(weight)))
                torch.cuda.synchronize(cuda)
                taken = time.perf_counter() - began
        assert logits.dtype == torch.float32
        seconds.append(taken)
    assert seconds[1] < 0.7 * seconds[0]


def test_memory_is_flat_over_steps(cuda):
    learner = learner_on(cuda, "pg")
    peaks = []
    for number in range(12):
        torch.cuda.reset_peak_memory_stats(cuda)
        learner.step(make_examples("pg", count=12, seed=number % 3))
        peaks.append(torch.cuda.max_memory_allocated(cuda))
    assert max(peaks[9:]) <= max(peaks[3:6])


def test_checkpointing_saves_memory(cuda):
    peaks = []
    for on in (False, True):
        learner = learner_on(cuda, "sft", gradient_checkpointing=on, micro_tokens=10**6)
        examples = make_examples("sft", count=2000)
        learner.accumulate(examples)
        torch.cuda.reset_peak_memory_stats(cuda)
        held = torch.cuda.memory_allocated(cuda)
        learner.accumulate(examples)
        peaks.append(torch.cuda.max_memory_allocated(cuda) - held)
        del learner
    assert peaks[1] < 0.8 * peaks[0]


def test_the_peak_that_shares_are_of_is_plausible(cuda):
    learner = learner_on(cuda, "sft", autocast=Dtype.bfloat16)
    metrics = learner.step(make_examples("sft"))
    assert 0 < metrics["rate/mfu"] < 1
    assert 5e12 < learner._peak() < 5e15  # FLOP/s
