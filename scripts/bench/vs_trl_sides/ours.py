"""onpol's side: `ours.py '{"part": "distil", "work": FOLDER, ...}'`.

Takes the steps that `onpol train tutor` and `onpol distill student` take (`training.loop.one_step`: sampler, teacher,
learner, weight sync with its canary), with two differences: completions have a fixed length, and nothing is graded.
Prints one JSON line: seconds by phase of each timed step, tokens, warm-up.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from clock import Clock
from transformers import AutoModelForCausalLM, AutoTokenizer

from onpol_cli.core.config import Config, Dtype, LearnerConfig, MethodConfig, OpdSignal, OptimConfig, SamplingConfig
from onpol_cli.core.types import Grade, Outcome, Problem
from onpol_cli.learner.learner import Learner
from onpol_cli.learner.model import quiet, real_vocab
from onpol_cli.learner.scorer import LocalScorer
from onpol_cli.methods.base import Context, Group, Sample
from onpol_cli.methods.registry import build_method
from onpol_cli.rollout.engine import Prompt, build_engine
from onpol_cli.rollout.health import canary
from onpol_cli.training.loop import Parts, one_step
from onpol_cli.training.sources import Asked, sample_groups

CPU = torch.device("cpu")


def config_of(job: dict[str, Any]) -> Config:
    """The configuration behind a job; whatever is not named here is onpol's default."""
    dtype = Dtype(job["dtype"])
    method = MethodConfig(name="sft")
    if job["part"] != "sft":
        method = MethodConfig(name="opd", teacher_coef=1.0, signal=OpdSignal(job["signal"]))
    config = Config(method=method, learner=LearnerConfig(autocast=dtype, threads=job["threads"]))
    config.optim = OptimConfig(lr=job["lr"])
    config.rollout.dtype = dtype
    if dtype is Dtype.bfloat16:  # the default is for float32; rounding alone differs by more (docs/troubleshooting.md)
        config.rollout.canary_tolerance = 0.5
    config.rollout.sampling = SamplingConfig(max_new_tokens=job.get("length", 64))
    config.model.max_context = 512
    return config


class FixedSource:
    """The examples of step i are rows i * batch ... of the file; prompts are sampled from where a sampler is given."""

    def __init__(self, job: dict[str, Any], rows: list[dict[str, Any]], sample: Any = None) -> None:
        self.job, self.rows, self.sample = job, rows, sample

    def groups(self, step: int) -> tuple[list[Group], dict[str, float]]:
        """Groups of one step and their times."""
        size = self.job["prompts"] if self.sample else self.job["batch"]
        part = self.rows[step * size : (step + 1) * size]
        problems = [Problem(str(step * size + place), "", None) for place in range(size)]
        pairs = list(zip(problems, part, strict=True))
        if self.sample is None:
            return [[Sample(p, tuple(row["prompt"]), tuple(row["completion"]))] for p, row in pairs], {}
        asked = [Asked(p, tuple(row["prompt"]), step * size + place) for place, (p, row) in enumerate(pairs)]
        return sample_groups(asked, self.job["group"], self.sample, ungraded)


def ungraded(items: Sequence[Any]) -> list[Grade]:
    """The same verdict for all: the peer grades nothing."""
    return [Grade(Outcome.FAILED, 0.0) for _ in items]


def load(job: dict[str, Any], name: str) -> Any:
    """`student` or `teacher` in float32."""
    quiet()
    return AutoModelForCausalLM.from_pretrained(Path(job["work"]) / name, dtype=torch.float32)


