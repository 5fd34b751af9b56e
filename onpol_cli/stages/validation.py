"""Scores of the policy on the validation split while it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from onpol_cli.core.config import Config
from onpol_cli.core.seeding import derive_seed
from onpol_cli.learner.parallel import ALONE, World
from onpol_cli.stages import build

if TYPE_CHECKING:
    from onpol_cli.learner.chat import Chat
    from onpol_cli.tasks.protocol import Task
    from onpol_cli.training.sources import Sampler


def validator(
    task: Task, chat: Chat, sample: Sampler, config: Config, world: World = ALONE
) -> Callable[[int], dict[str, float]]:
    """A callable that samples one answer per validation problem, always with the same seeds.

    The processes of `world` share the problems and call it together; each gets the scores of all.
    """
    from onpol_cli.training.sources import asked_of, rollout_metrics, sample_groups

    problems = build.encoded(task, chat, task.problems("validation")[: config.task.validation_problems], config)

    def validate(done: int) -> dict[str, float]:
        share = world.share(asked_of(problems, derive_seed(config.seed, "validation")))
        groups = world.join(sample_groups(share, 1, sample, task.grade)[0])
        metrics = rollout_metrics(groups)
        name = f"validation/{task.name}"
        chosen = {
            f"{name}/pass@1": metrics["outcome/passed"],
            f"{name}/reward": metrics["reward/mean"],
            f"{name}/length": metrics["length/mean"],
            f"{name}/n": float(len(groups)),
        }
        if "reward/excess_levenshtein" in metrics:
            chosen[f"{name}/excess_levenshtein"] = metrics["reward/excess_levenshtein"]
        return chosen

    return validate
