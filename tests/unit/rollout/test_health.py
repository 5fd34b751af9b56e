"""Canary, mismatch and noise floor against hand-worked numbers and deliberately wrong samplers."""

import math

import pytest
import torch

from onpol_cli.core.config import RolloutConfig, SamplingConfig
from onpol_cli.core.errors import RunFailed
from onpol_cli.core.types import Finish, Rollout
from onpol_cli.rollout.engine import Prompt, build_engine
from onpol_cli.rollout.health import canary, mismatch, noise_floor

PROMPTS = [Prompt(str(i), tuple(range(1 + i, 9 + i)), samples=2, seed=i) for i in range(3)]


def rollout(*logprobs):
    return Rollout("p", 0, (1,), (2,) * len(logprobs), logprobs, Finish.LENGTH, "")


def scorer(model, vocabulary=60):
    def score(sequences):
        found = []
        for prompt, completion in sequences:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1, :vocabulary]
            found.append(logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0])
        return found

    return score


def test_mismatch_by_hand():
    found = mismatch([rollout(-1.0, -2.0), rollout(-3.0)], [torch.tensor([-1.0, -1.5]), torch.tensor([-4.0])])
    # log ratios 0, 0.5, -1
    want = (0 + (math.exp(0.5) - 1.5) + (math.exp(-1.0) - 1 + 1)) / 3
    assert (found.kl, found.mean_abs, found.largest, found.tokens) == (pytest.approx(want), pytest.approx(0.5), 1.0, 3)
    assert found.metrics("canary") == {"canary/kl": found.kl, "canary/mean_abs": 0.5, "canary/max_abs": 1.0}


def test_noise_floor_by_hand():
    found = noise_floor([rollout(-1.0, -2.0)], lambda sequences: [torch.tensor([-0.5, -2.5])])
    assert (found["noise/mean"], found["noise/std"], found["noise/max_abs"]) == (0.0, 0.5, 0.5)


def test_a_synced_sampler_passes_and_a_stale_one_is_caught(make_model, tokenizer):
    model, sampling = make_model(sharpen=3.0), SamplingConfig()
    engine = build_engine(RolloutConfig(), "", tokenizer, 0, "cpu", model)
    assert canary(engine, scorer(model), PROMPTS, sampling, 1e-3).largest < 1e-4
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.5)  # an update that is never sent
    with pytest.raises(RunFailed, match=r"Canary after weight sync 0.*a sync did not arrive in full"):
        canary(engine, scorer(model), PROMPTS, sampling, 0.02)


def test_a_cut_distribution_is_caught(make_model, tokenizer):
    model = make_model(sharpen=2.0)
    engine = build_engine(RolloutConfig(), "", tokenizer, 0, "cpu", model)
    with pytest.raises(RunFailed, match="cuts its distribution"):
        canary(engine, scorer(model), PROMPTS, SamplingConfig(top_p=0.9), 0.02)


def test_another_vocabulary_is_caught(make_model, tokenizer):
    model = make_model(sharpen=2.0)
    engine = build_engine(RolloutConfig(), "", tokenizer, 0, "cpu", model)
    with pytest.raises(RunFailed, match="another tokenizer"):
        canary(engine, scorer(model, vocabulary=64), PROMPTS, SamplingConfig(), 0.01)


def test_not_a_number_is_no_agreement(make_model, tokenizer):
    engine = build_engine(RolloutConfig(), "", tokenizer, 0, "cpu", make_model())
    with pytest.raises(RunFailed):
        canary(engine, lambda s: [torch.full((len(c),), torch.nan) for _, c in s], PROMPTS, SamplingConfig(), 1.0)