def assemble(job: dict[str, Any], rows: list[dict[str, Any]], steps: int) -> Parts:
    """Learner, method, source and, for distillation, teacher, sampler and sync."""
    config = config_of(job)
    tokenizer = AutoTokenizer.from_pretrained(Path(job["work"]) / "student")
    student, teachers, head = load(job, "student"), {}, None
    if job["part"] != "sft":
        teacher = load(job, "teacher")
        teachers = {"": LocalScorer(teacher, real_vocab(tokenizer, teacher), config.learner, CPU)}
        head = teachers[""].output_matrix if config.method.signal is not OpdSignal.sampled else None
    learner = Learner(student, tokenizer, config, steps, CPU, teacher_head=head)
    method = build_method(config.method, Context(None, None, teachers))  # type: ignore[arg-type]
    parts = Parts(None, method, learner, FixedSource(job, rows), None, steps)  # type: ignore[arg-type]
    if job["part"] == "distil":
        engine = build_engine(config.rollout, str(Path(job["work"]) / "student"), tokenizer, 0, CPU, model=student)
        engine.eos = None  # type: ignore[attr-defined]  # every completion has the full length
        parts.source = FixedSource(job, rows, lambda prompts: engine.generate(prompts, config.rollout.sampling))
        parts.scores_teacher = True
        parts.sync = lambda: synced(engine, learner, config, rows)
    return parts


def synced(engine: Any, learner: Learner, config: Config, rows: list[dict[str, Any]]) -> dict[str, float]:
    """What a run does after each step: weights to the sampler, and a few tokens to prove that it has them."""
    engine.sync_weights(learner.named_weights())
    began = time.perf_counter()
    prompts = [Prompt(str(place), tuple(row["prompt"])) for place, row in enumerate(rows[:4])]
    canary(engine, learner.logprobs, prompts, config.rollout.sampling, config.rollout.canary_tolerance)
    return {"time/canary": time.perf_counter() - began}


def run(job: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Train, timed."""
    clock, began = Clock(), time.perf_counter()
    steps = job["warmup"] + job["steps"]
    parts = assemble(job, rows, steps)
    clock.wrap(parts.learner.optimiser, "clip", "optimiser")
    clock.wrap(parts.learner.optimiser, "step", "optimiser")
    clock.wrap(parts.learner, "step", "forward_backward")
    clock.wrap(parts.source, "groups", "generate")
    clock.wrap(parts.method, "examples", "teacher" if job["part"] == "distil" else "other_streams")
    if parts.sync is not None:
        clock.wrap(parts, "sync", "sync")
    metrics: list[dict[str, float]] = []
    began = time.perf_counter()
    for step in range(steps):
        if step == job["warmup"]:
            warmup_s = time.perf_counter() - began
            clock.start()
        found, _ = one_step(parts, step)
        if step >= job["warmup"]:
            metrics.append(found)
            clock.step()
    read = [m["tokens/processed"] for m in metrics]
    total = {"read": round(sum(read)), "trained": round(sum(m["tokens/trained"] for m in metrics))}
    canary_s = [m.get("time/canary", 0.0) for m in metrics]
    return {"steps": clock.steps, "warmup_s": warmup_s, "tokens": total, "canary_s": sum(canary_s) / len(canary_s)}


def losses(job: dict[str, Any], work: dict[str, Any]) -> dict[str, float]:
    """Both losses and the norms of their gradients on the check's batch."""
    rows, found = work["check"], {}
    for part, name in (("sft", "cross_entropy"), ("losses", "divergence")):
        parts = assemble({**job, "part": part, "batch": len(rows), "signal": "reverse"}, rows, 1)
        groups, _ = FixedSource({"batch": len(rows)}, rows).groups(0)
        if part == "losses":
            for group in groups:
                group[0] = Sample(group[0].problem, *group[0].ids, rollout=NoLogprobs(len(group[0].completion_ids)))  # type: ignore[arg-type]
        metrics = parts.learner.step(parts.method.examples(groups))
        found |= {name: metrics[f"loss/{name}"], f"{name}_grad_norm": metrics["grad_norm"]}
    return found


class NoLogprobs:
    """Stands for a rollout whose sampler's log-probs nobody reads."""

    def __init__(self, size: int) -> None:
        self.sampler_logprobs = (0.0,) * size


def main() -> None:
    """One job."""
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    work = json.loads((Path(job["work"]) / "work.json").read_text())
    found = losses(job, work) if job["part"] == "losses" else run(job, work["rows"])
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
