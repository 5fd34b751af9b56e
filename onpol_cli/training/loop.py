"""The training loop: completions -> signals -> one optimiser step -> weight sync -> one line of metrics.

It knows no method, engine or task: those arrive as parts. Owns stepping, timing, the budget ledger,
when to save and when to stop; `saving` owns what is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from onpol_cli.core.config import RunConfig
from onpol_cli.core.errors import RunFailed
from onpol_cli.learner.learner import Learner
from onpol_cli.learner.memory import peak_memory_mb
from onpol_cli.learner.nonfinite import NonFinite
from onpol_cli.methods.base import Group, Method, flat
from onpol_cli.rollout.health import OutOfSync
from onpol_cli.runs.rundir import RunDir
from onpol_cli.training.interrupt import Interrupted, StopRequest
from onpol_cli.training.monitors import Monitors
from onpol_cli.training.saving import restore, save, save_before_stop, save_best
from onpol_cli.training.sources import CompletionSource, Metrics


@dataclass
class Parts:
    """What a run is made of.

    Attributes:
        sync: gives the learner's weights to the sampler; None when nothing is sampled.
        validate: scores the current policy, called with the number of finished steps.
        scores_teacher: whether building examples makes a teacher read every token.
        on_step: told each step's metrics and groups (progress, loggers, saved samples).
    """

    run: RunDir
    method: Method
    learner: Learner
    source: CompletionSource
    monitors: Monitors
    steps: int
    sync: Callable[[], Metrics] | None = None
    validate: Callable[[int], Metrics] | None = None
    scores_teacher: bool = False
    on_step: Callable[[int, Metrics, list[Group]], None] = lambda step, metrics, groups: None

    @property
    def rank(self) -> int:
        """Of this process among the learner's."""
        return self.learner.world.rank


def train(parts: Parts, config: RunConfig) -> None:
    """Run all steps, from the newest saved state if the run directory holds one.

    Raises:
        Interrupted: stopped by a signal, after saving.
        RunFailed: a monitor, a non-finite number or a sampler that is not the policy stopped the run, after saving;
            or something broke, and the states saved before are kept.
    """
    first = saved = restore(parts)
    if parts.sync is not None and first > 0:
        parts.sync()
    with StopRequest() as stop:
        for step in range(first, parts.steps):
            done = step + 1
            try:
                metrics, groups, failure = try_step(parts, step)
            except NonFinite as error:  # on every process alike, before the update
                raise RunFailed(f"{error} {save_before_stop(parts, step, saved, config.keep_last)}") from error
            if failure is None and parts.validate is not None and _due(done, config.validate_every, parts.steps):
                failure = _validated(parts, done, metrics, config.keep_best)
            if parts.rank == 0:
                parts.run.log({"step": step, **metrics})
            parts.on_step(step, metrics, groups)
            try:
                if failure is not None:
                    raise failure
                parts.monitors.check(step, metrics)
            except RunFailed as error:
                raise RunFailed(f"{error} {save_before_stop(parts, done, saved, config.keep_last)}") from error
            asked = any(parts.learner.world.gather(stop.asked))  # once a step, or some would save and others go on
            if asked or _due(done, config.save_every, parts.steps):
                save(parts, done, config.keep_last)
                saved = done
            if asked and done < parts.steps:
                raise Interrupted(f"Stopped after step {done} of {parts.steps}. Go on with --resume.")


def _validated(parts: Parts, done: int, metrics: Metrics, keep_best: bool) -> OutOfSync | None:
    """Add the validation after `done` steps to `metrics`; what kept it from being one of the policy, if anything."""
    assert parts.validate is not None
    try:
        metrics |= parts.validate(done)
    except OutOfSync as error:
        return error
    if keep_best:
        save_best(parts, done, metrics)
    return None


def one_step(parts: Parts, step: int) -> tuple[Metrics, list[Group]]:
    """Completions, signals, update and sync of 0-based `step`.

    Raises:
        OutOfSync: the sampler is not the policy afterwards.
    """
    metrics, groups, failure = try_step(parts, step)
    if failure is not None:
        raise failure
    return metrics, groups


def try_step(parts: Parts, step: int) -> tuple[Metrics, list[Group], OutOfSync | None]:
    """`one_step`, with a sync that failed told beside the metrics: the update before it was done."""
    failure: OutOfSync | None = None
    start = time.perf_counter()
    groups, own = parts.source.groups(step)
    scoring = time.perf_counter()
    examples = parts.method.examples(groups)
    if parts.scores_teacher:
        own["time/score"] = time.perf_counter() - scoring
        own["tokens/scored"] = float(sum(len(s.prompt_ids) + len(s.completion_ids) for s in flat(groups)))
    training = time.perf_counter()
    trained = parts.learner.step(examples)
    own["time/train"] = time.perf_counter() - training
    if parts.sync is not None:
        syncing = time.perf_counter()
        try:
            own |= parts.sync()
        except OutOfSync as error:  # on every process alike
            failure = error
        own["time/sync"] = time.perf_counter() - syncing
    own |= {"time/step": time.perf_counter() - start, "memory/peak_mb": peak_memory_mb(parts.learner.device)}
    everyone = parts.learner.world.gather((own, len(flat(groups))))
    metrics = trained | reduce_metrics([of for of, _ in everyone], [count for _, count in everyone])
    if metrics.get("time/generate", 0.0) > 0:
        metrics["rate/generated_tokens_per_s"] = metrics["tokens/generated"] / metrics["time/generate"]
    return metrics, groups, failure


SUMMED = ("tokens/", "grade/")
LARGEST = ("time/", "length/max", "memory/", "canary/")


def reduce_metrics(parts: Sequence[Metrics], counts: Sequence[int] = ()) -> Metrics:
    """One step's metrics of all processes: counts summed, seconds and maxima the largest, means weighed.

    Means over what is not every rollout (passed ones, say) are exact only where all processes have equally many.

    Args:
        parts: of each process.
        counts: its rollouts; without them, or where nobody has any, all processes weigh the same.
    """
    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys(name for part in parts for name in part)
    weighed = list(zip(parts, counts or [1] * len(parts), strict=True))
    return {name: _reduced(name, [(part[name], count) for part, count in weighed if name in part]) for name in names}


def _reduced(name: str, held: Sequence[tuple[float, int]]) -> float:
    values = [value for value, _ in held]
    if name.startswith(SUMMED):
        return sum(values)
    if name.startswith(LARGEST):
        return max(values)
    total = sum(count for _, count in held)
    return sum(value * count for value, count in held) / total if total else fmean(values)


def _due(done: int, every: int, steps: int) -> bool:
    return every > 0 and (done % every == 0 or done == steps)
