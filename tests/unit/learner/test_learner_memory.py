"""What a training step really allocates: the plan against it, and what is left out where nobody needs it.

torch's profiler counts every allocation of the CPU. FSDP2 runs on a group whose other processes do not exist, so that
shards and buffers have their sizes and communication has no buffers of its own.
"""

from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from learner_cases import CPU
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore

from onpol_cli.core.config import Config, Dtype
from onpol_cli.learner import parallel
from onpol_cli.learner.batch import TrainExample
from onpol_cli.learner.forward import TokenModel
from onpol_cli.learner.learner import Learner
from onpol_cli.learner.model import random_model
from onpol_cli.learner.parallel import World, leave_world
from onpol_cli.learner.planner import GIB, learner_parts
from onpol_cli.learner.shapes import Shape, hf_config, shape_of

WIDE = Shape(128, 4, 2, 1, 64, 2048, 64, tied=True)
"""Layers are most of it."""
LONG = Shape(64, 4, 4, 2, 64, 128, 512, tied=False)
"""With `LONG_TOKENS`, activations are."""
LONG_TOKENS = 512
UNTIED, TIED = (Shape(64, 2, 4, 2, 64, 128, 16384, tied=tied) for tied in (False, True))
"""Embeddings and output matrix are."""


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


@pytest.fixture
def fake_processes(monkeypatch):
    """`fake_processes(4)`: this process is the first of four, whom nobody answers."""

    def start(size):
        for name, value in {"RANK": "0", "WORLD_SIZE": str(size), "MASTER_ADDR": "", "MASTER_PORT": "0"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(World, "gather", lambda self, value: [value] * self.size)
        monkeypatch.setattr(parallel, "check_alike", lambda model: None)
        monkeypatch.setattr("onpol_cli.learner.learner.join_world", lambda config, device: World(0, size))
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)

    yield start
    leave_world()


@dataclass(frozen=True)
class Case:
    """A plan to be held against a step."""

    shape: Shape
    processes: int = 1
    autocast: str = "float32"
    checkpointing: bool = True
    tokens: int = 16


@pytest.mark.parametrize(
    "case",
    [
        Case(WIDE, autocast="bfloat16"),
        Case(WIDE, autocast="bfloat16", checkpointing=False),
        Case(LONG, tokens=LONG_TOKENS, checkpointing=False),
        Case(UNTIED),
        Case(TIED),
        Case(WIDE, 4, autocast="bfloat16"),
        Case(WIDE, 4),
        Case(UNTIED, 4),
        Case(TIED, 4),
    ],
    ids=lambda case: f"{case.shape.vocab}-{case.processes}-{case.autocast}-{case.checkpointing}",
)
def test_a_step_takes_what_was_planned(case, fake_processes):
    """Gradients of a step before it are there already, as after the first micro-batch."""
    if case.processes > 1:
        fake_processes(case.processes)
    learner = make_learner(case.shape, case.autocast, case.checkpointing, tokens=case.tokens)
    assert learner.world.size == case.processes and shape_of(learner.model.config) == case.shape
    examples = make_examples(case.tokens)
    learner.accumulate(examples)
    measured = peak_bytes(lambda: learner.accumulate(examples))
    parts = learner_parts(learner.config, case.shape, case.processes, case.shape.parameters)
    planned = GIB * sum(size for name, size in parts.items() if name not in ("weights", "gradients", "optimiser"))
    assert 0.9 * measured < planned < 1.2 * measured, parts


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
