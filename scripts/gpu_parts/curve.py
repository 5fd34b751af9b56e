"""The tiny on-policy distillation on this device against the same run on the CPU.

The tutor is the packaged base after a few SFT steps on the CPU. Three comparisons in float32: *replayed*
(the device's learner on the CPU run's recorded examples: only arithmetic differs, so the curves must
coincide), *live* (own rollouts with the same seeds) and, as the yardstick of the live one, the CPU with
another seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from gpu_parts.common import Found, Setting
from gpu_parts.problems import Ids, chat, encoded
from onpol_cli.core.config import Config, Device, MethodConfig, ModelConfig, OptimConfig, RolloutConfig, SamplingConfig
from onpol_cli.core.types import Completion, Grade, Outcome, Problem
from onpol_cli.learner.batch import TrainExample
from onpol_cli.learner.learner import Learner
from onpol_cli.learner.model import load_model, resolve_model_path
from onpol_cli.learner.scorer import LocalScorer
from onpol_cli.methods.base import Context, Group
from onpol_cli.methods.registry import build_method
from onpol_cli.rollout.engine import build_engine
from onpol_cli.training.loop import Parts, one_step
from onpol_cli.training.monitors import Monitors
from onpol_cli.training.sources import PolicySource

Weights = dict[str, torch.Tensor]
WATCHED = ("kl/teacher", "loss/total", "entropy", "grad_norm")


@dataclass
class Curve:
    """Metrics of every step, the examples that it trained on, and the final weights on the CPU."""

    rows: list[dict[str, float]] = field(default_factory=list)
    examples: list[list[TrainExample]] = field(default_factory=list)
    weights: Weights = field(default_factory=dict)

    def line(self, name: str) -> list[float]:
        """One metric by step."""
        return [row[name] for row in self.rows]


def settings(device: str, small: bool, seed: int = 0) -> Config:
    """The experiment: float32, sampled reverse KL, rate and clipping of the tiny OPD."""
    method = MethodConfig(name="opd", teacher_coef=1.0, prompts=2 if small else 8, group=2 if small else 4)
    config = Config(method=method, model=ModelConfig(device=Device(device), max_context=512), seed=seed)
    config.rollout = RolloutConfig(sampling=SamplingConfig(max_new_tokens=12 if small else 64))
    config.optim = OptimConfig(lr=1e-4, warmup=0.1)
    return config


def new_learner(config: Config, steps: int) -> Learner:
    """The packaged base as a policy."""
    device = torch.device(config.model.device.value)
    return Learner(load_model(config.model), chat().tokenizer, config, steps, device)


def make_tutor(problems: Sequence[tuple[Problem, Ids]], steps: int) -> Weights:
    """The base after `steps` SFT steps on the CPU."""
    config = settings("cpu", small=False)
    config.optim.lr = 1e-3
    learner = new_learner(config, steps)
    for step in range(steps):
        chosen = [problems[(8 * step + place) % len(problems)] for place in range(8)]
        answers = [(ids, chat().completion_ids(problem.original or "")) for problem, ids in chosen]
        learner.step([TrainExample(ids, answer, ce_weights=torch.ones(len(answer))) for ids, answer in answers])
    return copied(learner)


def copied(learner: Learner) -> Weights:
    """Its weights on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in learner.model.state_dict().items()}


def ungraded(items: Sequence[tuple[Problem, Completion]]) -> list[Grade]:
    """OPD needs no verdicts."""
    return [Grade(Outcome.FAILED, 0.0) for _ in items]


