"""Where a training run's completions come from: its data set, the policy, or the base's selected samples.

Owns the choice of a `CompletionSource` and the number of steps; sampling and grading are the workbench's.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import TYPE_CHECKING

from onpol_cli.core.config import Config
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.seeding import derive_seed
from onpol_cli.runs.rundir import METRICS, RunDir, read_lines

if TYPE_CHECKING:
    from onpol_cli.methods.base import Group, Method
    from onpol_cli.stages.train import Workbench
    from onpol_cli.training.sources import CompletionSource


def steps_of(config: Config, items: int) -> int:
    """Optimiser steps: as configured, else from epochs over `items` groups."""
    if config.method.steps:
        return config.method.steps
    if config.method.epochs <= 0:
        raise OnpolError("method.steps=0 and method.epochs=0: nothing to do. Set one of them.")
    return max(1, math.ceil(items * config.method.epochs / config.method.batch))


def make_source(run: RunDir, bench: Workbench, method: Method, stack: ExitStack) -> tuple[CompletionSource, int]:
    """The completions of every step, and how many steps there are.

    Args:
        stack: holds sampler and sandbox already; what samples beside the training leaves it before them.
    """
    from onpol_cli.methods.base import Source
    from onpol_cli.training.ahead import AheadSource
    from onpol_cli.training.sources import DatasetSource, MixtureSource, PolicySource

    settings = bench.config.method
    seed = derive_seed(bench.config.seed, "train")
    dataset = policy = None
    if method.source is not Source.POLICY:
        groups = prepared(run, bench, method) if method.prepares else reference_groups(bench)
        dataset = DatasetSource(groups, settings.batch, seed, bench.learner.world)
    if method.source is not Source.DATASET:
        check_shares(settings.prompts, bench.learner.world.size)
        policy = PolicySource(
            bench.problems, bench.sample, bench.grade, prompts=settings.prompts, group=settings.group, seed=seed,
            world=bench.learner.world,
        )  # fmt: skip
    if dataset and not policy:
        return dataset, steps_of(bench.config, len(dataset.items))
    assert policy is not None and bench.engine is not None
    ahead_of = bench.config.rollout.max_off_policy_steps
    rest = (lambda: None) if ahead_of else bench.rest  # the sampler that works ahead stays awake
    source: CompletionSource = MixtureSource(dataset, policy, settings.lam, seed, rest) if dataset else policy
    steps = steps_of(bench.config, len(bench.problems))
    if ahead_of:
        engine = bench.engine
        problems = [problem for problem, _ in bench.problems]
        ahead = AheadSource(source, lambda: engine.weight_version, steps, bench.config.rollout.timeout_s, problems)
        source = stack.enter_context(ahead)
    return source, steps


def check_shares(prompts: int, processes: int) -> None:
    """Refuse a step in which some process would have nothing to sample: scoring by shards needs every one of them."""
    if prompts < processes:
        raise OnpolError(
            f"method.prompts={prompts} is fewer than the {processes} processes that share them. "
            f"Use method.prompts={processes} or more, best a multiple of it, or a smaller parallel.nproc."
        )


def reference_groups(bench: Workbench) -> list[Group]:
    """One reference completion per problem (for edit tasks the exact reversal)."""
    from onpol_cli.methods.base import Sample

    return [
        [Sample(problem, ids, bench.chat.completion_ids(bench.task.reference(problem)))]
        for problem, ids in bench.problems
    ]


def prepared(run: RunDir, bench: Workbench, method: Method) -> list[Group]:
    """The data set that a method selects from graded samples of the base; its cost is logged as step -1.

    A run selects once: another sampling need not give the same answers, and its steps count on them.
    """
    from onpol_cli.stages.rollout_log import SELECTING, has_selected, read_selected, write_selected
    from onpol_cli.training.loop import reduce_metrics
    from onpol_cli.training.sources import asked_of, sample_groups

    world = bench.learner.world
    if world.agreed(lambda: has_selected(run.path)):
        problems = {problem.problem_id: problem for problem, _ in bench.problems}
        return world.agreed(lambda: read_selected(run.path, problems))
    seed = derive_seed(bench.config.seed, "select")
    share = world.share(asked_of(bench.problems, seed))
    groups, metrics = sample_groups(share, bench.config.method.group, bench.sample, bench.grade)
    if not any(row.get("step") == SELECTING for row in read_lines(run.path / METRICS)):
        run.log({"step": SELECTING, **reduce_metrics(world.gather(metrics), world.gather(len(share)))})
    selected = method.select(world.join(groups))
    if world.rank == 0:
        write_selected(run.path, selected)
    return selected
