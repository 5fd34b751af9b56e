"""What keeps the sampler the policy: weights sent after each step, the canary that proves it, validation by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from onpol_cli.core.config import Config, LoraSync, SamplingConfig
from onpol_cli.core.seeding import derive_seed
from onpol_cli.runs.rundir import RunDir
from onpol_cli.training.ahead import AheadSource

if TYPE_CHECKING:
    from onpol_cli.rollout.engine import Prompt
    from onpol_cli.stages.train import Workbench
    from onpol_cli.training.sources import CompletionSource, Sampler

CANARY_PROMPTS = 4
"""Prompts on which the sampler proves after each sync that it has the learner's weights."""


def canary_prompts(bench: Workbench) -> list[Prompt]:
    """A few training prompts with fixed seeds."""
    from onpol_cli.rollout.engine import Prompt

    return [
        Prompt(problem.problem_id, ids, seed=derive_seed(bench.config.seed, "canary", place))
        for place, (problem, ids) in enumerate(bench.problems[:CANARY_PROMPTS])
    ]


def canary_sampling(config: Config) -> SamplingConfig:
    """The run's own settings, so that a cut distribution shows; nothing cut where no ratio to the sampler is taken."""
    from onpol_cli.methods.base import Source
    from onpol_cli.methods.registry import METHODS

    sampling = config.rollout.sampling
    if METHODS[config.method.name].source is not Source.DATASET:
        return sampling
    return SamplingConfig(temperature=sampling.temperature, max_new_tokens=sampling.max_new_tokens)


def measure_noise(run: RunDir, bench: Workbench) -> None:
    """Into the manifest: how far learner and sampler are apart with the same weights, pure numerics."""
    from onpol_cli.rollout.health import noise_floor

    if bench.engine is None or not bench.teachers or run.resumed:
        return
    run.update_manifest(noise_floor=noise_floor(bench.sample(canary_prompts(bench)), bench.learner.logprobs))


def settle(source: CompletionSource) -> None:
    """Wait for the batch in the making, where one is made ahead: the sampler does one thing at a time."""
    if isinstance(source, AheadSource):
        source.settle()


def sync_of(bench: Workbench, source: CompletionSource) -> Callable[[], dict[str, float]] | None:
    """Send the weights (or the adapter alone), then let the sampler prove with a few tokens that it has them."""
    from onpol_cli.rollout.health import canary

    if bench.engine is None:
        return None
    engine, learner, settings = bench.engine, bench.learner, bench.config.rollout
    prompts, sampling = canary_prompts(bench), canary_sampling(bench.config)

    def sync() -> dict[str, float]:
        settle(source)
        engine.wake()
        if settings.lora_sync is LoraSync.adapter:
            engine.sync_adapter(learner.adapter())
        else:
            engine.sync_weights(learner.named_weights())
        if settings.canary_tolerance <= 0:
            return {}
        found = canary(engine, learner.logprobs, prompts, sampling, settings.canary_tolerance, learner.world)
        return {"canary/max_abs": found.largest}

    return sync


def validation_of(
    bench: Workbench, config: Config, sync: Callable[[], dict[str, float]] | None, source: CompletionSource
) -> Callable[[int], dict[str, float]]:
    """Scores of the policy as it is now.

    Args:
        sync: for data set methods, which never sync otherwise; None where each step has synced.
        source: whatever it has in the making is waited for.
    """
    from onpol_cli.stages.validation import validator

    sampler: Sampler = bench.sample
    validate = validator(bench.task, bench.chat, sampler, config, bench.learner.world)

    def refreshed(done: int) -> dict[str, float]:
        if sync is not None:
            sync()
        settle(source)
        return validate(done)

    return refreshed
