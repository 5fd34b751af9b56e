"""What a training step really allocates, as torch's profiler counts it on the CPU."""

import pytest
import torch
from learner_cases import CPU
from torch.profiler import ProfilerActivity, profile

from onpol_cli.core.config import Config, Dtype
from onpol_cli.learner.batch import TrainExample
from onpol_cli.learner.forward import TokenModel
from onpol_cli.learner.learner import Learner
from onpol_cli.learner.model import random_model
from onpol_cli.learner.shapes import Shape, hf_config

WIDE = Shape(128, 4, 2, 1, 64, 2048, 64, tied=True)
"""Layers are most of it."""
LONG = Shape(64, 4, 4, 2, 64, 128, 512, tied=False)
"""With `LONG_TOKENS`, activations are."""
LONG_TOKENS = 512


def peak_bytes(call):
    """The most that `call` held at once beyond what there was before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        call()
    changes = [event for event in measured.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = top = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        level += event.nbytes()
        top = max(top, level)
    return top


def make_learner(shape, autocast, checkpointing, native=False, tokens=16):
    config = Config()
    config.learner.native, config.learner.autocast = native, Dtype[autocast]
    config.learner.gradient_checkpointing = checkpointing
    config.learner.micro_tokens, config.learner.chunk = tokens, 4
    model = random_model(hf_config(shape), 0, torch.float32, CPU)
    return Learner(model, shape.vocab, config, 10, CPU)


def make_examples(tokens, length=16):
    """Two micro-batches of `tokens`, all of one length, no prompt twice."""
    draw = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, 60, (2 * tokens // length, length), generator=draw).tolist()
    return [TrainExample(ids[:4], ids[4:], ce_weights=torch.ones(length - 4)) for ids in drawn]


def test_autocast_keeps_no_copies_of_weights(monkeypatch):
    """Neither those of recomputed layers until the forward pass is over, nor of scored ones; numbers are the same."""
    examples = make_examples(16)
    pairs = [(example.prompt_ids, example.completion_ids) for example in examples]
    copies = 2 * WIDE.layers * WIDE.layer_parameters

    def found():
        learner = make_learner(WIDE, "bfloat16", checkpointing=True)
        learner.accumulate(examples)
        gradients = [parameter.grad.clone() for parameter in learner.model.parameters()]
        step = peak_bytes(lambda: learner.accumulate(examples))
        return gradients, step, peak_bytes(lambda: learner.score(pairs))

    gradients, step, scoring = found()
    monkeypatch.setattr(TokenModel, "autocast", lambda self: torch.autocast("cpu", torch.bfloat16))
    cached, cached_step, cached_scoring = found()
    assert all(torch.equal(one, two) for one, two in zip(gradients, cached, strict=True))
    assert step < cached_step - copies / 2 and scoring < cached_scoring - copies / 2


@pytest.mark.parametrize("autocast", ["float32", "bfloat16"])
def test_checkpointing_saves_memory_in_the_native_decoder_and_changes_no_gradient(autocast):
    examples = make_examples(LONG_TOKENS)

    def found(checkpointing):
        learner = make_learner(LONG, autocast, checkpointing, native=True, tokens=LONG_TOKENS)
        assert learner.engine.native
        learner.accumulate(examples)
        gradients = [parameter.grad.clone() for parameter in learner.model.parameters()]
        return gradients, peak_bytes(lambda: learner.accumulate(examples))

    (gradients, whole), (recomputed, less) = found(False), found(True)
    assert all(torch.equal(one, two) for one, two in zip(gradients, recomputed, strict=True))
    assert less < 0.6 * whole
