"""The embedded sampler on the GPU: it is the learner's policy, after updates too, and gives its memory back."""

import pytest
import torch
from vllm_toys import exercise, load_toy

from onpol_cli.core.config import Dtype, LearnerConfig, RolloutConfig, SamplingConfig
from onpol_cli.learner.model import real_vocab, resolve_model_path
from onpol_cli.learner.scorer import LocalScorer
from onpol_cli.rollout.engine import Prompt, build_engine
from onpol_cli.rollout.health import mismatch, score_rollouts

PROMPTS = [Prompt(str(number), tuple(range(20, 30 + 3 * number)), samples=8, seed=number) for number in range(12)]
SAMPLING = SamplingConfig(max_new_tokens=40)


def sampled(device, dtype=Dtype.float32, max_batch=32):
    """Rollouts of the tiny model, and the mismatch with a learner of the same number format on the same device."""
    model, tokenizer = load_toy(resolve_model_path("tiny"))
    config = RolloutConfig(max_batch=max_batch, dtype=dtype)
    with build_engine(config, "", tokenizer, 0, device, model) as engine:
        rollouts = engine.generate(PROMPTS, SAMPLING)
    learner = LocalScorer(model, real_vocab(tokenizer, model), LearnerConfig(autocast=dtype), device)
    return rollouts, mismatch(rollouts, score_rollouts(rollouts, learner.logprobs))


def test_float32_sampler_and_learner_agree_and_the_cpu_draws_the_same(device):
    rollouts, gap = sampled(device)
    assert gap.largest < 1e-3
    there, _ = sampled(torch.device("cpu"), max_batch=7)
    same = sum(one.completion_ids == other.completion_ids for one, other in zip(rollouts, there, strict=True))
    assert same >= 0.95 * len(rollouts)  # a draw moves only where the two best scores are within rounding


def test_the_batch_around_a_rollout_does_not_matter(device):
    one, other = sampled(device, max_batch=96)[0], sampled(device, max_batch=5)[0]
    same = sum(a.completion_ids == b.completion_ids for a, b in zip(one, other, strict=True))
    assert same >= 0.95 * len(one)


def test_bfloat16_sampler_and_learner_differ_by_rounding(device):
    _, gap = sampled(device, Dtype.bfloat16)
    assert 0 < gap.kl < 1e-3 and gap.largest < 0.5


def test_a_course_of_events(device):
    model, tokenizer = load_toy(resolve_model_path("tiny"))
    model.to(device)
    with build_engine(RolloutConfig(max_batch=8), "", tokenizer, 0, device, model) as engine:
        record = exercise(engine, model, tokenizer)
    assert record["first"] == record["again"] and record["texts_match"]
    assert max(record[name] for name in ("gap_before", "gap_after_updates", "gap_after_recovery", "canary")) < 1e-3
    assert max(record["flood_gap"], record["greedy_gap"]) < 1e-3
    assert all(record[name] for name in ("stale", "half_stale", "cut", "foreign_token"))


def test_a_sleeping_sampler_holds_its_weights_only(cuda):
    model, tokenizer = load_toy(resolve_model_path("tiny"))
    with build_engine(RolloutConfig(max_batch=96), "", tokenizer, 0, cuda, model) as engine:
        before = torch.cuda.memory_allocated(cuda)
        first = engine.generate(PROMPTS, SAMPLING)
        assert torch.cuda.memory_allocated(cuda) > before
        engine.sleep()
        assert torch.cuda.memory_allocated(cuda) <= before + 2**20
        engine.wake()
        assert [r.completion_ids for r in engine.generate(PROMPTS, SAMPLING)] == [r.completion_ids for r in first]


@pytest.mark.parametrize(("free", "fits"), [(2**22, False), (2**40, True)])
def test_the_batch_fits_the_free_memory(cuda, monkeypatch, free, fits):
    model, tokenizer = load_toy(resolve_model_path("tiny"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    with build_engine(RolloutConfig(max_batch=96), "", tokenizer, 0, cuda, model) as engine:
        slots = engine._slots(PROMPTS, SAMPLING)
        assert 1 <= slots <= 96 and (slots == 96) == fits
        assert len(engine.generate(PROMPTS, SAMPLING)) == 96
