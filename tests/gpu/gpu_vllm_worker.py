"""Child process of test_gpu_vllm: vLLM in process goes through `exercise`, then sleeps; the record is JSON.

    python gpu_vllm_worker.py MODEL_FOLDER DEVICE OUT.json
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "vllm"))
from vllm_toys import exercise, load_toy, prompts, scorer, update

from onpol_cli.core.config import Engine, RolloutConfig, SamplingConfig
from onpol_cli.learner.weights import merged_weights
from onpol_cli.rollout.engine import build_engine
from onpol_cli.rollout.health import mismatch, score_rollouts


def free():
    """Bytes of GPU memory that nobody holds."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def main(folder, device, out):
    model, tokenizer = load_toy(folder)
    model.to(device)
    config = RolloutConfig(engine=Engine.vllm, max_batch=64, max_context=256, gpu_memory=0.3)
    with build_engine(config, folder, tokenizer, 0, device, model) as engine:
        record = exercise(engine, model, tokenizer)
        record["awake_free"] = free()
        engine.sleep()
        record["asleep_free"] = free()
        update(model, 200)
        engine.sync_weights(merged_weights(model))
        rollouts = engine.generate(prompts(), SamplingConfig(max_new_tokens=10))
        scores = score_rollouts(rollouts, scorer(model, len(tokenizer)))
        record["gap_after_sleep"] = mismatch(rollouts, scores).largest
    Path(out).write_text(json.dumps(record))


if __name__ == "__main__":
    main(*sys.argv[1:])
