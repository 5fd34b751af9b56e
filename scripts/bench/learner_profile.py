#!/usr/bin/env python
"""Where the time of a tiny on-policy distillation step goes, what is padding, and what the floor would be.

    python scripts/bench/learner_profile.py [--steps 8] [--threads 2] [--out FILE]   # a step of `distill student`
    python scripts/bench/learner_profile.py --method rl                              # a step of `train tutor`
    python scripts/bench/learner_profile.py --qwen3 [--tokens 4096]                  # a step of Qwen3-0.6B's shape

The step is the training command's own: its sampler, grader, teacher, learner and sync, with clocks around
them. The floor is the useful arithmetic of a phase at the largest matrix-product rate of this machine in
float32. `--qwen3` runs forward, backward and AdamW of the full model with random weights in bf16.
Ends with one JSON object; `--out` also writes it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from facts import tell

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

TOP = ("generate", "grade", "score", "train", "sync")
INNER = {
    "generate": ("prefill", "admit", "decode", "draw", "keep"),
    "train": ("layout", "layers", "head and loss", "backward", "clip", "optimiser"),
}


class Clocks:
    """Seconds by name, of functions wrapped on their owners: by the wall and of this process's threads' CPU."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)
        self.paused = False

    def timed(self, work: Callable[..., Any], name: str) -> Callable[..., Any]:
        """`work`, with its seconds added to `name`."""

        def run(*args: Any, **kwargs: Any) -> Any:
            start, used = time.perf_counter(), time.process_time()
            try:
                return work(*args, **kwargs)
            finally:
                if not self.paused:
                    self.seconds[name] += time.perf_counter() - start
                    self.cpu[name] += time.process_time() - used

        return run

    def without(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """`work` with all clocks stopped: a sync's canary samples and scores too."""

        def run() -> Any:
            self.paused = True
            try:
                return work()
            finally:
                self.paused = False

        return run

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Put a clock around a method."""
        setattr(owner, attribute, self.timed(getattr(owner, attribute), name))


class Waste:
    """Places computed and places that mean something, by name."""

    def __init__(self) -> None:
        self.computed: dict[str, int] = defaultdict(int)
        self.real: dict[str, int] = defaultdict(int)

    def add(self, name: str, computed: int, real: int) -> None:
        """Count one call."""
        self.computed[name] += computed
        self.real[name] += real

    def shares(self) -> dict[str, float]:
        """Share of computed places that is padding."""
        return {name: round(1 - self.real[name] / total, 4) for name, total in self.computed.items() if total}


def watch_sampler(engine: Any, clocks: Clocks, waste: Waste) -> None:
    """Clocks and padding of the embedded sampler."""
    decoder = engine.decoder
    decode, prefill = decoder.decode, decoder.prefill

    def counted_decode(tokens: Any) -> Any:
        if clocks.paused:
            return decode(tokens)
        lengths = [length + 1 for length in decoder.lengths]
        waste.add("attention keys of decoding", len(lengths) * max(lengths), sum(lengths))
        waste.add("tokens decoded", len(lengths), len(lengths))
        return decode(tokens)

    def counted_prefill(prompts: Any) -> Any:
        if clocks.paused:
            return prefill(prompts)
        lengths = [len(prompt) for prompt in prompts]
        waste.add("tokens of prefill", len(lengths) * max(lengths), sum(lengths))
        return prefill(prompts)

    decoder.decode, decoder.prefill = counted_decode, counted_prefill
    for name in ("prefill", "admit", "decode", "keep"):
        clocks.wrap(decoder, name, name)
    clocks.wrap(engine, "_draw", "draw")


def watch_learner(learner: Any, clocks: Clocks, waste: Waste) -> None:
    """Clocks and padding of the learner."""
    import torch

    lay_out = learner.engine.lay_out

    def counted(sequences: Any) -> Any:
        layout = lay_out(sequences)
        if clocks.paused:
            return layout
        waste.add("tokens of training", layout.padded_tokens, min(layout.real_tokens, layout.padded_tokens))
        for part in getattr(layout, "parts", ()):
            for block in (part.prompts, *(answers.block for answers in part.answers)):
                waste.add("attention rows of training", block.rows.numel(), len(block.real))
        return layout

    learner.engine.lay_out = counted
    clocks.wrap(learner.engine, "lay_out", "layout")
    clocks.wrap(learner.engine, "hidden_states", "layers")
    learner.objective = clocks.timed(learner.objective, "forward")
    clocks.wrap(learner.optimiser, "clip", "clip")
    clocks.wrap(learner.optimiser, "step", "optimiser")
    clocks.wrap(torch.Tensor, "backward", "backward")


def profile(args: argparse.Namespace) -> dict[str, Any]:
    """Mean seconds a step by phase over `args.steps` steps after two of warming up."""
    import torch

    from onpol_cli.core.compose import compose
    from onpol_cli.runs.rundir import RunDir
    from onpol_cli.stages.syncing import sync_of
    from onpol_cli.stages.train import assemble, find_tutors
    from onpol_cli.training.loop import Parts, one_step
    from onpol_cli.training.monitors import Monitors

    torch.set_num_threads(args.threads)
    config = compose([f"method={args.method}", "tutor=tiny", f"learner.threads={args.threads}", *args.overrides])
    clocks, waste = Clocks(), Waste()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        run = stack.enter_context(RunDir.open(Path(folder) / "run", resume=False))
        tutors = find_tutors(config, args.method == "opd")
        bench, method, source, steps = assemble(run, config, tutors, stack)
        parts = Parts(
            run, method, bench.learner, source, Monitors(config.monitor), steps, sync_of(bench, source), None,
            bool(bench.teachers),
        )  # fmt: skip
        for step in range(2):
            one_step(parts, step)
        assert parts.sync is not None
        watch_sampler(bench.engine, clocks, waste)
        watch_learner(bench.learner, clocks, waste)
        parts.sync = clocks.timed(clocks.without(parts.sync), "sync")
        source.sample, source.grade = clocks.timed(source.sample, "generate"), clocks.timed(source.grade, "grade")
        clocks.wrap(method, "examples", "score")
        clocks.wrap(bench.learner, "step", "train")
        step = clocks.timed(one_step, "step")
        rows = [step(parts, number)[0] for number in range(2, 2 + args.steps)]
        flops = floor_flops(bench.learner.model.config, rows, waste, args.steps)
    return summary(clocks, waste, args.steps) | floors(flops, clocks, args) | facts(args, rows)


def floor_flops(shape: Any, rows: list[dict[str, float]], waste: Waste, steps: int) -> dict[str, float]:
    """Useful operations a step: 2 per weight and distinct token forward, twice that backward."""
    from onpol_cli.learner.shapes import shape_of

    sizes = shape_of(shape)
    layers, head = sizes.layers * sizes.layer_parameters, sizes.vocab * sizes.hidden
    made = sum(row["tokens/generated"] for row in rows) / steps
    packed = waste.real["tokens of training"] / steps
    prefilled, decoded = (waste.real[name] / steps for name in ("tokens of prefill", "tokens decoded"))
    scored = packed if "time/score" in rows[0] else 0.0
    return {
        "generate": 2 * layers * (prefilled + decoded) + 2 * head * decoded,
        "score": 2 * (layers + head * made / packed) * scored,
        "train": 6 * (layers * packed + head * made),
    }


def mean(rows: list[dict[str, float]], name: str) -> float:
    """Mean of a metric over the steps; 0 where it is not there."""
    return sum(row.get(name, 0.0) for row in rows) / len(rows)


def phases(seconds: dict[str, float], steps: int) -> dict[str, Any]:
    """Seconds a step by phase, and inside the two large ones."""
    own = {name: value / steps for name, value in seconds.items()}
    own["head and loss"] = own.pop("forward") - own["layers"]
    top = {name: own.get(name, 0.0) for name in TOP}
    found: dict[str, Any] = {
        "step": round(own["step"], 4),
        "phases": rounded(top | {"rest": own["step"] - sum(top.values())}),
    }
    for phase, names in INNER.items():
        inner = {name: own.get(name, 0.0) for name in names}
        found[phase] = rounded(inner | {"rest": top[phase] - sum(inner.values())})
    return found


def summary(clocks: Clocks, waste: Waste, steps: int) -> dict[str, Any]:
    """Seconds, shares, padding. CPU seconds depend little on the load; those of grading's workers are not in them."""
    padding = waste.shares()
    padding.pop("tokens decoded")
    wall, cpu = phases(clocks.seconds, steps), phases(clocks.cpu, steps)
    shares = {f"{name} share of the step": round(value / wall["step"], 4) for name, value in wall["phases"].items()}
    shares |= {f"{name} share of CPU": round(value / cpu["step"], 4) for name, value in cpu["phases"].items()}
    return {"seconds": wall, "cpu_seconds": cpu, "ratios": shares, "padding": padding}


def floors(flops: dict[str, float], clocks: Clocks, args: argparse.Namespace) -> dict[str, Any]:
    """What the arithmetic alone takes at the rate of large float32 products, and the share of it that is reached.

    The rate is taken per CPU second, like the shares; neighbours that share caches still lower it.
    """
    import torch

    left = torch.randn(1024, 1024)
    start, used, products = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < 2.0:
        left @ left
        products += 1
    rate = products * 2 * 1024**3 / (time.process_time() - used)
    least = {name: value / rate for name, value in flops.items() if value}
    reached = {name: round(value / (clocks.cpu[name] / args.steps), 4) for name, value in least.items()}
    whole = sum(least.values()) / (clocks.cpu["step"] / args.steps)
    return {
        "matmul_float32_gflops_per_cpu_second": round(rate / 1e9, 1),
        "floor_cpu_seconds": rounded(least),
        "share_of_matmul_peak": reached | {"step": round(whole, 4)},
    }


def facts(args: argparse.Namespace, rows: list[dict[str, float]]) -> dict[str, Any]:
    """What the figures depend on."""
    tokens = {name: round(mean(rows, f"tokens/{name}"), 1) for name in ("generated", "scored", "trained", "processed")}
    return {
        "method": args.method, "steps": len(rows), "threads": args.threads, "tokens_a_step": tokens,
        "load_average": round(os.getloadavg()[0], 2),
    }  # fmt: skip


def rounded(values: dict[str, float]) -> dict[str, float]:
    """To tenths of a millisecond."""
    return {name: round(value, 4) for name, value in values.items()}


def qwen3(args: argparse.Namespace) -> dict[str, Any]:
    """One whole step of Qwen3-0.6B's shape in bf16: seconds by phase and the largest resident memory."""
    import torch
    from gpu_parts.common import REAL_VOCABULARY, Peak, qwen3, random_model, resident, step_flops
    from gpu_parts.learning import as_rollouts, make_examples
    from gpu_parts.machine import matmul_tflops

    from onpol_cli.core.config import Config
    from onpol_cli.learner.learner import Learner

    torch.set_num_threads(args.threads)
    device, vocab = torch.device("cpu"), REAL_VOCABULARY["0.6b"]
    config = Config()
    config.learner.gradient_checkpointing = args.checkpointing
    config.learner.micro_tokens, config.learner.threads = args.micro_tokens, args.threads
    before = resident("VmRSS")
    learner = Learner(random_model("0.6b", torch.bfloat16, device), vocab, config, 10, device)
    loaded = resident("VmRSS")
    length, prompt = 1024, 256
    rows = args.tokens // length
    examples = make_examples(rows, prompt, length - prompt, vocab)
    own = [torch.full((length - prompt,), -11.9) for _ in examples]
    clocks, peak = Clocks(), Peak(device)
    watch_learner(learner, clocks, Waste())
    start, used = time.perf_counter(), time.process_time()
    metrics = learner.step(as_rollouts(examples, own))
    taken, cpu = time.perf_counter() - start, time.process_time() - used
    rate = matmul_tflops(2048, torch.bfloat16, device)
    useful = step_flops("0.6b", rows, prompt, length - prompt) / 1e12
    gib = 2**30
    return {
        "parameters": sum(p.numel() for p in learner.model.parameters()), "tokens": args.tokens,
        "layers": qwen3("0.6b").num_hidden_layers, "checkpointing": args.checkpointing,
        "micro_tokens": args.micro_tokens, "threads": args.threads, "loss": metrics["loss/total"],
        "grad_norm": metrics["grad_norm"], "seconds": round(taken, 2), "cpu_seconds": round(cpu, 2),
        "cpu_seconds_inside": rounded(dict(clocks.cpu)),
        "tokens_per_s": round(args.tokens / taken, 1), "peak_gib": peak.gib(),
        "before_model_gib": round(before / gib, 3), "with_weights_gib": round(loaded / gib, 3),
        "matmul_bfloat16_tflops": rate, "ratios": {"share of matmul peak": round(useful / taken / rate, 4)},
        "load_average": round(os.getloadavg()[0], 2),
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=("opd", "rl"), default="opd")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--qwen3", action="store_true", help="a step of the real Qwen3-0.6B shape instead")
    parser.add_argument("--tokens", type=int, default=4096, help="with --qwen3: tokens of the step")
    parser.add_argument("--micro-tokens", type=int, default=2048, help="with --qwen3: tokens of a micro-batch")
    parser.add_argument("--no-checkpointing", dest="checkpointing", action="store_false", help="with --qwen3")
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", help="settings of the step, as for onpol train")
    args = parser.parse_args()
    tell({"bench": "learner_profile"} | (qwen3(args) if args.qwen3 else profile(args)), args.out)


if __name__ == "__main__":
    main()
