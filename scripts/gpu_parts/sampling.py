"""Generation, weight sync, and how far sampler and learner are apart."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from gpu_parts.common import REAL_VOCABULARY, Found, Peak, Setting, best, qwen3, random_model, seconds
from gpu_parts.problems import tiny_prompts
from onpol_cli.core.config import Config, Device, Dtype, Engine, ModelConfig, RolloutConfig, SamplingConfig
from onpol_cli.core.types import Rollout
from onpol_cli.learner.learner import Learner
from onpol_cli.learner.model import load_model, load_tokenizer, resolve_model_path
from onpol_cli.rollout.engine import Prompt, RolloutEngine, build_engine
from onpol_cli.rollout.health import mismatch, score_rollouts


class Numbers:
    """A tokenizer of `size` tokens whose text is their ids; random weights have no other."""

    eos_token_id = None

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def batch_decode(self, rows: Sequence[Sequence[int]], **_: Any) -> list[str]:
        """Ids joined by blanks."""
        return [" ".join(map(str, row)) for row in rows]


CALLS = 5
"""Times that an engine samples: twice to warm up, two repeats, and for the mismatch."""


def random_prompts(count: int, length: int, samples: int, vocab: int, call: int) -> list[Prompt]:
    """Prompts of random ids, other ones in each call: what an engine has of earlier ones in a cache is of no use."""
    ids = torch.randint(0, vocab, (count, length), generator=torch.Generator().manual_seed(2 + call)).tolist()
    return [Prompt(str(number), tuple(row), samples, number) for number, row in enumerate(ids)]


def sampler(setting: Setting, size: str, engine: str) -> Found:
    """Tokens/s of `engine` (hf or vllm), seconds of a weight sync, and mismatch with the bf16 learner."""
    device, size = setting.place, setting.pick(size, "small")
    count, length, samples, new = setting.pick((64, 256, 4, 128), (4, 16, 2, 8))
    vocab = REAL_VOCABULARY[size]
    config = Config()
    config.learner.micro_tokens = setting.pick(16384, 512)
    peak = Peak(device)
    model = random_model(size, torch.bfloat16, device)
    policy = Learner(model, vocab, config, 1, device)
    rollout = RolloutConfig(engine=Engine(engine), dtype=Dtype.bfloat16, max_batch=256, max_context=2 * (length + new))
    prompts = [random_prompts(count, length, samples, vocab, call) for call in range(CALLS)]
    sampling = SamplingConfig(max_new_tokens=new)
    yield "call", {"prompts": count, "prompt": length, "samples": samples, "new": new, "at_once": rollout.max_batch,
                   "repeats": "other prompts each, so that no prefix cache has them"}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        qwen3(size).save_pretrained(folder)
        with build_engine(rollout, folder, Numbers(vocab), 0, device, model) as sampling_engine:
            yield from measure(sampling_engine, policy, iter(prompts), sampling, device)
    yield "peak_gib", peak.gib()


def measure(
    engine: RolloutEngine, policy: Learner, prompts: Iterator[list[Prompt]], sampling: SamplingConfig,
    device: torch.device,
) -> Found:
    """The figures of one engine, from other `prompts` of the same length in each call."""
    engine.generate(next(prompts)[:2], sampling)
    kept: list[list[Rollout]] = []
    taken = best(lambda: kept.append(engine.generate(next(prompts), sampling)), device, repeats=2, limit=6.0)
    yield "generation", {"seconds": round(taken, 4), "tokens_per_s": round(sum(map(size_of, kept[-1])) / taken)}
    syncs = [seconds(lambda: engine.sync_weights(policy.named_weights()), device) for _ in range(3)]
    yield "sync_seconds", round(statistics.median(syncs), 5)
    yield "sleep_and_wake_seconds", round(seconds(lambda: (engine.sleep(), engine.wake()), device), 4)
    yield "mismatch", compared(engine.generate(next(prompts)[:8], sampling), policy)


def size_of(rollout: Rollout) -> int:
    """Tokens of a completion."""
    return len(rollout.completion_ids)


def compared(rollouts: list[Rollout], policy: Learner) -> dict[str, Any]:
    """KL and differences, nats, of the sampler's log-probs and the learner's for the same tokens."""
    found = mismatch(rollouts, score_rollouts(rollouts, policy.logprobs))
    surprise = statistics.fmean(-value for rollout in rollouts for value in rollout.sampler_logprobs)
    return {"kl": found.kl, "mean_abs": found.mean_abs, "largest": found.largest, "tokens": found.tokens,
            "mean_surprise": round(surprise, 4)}  # fmt: skip


def trained(setting: Setting) -> Found:
    """Mismatch of the trained tiny model on its own prompts, by formats of sampler and learner.

    Random weights are nearly uniform and flatter every sampler; a trained model is not.
    """
    tokenizer = load_tokenizer("tiny")
    prompts = tiny_prompts(setting.pick(64, 4), samples=setting.pick(4, 1))
    sampling = SamplingConfig(max_new_tokens=setting.pick(96, 12))
    for sampler_format, learner_format in (("float32", "float32"), ("bfloat16", "bfloat16"), ("float32", "bfloat16")):
        config = Config(model=ModelConfig(device=Device(setting.device)))
        config.learner.autocast = Dtype(learner_format)
        model = load_model(config.model)
        policy = Learner(model, tokenizer, config, 1, setting.place)
        rollout = RolloutConfig(dtype=Dtype(sampler_format))
        with build_engine(rollout, resolve_model_path("tiny"), tokenizer, 0, setting.place, model) as engine:
            found = compared(engine.generate(prompts, sampling), policy)
        yield f"sampler {sampler_format}, learner {learner_format}", found


def vllm_installed() -> bool:
    """Whether vLLM can be imported, without importing it."""
    import importlib.util

    return importlib.util.find_spec("vllm") is not None


def vllm(setting: Setting, size: str) -> Found:
    """`sampler` with vLLM, where it is installed."""
    if not vllm_installed():
        yield "not_measured", "vLLM is not installed"
        return
    yield from sampler(setting, size, "vllm")
