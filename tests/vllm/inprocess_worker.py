"""Child process of the tests: vLLM in process goes through `exercise`; the record is written as JSON.

    python inprocess_worker.py MODEL_FOLDER OUT.json
"""

import json
import os
import sys
from pathlib import Path

import torch
from vllm_toys import exercise, load_toy

from onpol_cli.core.config import Engine, RolloutConfig
from onpol_cli.rollout.engine import build_engine


def main(folder, out):
    before, set_threads = dict(os.environ), torch.set_num_threads
    model, tokenizer = load_toy(folder)
    config = RolloutConfig(engine=Engine.vllm, max_batch=64, max_context=256)
    with build_engine(config, str(folder), tokenizer, 0, "cpu", model) as engine:
        record = {"environment_kept": dict(os.environ) == before, "threads_kept": torch.set_num_threads is set_threads}
        record |= exercise(engine, model, tokenizer)
        record["log"] = Path(engine.log).is_file()
    record["closed"] = engine.llm is None
    engine.close()
    Path(out).write_text(json.dumps(record))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
