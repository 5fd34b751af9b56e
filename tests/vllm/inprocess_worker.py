"""Child process of the tests: vLLM in process goes through `exercise`, then one with adapters; the record is JSON.

    python inprocess_worker.py MODEL_FOLDER SMALL_MODEL_FOLDER OUT.json
"""

import json
import os
import sys
from pathlib import Path

import torch
from vllm_toys import exercise, exercise_adapters, load_adapted, load_toy

from onpol_cli.core.config import Engine, LoraSync, RolloutConfig
from onpol_cli.learner.model import resolve_model_path
from onpol_cli.rollout.engine import build_engine


def plain(folder):
    before, set_threads = dict(os.environ), torch.set_num_threads
    model, tokenizer = load_toy(folder)
    config = RolloutConfig(engine=Engine.vllm, max_batch=64, max_context=256)
    with build_engine(config, folder, tokenizer, 0, "cpu", model) as engine:
        record = {"environment_kept": dict(os.environ) == before, "threads_kept": torch.set_num_threads is set_threads}
        record |= exercise(engine, model, tokenizer)
        record["log"] = Path(engine.log).is_file()
    record["closed"] = engine.llm is None
    engine.close()
    return record


def adapters(folder):
    model, tokenizer = load_adapted(folder)
    config = RolloutConfig(
        engine=Engine.vllm, max_batch=16, max_context=256, lora_sync=LoraSync.adapter, max_lora_rank=5
    )
    with build_engine(config, folder, tokenizer, 0, "cpu", model) as engine:
        record = exercise_adapters(engine, model, tokenizer)
        left = engine.adapter_folder
    return record | {"folder_gone": not left.exists()}


if __name__ == "__main__":
    real, small, out = sys.argv[1:]
    found = plain(real) | {"adapters": adapters(small), "tiny": plain(resolve_model_path("tiny"))}
    Path(out).write_text(json.dumps(found))
