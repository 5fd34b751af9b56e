#!/usr/bin/env python
"""Sampling throughput, side by side: `transformers.generate`, onpol's `hf` engine, vLLM in process.

    python scripts/bench/rollouts.py [--threads 2] [--dtype float32] [--out results/bench/rollouts.json]

64 prompts x 8 samples; the length of every completion (16-128 new tokens) is drawn once and forced
in the same way in all engines; all return the log-probability of each sampled token; only useful
tokens are counted. Each engine has a process of its own, one after the other, and is warmed up; the best of
`--repeats` counts (all are kept), and `generate` shows its best batch size. Every repeat has other prompts of the same
lengths: vLLM keeps a prefix cache, and would skip the prompts that it has seen while the others read them again.
Needs no model: weights are random, the shape is the tiny model's. The table goes to stderr, one JSON object to stdout
and `--out`; its ratios are tokens a second over those of the first engine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from facts import machine, tell

PROMPTS, SAMPLES, SHORTEST, LONGEST = 64, 8, 16, 128
BATCHES = (32, 64, 128, 256, 512)
VOCABULARY = 768


def workload(repeat: int) -> list[Any]:
    """Prompts with their forced lengths, the same for every engine; each `repeat` has tokens of its own."""
    from onpol_cli.rollout.engine import Prompt

    lengths, draw = random.Random(0), random.Random(1 + repeat)
    return [
        Prompt(
            problem_id=str(number),
            ids=tuple(draw.randrange(2, VOCABULARY) for _ in range(lengths.randint(60, 120))),
            samples=SAMPLES,
            seed=number,
            limits=tuple(lengths.randint(SHORTEST, LONGEST) for _ in range(SAMPLES)),
        )
        for number in range(PROMPTS)
    ]


def write_model(folder: Path) -> None:
    """A random Qwen3 of the tiny model's shape with a word tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=192, intermediate_size=512, num_hidden_layers=5, num_attention_heads=3,
        num_key_value_heads=1, head_dim=64, tie_word_embeddings=True, max_position_embeddings=1024,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    words = {"<eos>": 0, "<unk>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)


def run_generate(model: Any, rows: list[tuple[tuple[int, ...], int]], batch: int) -> int:
    """`transformers.generate` over all rows, left-padded batches; returns useful tokens."""
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Limits(StoppingCriteria):
        def __init__(self, ends: torch.Tensor) -> None:
            self.ends = ends

        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return self.ends <= input_ids.shape[1]

    useful = 0
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        longest = max(len(ids) for ids, _ in part)
        ids = torch.zeros(len(part), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, (prompt, _) in enumerate(part):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        limits = torch.tensor([limit for _, limit in part])
        out = model.generate(
            ids, attention_mask=mask, do_sample=True, temperature=1.0, top_p=1.0, top_k=0, eos_token_id=None,
            pad_token_id=0, max_new_tokens=int(limits.max()), return_dict_in_generate=True, output_logits=True,
            stopping_criteria=StoppingCriteriaList([Limits(longest + limits)]),
        )
        tokens = out.sequences[:, longest:]
        logprobs = torch.stack(
            [step.float().log_softmax(-1).gather(1, tokens[:, i : i + 1])[:, 0] for i, step in enumerate(out.logits)], 1
        )
        kept = [logprobs[row, :limit].tolist() for row, limit in enumerate(limits.tolist())]
        useful += sum(map(len, kept))
    return useful


def rows_of(prompts: list[Any]) -> list[tuple[tuple[int, ...], int]]:
    """Ids and length of each completion."""
    return [(prompt.ids, prompt.limits[i]) for prompt in prompts for i in range(SAMPLES)]


def measure(name: str, folder: str, dtype: str, repeats: int) -> list[dict[str, Any]]:
    """Timings of one engine: a record for every repeat."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from onpol_cli.core.config import Dtype, Engine, RolloutConfig, SamplingConfig
    from onpol_cli.rollout.engine import build_engine

    warm_up, *rounds = [workload(repeat) for repeat in range(1 + repeats)]
    records = []
    kind, _, batch = name.partition(":")
    if kind == "generate":
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        run_generate(model, rows_of(warm_up)[: int(batch)], int(batch))
        for prompts in rounds:
            rows, began = rows_of(prompts), time.perf_counter()
            records.append({"tokens": run_generate(model, rows, int(batch)), "seconds": time.perf_counter() - began})
        return records
    config = RolloutConfig(engine=Engine(kind), dtype=Dtype(dtype), max_batch=256)
    sampling = SamplingConfig(max_new_tokens=LONGEST)
    with build_engine(config, folder, AutoTokenizer.from_pretrained(folder), 0, "cpu") as engine:
        engine.eos = None  # lengths are forced
        engine.generate(warm_up[:8], sampling)
        for prompts in rounds:
            rollouts = engine.generate(prompts, sampling)
            assert sum(len(r.sampler_logprobs) for r in rollouts) == engine.last_stats.tokens
            records.append({"tokens": engine.last_stats.tokens, "seconds": engine.last_stats.seconds})
    return records


def child(name: str, folder: str, options: argparse.Namespace, repeats: int) -> dict[str, Any]:
    """Run `measure` in a process of its own; the best repeat."""
    command = [sys.executable, __file__, "--child", name, "--folder", folder, "--dtype", options.dtype]
    command += ["--threads", str(options.threads), "--repeats", str(repeats)]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True, timeout=1800)
    records = json.loads(done.stdout.strip().splitlines()[-1])
    best = min(records, key=lambda record: record["seconds"])
    rate = round(best["tokens"] / best["seconds"])
    sys.stderr.write(f"{name}: {rate} tokens/s\n")
    return {"engine": name, **best, "tokens_per_s": rate, "all_seconds": [record["seconds"] for record in records]}


def main() -> None:
    """Parse the command line; measure, print, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engines", nargs="+", default=["generate", "hf", "vllm"])
    parser.add_argument("--out", type=Path, default=None, help="file for the JSON")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        import torch

        torch.set_num_threads(options.threads)
        sys.stdout.write(json.dumps(measure(options.child, options.folder, options.dtype, options.repeats)) + "\n")
        return
    facts = machine() | {"threads": options.threads, "dtype": options.dtype, "load_before": os.getloadavg()}
    facts |= {"prompts": "other ones in each repeat"}
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        tried, results = [], []
        if "generate" in options.engines:
            tried = [child(f"generate:{batch}", folder, options, 1) for batch in BATCHES]
            best = max(tried, key=lambda record: record["tokens_per_s"])["engine"]
            results.append(child(best, folder, options, options.repeats))
        results += [child(n, folder, options, options.repeats) for n in options.engines if n != "generate"]
    report({"facts": facts | {"load_after": os.getloadavg()}, "batch_sizes": tried, "results": results}, options.out)


def report(found: dict[str, Any], out: Path | None) -> None:
    """The table on stderr, the JSON object on stdout and in `out` if given."""
    base = found["results"][0]["tokens_per_s"]
    lines = ["| engine | tokens/s | seconds | ratio |", "|---|---|---|---|"]
    for row in found["results"]:
        row["ratio"] = round(row["tokens_per_s"] / base, 2)
        lines.append(f"| {row['engine']} | {row['tokens_per_s']} | {row['seconds']:.2f} | {row['ratio']} |")
    sys.stderr.write("\n".join(lines) + "\n")
    tell({"bench": "rollouts", **found, "ratios": {row["engine"]: row["ratio"] for row in found["results"]}}, out)


if __name__ == "__main__":
    main()
