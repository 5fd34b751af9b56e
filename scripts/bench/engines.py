#!/usr/bin/env python
"""The same training under `rollout=hf` and `rollout=vllm`: do the numbers agree, and where does the time go?

    python scripts/bench/engines.py [--steps 15] [--seeds 0 1 2] [--threads 1] [--out results/bench/engines.json]

From the shipped base, through the command line: one SFT tutor, then RL and OPD for every engine and seed, one
run after the other. A *final* metric is its mean over the last `LAST` steps; validation is after the last
step. Engines draw other random numbers, so that equal seeds share the problems and their order, not the
samples: the difference vllm - hf is paired over seeds, with a t interval (95%, seeds - 1 degrees of freedom).
Progress goes to stderr, one JSON object to stdout and `--out`; its ratios are seconds of vllm over hf by phase, and
the share of metrics whose difference is within noise.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from facts import machine, tell

ENGINES = ("hf", "vllm")
METHODS = {"rl": "train tutor", "opd": "distill student"}
FINAL = ("reward/mean", "outcome/passed", "length/mean", "entropy", "kl/mismatch", "kl/teacher", "grad_norm")
PHASES = ("generate", "grade", "score", "train", "sync", "step")
LAST = 5


def onpol(words: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Run one command of the tiny experiment; its JSON result."""
    command = [sys.executable, "-m", "onpol_cli.cli", *words, f"learner.threads={options.threads}", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True, timeout=3600)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def train(method: str, engine: str, seed: int, root: str, options: argparse.Namespace) -> dict[str, Any]:
    """One run: final metrics, validation, and seconds by phase summed over its steps."""
    name = f"{method}-{engine}-{seed}"
    words = [*METHODS[method].split(), f"method={method}", f"rollout={engine}", f"seed={seed}", f"run.name={name}"]
    words += [f"method.steps={options.steps}", f"run.validate_every={options.steps}", f"paths.runs={root}"]
    words += [f"task.validation_problems={options.validation}", "rollout.max_context=512"]
    words += [f"method.prompts={options.prompts}", "method.group=8"]
    words += ["tutor=tutor"] if method == "opd" else []
    began = time.perf_counter()
    onpol(words, options)
    wall = time.perf_counter() - began
    rows = [json.loads(line) for line in (Path(root) / name / "metrics.jsonl").read_text().splitlines()]
    last = rows[-LAST:]
    final = {key: fmean(row[key] for row in last) for key in FINAL if all(key in row for row in last)}
    final |= {key: value for key, value in rows[-1].items() if key.startswith("validation/") and key[-2:] != "/n"}
    seconds = {phase: sum(row.get(f"time/{phase}", 0.0) for row in rows) for phase in PHASES} | {"wall": wall}
    worst = {key: max(row[key] for row in rows if key in row) for key in ("canary/max_abs", "kl/mismatch")}
    tokens = sum(row["tokens/generated"] for row in rows)
    sys.stderr.write(f"{name}: {wall:.0f} s, {tokens / seconds['generate']:.0f} tokens/s, {json.dumps(final)}\n")
    found = {"method": method, "engine": engine, "seed": seed, "final": final, "seconds": seconds, "largest": worst}
    return found | {"tokens_generated": tokens}


def interval(values: list[float]) -> dict[str, Any]:
    """Mean of one value a seed, with its 95% t interval."""
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    mean = fmean(values)
    return {"mean": mean, "low": half and mean - half, "high": half and mean + half, "values": values}


def summary(runs: list[dict[str, Any]], method: str) -> dict[str, Any]:
    """Final metrics and phases of one method: each engine, and the paired difference."""
    by = {(run["engine"], run["seed"]): run for run in runs if run["method"] == method}
    seeds = sorted({seed for _, seed in by})

    def column(engine: str, part: str, key: str) -> list[float]:
        return [by[engine, seed][part][key] for seed in seeds]

    result: dict[str, Any] = {"metrics": {}, "seconds": {}}
    shared = set.intersection(*(set(run["final"]) for run in by.values()))
    for key in sorted(shared):
        hf, vllm = column("hf", "final", key), column("vllm", "final", key)
        difference = interval([b - a for a, b in zip(hf, vllm, strict=True)])
        within = None if difference["low"] is None else difference["low"] <= 0 <= difference["high"]
        result["metrics"][key] = {
            "hf": interval(hf), "vllm": interval(vllm), "difference": difference, "within_noise": within,
        }  # fmt: skip
    for phase in (*PHASES, "wall"):
        result["seconds"][phase] = {engine: interval(column(engine, "seconds", phase)) for engine in ENGINES}
    return result


def ratios(found: dict[str, Any]) -> dict[str, Any]:
    """Of one method's summary: seconds, vllm over hf, and metrics that do not differ."""
    within = [row["within_noise"] for row in found["metrics"].values() if row["within_noise"] is not None]
    means = {phase: [of[engine]["mean"] for engine in ENGINES] for phase, of in found["seconds"].items()}
    result: dict[str, Any] = {"seconds, vllm over hf": {name: b / a for name, (a, b) in means.items() if a > 0}}
    return result | ({"metrics within noise": sum(within) / len(within)} if within else {})


def main() -> None:
    """Train everything and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=8, help="prompts a step, 8 rollouts each")
    parser.add_argument("--validation", type=int, default=150, help="validation problems")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file for the JSON")
    options = parser.parse_args()
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory() as root:
        tutor = ["method=sft", "method.epochs=1", "run.name=tutor", f"paths.runs={root}"]
        onpol(["train", "tutor", *tutor], options)
        runs = [train(m, e, seed, root, options) for seed in options.seeds for m in METHODS for e in ENGINES]
    summaries = {method: summary(runs, method) for method in METHODS}
    found = {
        "bench": "engines", "steps": options.steps, "prompts": options.prompts, "group": 8, "seeds": options.seeds,
        "threads": options.threads, "validation_problems": options.validation,
        "machine": machine() | {"load_before": load_before, "load_after": os.getloadavg()},
        "summary": summaries, "runs": runs, "ratios": {method: ratios(of) for method, of in summaries.items()},
    }  # fmt: skip
    tell(found, options.out)


if __name__ == "__main__":
    main()
