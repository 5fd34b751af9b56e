"""Small models and examples for the learner's tests."""

import torch
from transformers import Qwen3Config

from onpol_cli.core.config import Config, OpdSignal
from onpol_cli.learner.batch import TrainExample
from onpol_cli.learner.learner import Learner
from onpol_cli.learner.model import random_model

CPU = torch.device("cpu")
VOCAB = 37


def make_model(seed=0, dtype=torch.float64, tied=True, rows=40):
    shape = Qwen3Config(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=tied,
        max_position_embeddings=128,
    )
    model = random_model(shape, seed, dtype, CPU)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        # Standard initialisation is so small that distributions are flat and every test too easy.
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
            parameter.add_(noise, alpha=0.25)
    return model


def make_sequences(count=6, seed=0, prompts=3, shortest=1, longest=9):
    generator = torch.Generator().manual_seed(seed)

    def tokens(size):
        return torch.randint(0, VOCAB, (size,), generator=generator).tolist()

    known = [tokens(2 + 2 * number) for number in range(prompts)]
    sizes = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return [(known[number % prompts], tokens(size)) for number, size in enumerate(sizes)]


def make_examples(kind, count=6, seed=0, hidden=16):
    """Examples of one component ('sft', 'pg', 'div', 'dpo'), with streams drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed + 100)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    made = []
    for number, (prompt, completion) in enumerate(make_sequences(count, seed)):
        size = len(completion)
        example = TrainExample(prompt, completion)
        if kind == "sft":
            example.ce_weights = (draw(size) > -0.5).double()
        elif kind == "pg":
            example.pg_mask = (draw(size) > -1.0).double()
            example.advantages = draw(size)
            example.sampler_logprobs = -3.5 + 0.3 * draw(size)
            example.teacher_logprobs = -3.0 + draw(size)
            example.teacher_coef = 0.7
        elif kind == "div":
            example.div_mask = (draw(size) > -1.0).double()
            example.teacher_hidden = draw(size, hidden)
        else:
            example.pair, example.chosen = number // 2, number % 2 == 0
            example.reference_logprobs = -3.0 + draw(size)
        made.append(example)
    return made


def make_config(kind="sft"):
    """A configuration whose learning rate is large enough to see a step."""
    made = Config()
    made.optim.lr = 1e-2
    if kind == "div":
        made.method.signal = OpdSignal.reverse
    return made


def make_learner(kind="sft", dtype=torch.float64, seed=0, steps=20, config=None, model=None, device=CPU):
    """A learner over `make_model`, with a teacher matrix for divergences."""
    generator = torch.Generator().manual_seed(99)
    head = torch.randn(VOCAB + 5, 16, generator=generator, dtype=torch.float64).to(dtype)
    model = make_model(seed, dtype) if model is None else model
    return Learner(model, VOCAB, config or make_config(kind), steps, device, head)


def gradient(learner, examples):
    """What one step would use as gradient, by parameter name, and the step's metrics."""
    taken = {}
    original = learner.optimiser.step

    def record():
        taken.update({n: p.grad.clone() for n, p in learner.model.named_parameters() if p.grad is not None})
        learner.optimiser.zero_grad()

    learner.config.optim.clip = 0.0
    learner.optimiser.step = record
    metrics = learner.step(examples)
    learner.optimiser.step = original
    return taken, metrics


def assert_same(first, second, tolerance=1e-9):
    """Equal gradients, relative to each parameter's largest entry."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        scale = max(value.abs().max().item(), 1e-6)
        assert (value - second[name]).abs().max().item() <= tolerance * scale, name
