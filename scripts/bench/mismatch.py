#!/usr/bin/env python
"""How far samplers with bf16 layers are from the learner, with float32 logits (onpol's) and with rounded ones.

    python scripts/bench/mismatch.py [--prompts 48] [--samples 8] [--out FILE]

The trained tiny model on its own prompts, sampled by `hf` and, where it is installed, vLLM, each engine in a
process of its own and after a weight sync; scored by a learner under bf16 autocast. `rounded` puts the logits back
to bf16 (in `hf` by hand, in vLLM by leaving out `head_dtype`). KL(sampler || learner) is the k3 estimate of
`rollout.health`, nats a token. Ends with one JSON object whose ratios are KL rounded / KL float32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from facts import tell

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
ENGINES, LOGITS = ("hf", "vllm"), ("rounded", "float32")
NEW_TOKENS = 64


def round_logits() -> None:
    """Both engines as they were: logits in the format of the layers."""
    from onpol_cli.rollout import vllm
    from onpol_cli.rollout.lean import LeanDecoder

    inner = LeanDecoder._logits
    LeanDecoder._logits = lambda self, x: inner(self, x).bfloat16().float()  # type: ignore[method-assign]
    vllm.hf_overrides = lambda config: {}


def measure(engine_name: str, logits: str, prompts: int, samples: int) -> dict[str, Any]:
    """KL, mean and largest difference of one engine."""
    import torch
    from gpu_parts.problems import tiny_prompts
    from gpu_parts.sampling import compared

    from onpol_cli.core.config import Config, Dtype, Engine, RolloutConfig, SamplingConfig
    from onpol_cli.learner.learner import Learner
    from onpol_cli.learner.model import load_model, load_tokenizer, resolve_model_path
    from onpol_cli.rollout.engine import build_engine

    if logits == "rounded":
        round_logits()
    config, tokenizer = Config(), load_tokenizer("tiny")
    config.learner.autocast = Dtype.bfloat16
    model = load_model(config.model)
    learner = Learner(model, tokenizer, config, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    rollout = RolloutConfig(engine=Engine(engine_name), dtype=Dtype.bfloat16, max_batch=128, max_context=256)
    with build_engine(rollout, resolve_model_path("tiny"), tokenizer, 0, learner.device, model) as engine:
        engine.sync_weights(learner.named_weights())
        rollouts = engine.generate(tiny_prompts(prompts, samples), SamplingConfig(max_new_tokens=NEW_TOKENS))
    return compared(rollouts, learner)


def child(*words: str) -> dict[str, Any]:
    """`measure` in a process of its own: vLLM changes the one that it is loaded into."""
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """All engines, both ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--one", nargs=2, metavar=("ENGINE", "LOGITS"), help="only this, in this process")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sizes = ("--prompts", str(options.prompts), "--samples", str(options.samples))
    if options.one:
        sys.stdout.write(json.dumps(measure(*options.one, options.prompts, options.samples)) + "\n")
        return
    engines = [name for name in ENGINES if name == "hf" or find_spec("vllm")]
    found = {name: {logits: child("--one", name, logits, *sizes) for logits in LOGITS} for name in engines}
    ratios = {name: ways["rounded"]["kl"] / ways["float32"]["kl"] for name, ways in found.items()}
    tell({"bench": "mismatch", "engines": found, "ratios": ratios}, options.out)


if __name__ == "__main__":
    main()