def live(config: Config, tutor: Weights, problems: list[tuple[Problem, Ids]], steps: int) -> Curve:
    """`steps` steps of the project's own loop with its own sampler, teacher and learner."""
    device = torch.device(config.model.device.value)
    learner, teacher = new_learner(config, steps), load_model(config.model)
    teacher.load_state_dict(tutor)
    size = len(chat().tokenizer)
    context: Any = Context(None, chat().prompt_ids, {"": LocalScorer(teacher, size, config.learner, device)})  # type: ignore[arg-type]
    method, curve = build_method(config.method, context), Curve()
    make = method.examples

    def recorded(groups: Sequence[Group]) -> list[TrainExample]:
        curve.examples.append(make(groups))
        return curve.examples[-1]

    method.examples = recorded  # type: ignore[method-assign]
    with build_engine(config.rollout, resolve_model_path("tiny"), chat().tokenizer, 0, device, learner.model) as engine:

        def sync() -> dict[str, float]:
            engine.sync_weights(learner.named_weights())
            return {}

        source = PolicySource(
            problems, lambda prompts: engine.generate(prompts, config.rollout.sampling), ungraded,
            prompts=config.method.prompts, group=config.method.group, seed=config.seed,
        )  # fmt: skip
        parts = Parts(None, method, learner, source, Monitors(config.monitor), steps, sync, None, True)  # type: ignore[arg-type]
        for step in range(steps):
            curve.rows.append(one_step(parts, step)[0])
    curve.weights = copied(learner)
    return curve


def replay(config: Config, examples: list[list[TrainExample]]) -> Curve:
    """The learner alone on recorded examples."""
    learner = new_learner(config, len(examples))
    curve = Curve([learner.step(batch) for batch in examples])
    curve.weights = copied(learner)
    return curve


def largest_gap(one: Curve, two: Curve, name: str) -> float:
    """Largest difference of a metric over the steps, relative to its largest size."""
    scale = max(abs(value) for value in one.line(name)) or 1.0
    return max(abs(a - b) for a, b in zip(one.line(name), two.line(name), strict=True)) / scale


def spread(one: Curve, two: Curve) -> float:
    """Root mean square difference of the KL to the teacher, nats a token."""
    pairs = zip(one.line("kl/teacher"), two.line("kl/teacher"), strict=True)
    return math.sqrt(sum((a - b) ** 2 for a, b in pairs) / len(one.rows))


def moved(one: Weights, two: Weights, start: Weights) -> float:
    """Distance of two results as a share of the distance that the first has gone."""
    far = sum(float((one[name] - start[name]).double().square().sum()) for name in one)
    apart = sum(float((one[name] - two[name]).double().square().sum()) for name in one)
    return math.sqrt(apart / far)


def curve(setting: Setting) -> Found:
    """All three comparisons; `agrees` if the replay is within 1% and the live run within twice the seeds' spread."""
    steps = setting.pick(20, 3)
    problems = encoded(setting.pick(128, 8))
    tutor = make_tutor(problems, setting.pick(30, 2))
    cpu = live(settings("cpu", setting.small), tutor, problems, steps)
    yield "kl_teacher_cpu", cpu.line("kl/teacher")
    there = settings(setting.device, setting.small)
    there.learner.native = False  # what a GPU runs: the transformers modules, also when this is tried on a CPU
    again = replay(there, cpu.examples)
    gaps = {name: largest_gap(cpu, again, name) for name in WATCHED}
    start = copied(new_learner(settings("cpu", setting.small), 1))
    yield "replayed", {"largest_relative_gap": gaps, "weights_apart": moved(cpu.weights, again.weights, start)}
    own = live(there, tutor, problems, steps)
    yield "kl_teacher_device", own.line("kl/teacher")
    yield "mismatch_kl_device", max(own.line("kl/mismatch"))
    other = live(settings("cpu", setting.small, seed=1), tutor, problems, steps)
    live_gap, seed_gap = spread(cpu, own), spread(cpu, other)
    yield "live", {"rms_gap": live_gap, "rms_gap_of_another_seed": seed_gap}
    yield "agrees", max(gaps.values()) < 0.01 and live_gap < 2 * seed_gap
    phases = {name: own.line(f"time/{name}")[1:] for name in ("generate", "score", "train", "sync", "step")}
    yield "device_seconds_a_step", {name: round(statistics.fmean(values), 4) for name, values in phases.items()}
