"""Child process of the tests: vLLM in process goes through `exercise`, then one with adapters and one in bf16.

The record is JSON.

    python inprocess_worker.py MODEL_FOLDER SMALL_MODEL_FOLDER OUT.json
"""

import json
import os
import sys
from pathlib import Path
from unittest import mock

import torch
from vllm_toys import exercise, exercise_adapters, flood, load_adapted, load_toy, prompts, scorer, update

from onpol_cli.core.config import Dtype, Engine, LoraSync, RolloutConfig, SamplingConfig
from onpol_cli.learner.model import resolve_model_path
from onpol_cli.learner.weights import merged_weights
from onpol_cli.rollout import vllm, vllm_params
from onpol_cli.rollout.engine import build_engine
from onpol_cli.rollout.health import mismatch, score_rollouts

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
"""Where vLLM runs, and the learner's side with it."""
ADAPTED = Dtype.float32 if DEVICE == "cpu" else Dtype.bfloat16
"""Format below adapters: vLLM's kernels for them on a GPU know no float32."""


def free():
    """Bytes of GPU memory that nobody holds."""
    if DEVICE == "cpu":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def asleep(engine, model, tokenizer):
    """Free memory awake and asleep, and the gap after a sync that finds the engine asleep."""
    record = {"awake_free": free()}
    engine.sleep()
    record["asleep_free"] = free()
    update(model, 200)
    engine.sync_weights(merged_weights(model))
    rollouts = engine.generate(prompts(), SamplingConfig(max_new_tokens=10))
    scores = score_rollouts(rollouts, scorer(model, len(tokenizer)))
    return record | {"gap_after_sleep": mismatch(rollouts, scores).largest}


def plain(folder):
    before, set_threads = dict(os.environ), torch.set_num_threads
    model, tokenizer = load_toy(folder)
    model.to(DEVICE)
    config = RolloutConfig(engine=Engine.vllm, max_batch=64, max_context=256)
    with build_engine(config, folder, tokenizer, 0, DEVICE, model) as engine:
        record = {"environment_kept": dict(os.environ) == before, "threads_kept": torch.set_num_threads is set_threads}
        record |= exercise(engine, model, tokenizer) | asleep(engine, model, tokenizer)
        record["log"] = Path(engine.log).is_file()
    record["closed"] = engine.llm is None
    engine.close()
    return record


def adapters(folder):
    model, tokenizer = load_adapted(folder)
    model.to(DEVICE)
    config = RolloutConfig(
        engine=Engine.vllm, max_batch=16, max_context=256, lora_sync=LoraSync.adapter, max_lora_rank=5, dtype=ADAPTED
    )
    with build_engine(config, folder, tokenizer, 0, DEVICE, model) as engine:
        record = exercise_adapters(engine, model, tokenizer)
        left = engine.adapter_folder
    return record | {"folder_gone": not left.exists()}


def halves(folder, hf_overrides):
    """KL of layers in bf16 from the float32 model after a sync, nats a token, with these `hf_overrides`."""
    model, tokenizer = load_toy(folder)
    model.to(DEVICE)
    config = RolloutConfig(engine=Engine.vllm, max_batch=64, max_context=256, dtype=Dtype.bfloat16)
    with (
        mock.patch.object(vllm, "hf_overrides", hf_overrides),
        build_engine(config, folder, tokenizer, 0, DEVICE, model) as engine,
    ):
        update(model, 0)
        engine.sync_weights(merged_weights(model))
        rollouts = engine.generate(flood(len(tokenizer), 20), SamplingConfig(max_new_tokens=16))
        return mismatch(rollouts, score_rollouts(rollouts, scorer(model, len(tokenizer)))).kl


if __name__ == "__main__":
    real, small, out = sys.argv[1:]
    found = plain(real) | {"adapters": adapters(small), "tiny": plain(resolve_model_path("tiny"))}
    ways = {"float32 logits": vllm_params.hf_overrides, "as by default": lambda config: {}}
    found["halves"] = {name: halves(resolve_model_path("tiny"), way) for name, way in ways.items()}
    Path(out).write_text(json.dumps(found))
