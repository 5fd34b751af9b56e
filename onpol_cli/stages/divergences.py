"""KL(base || model) and KL(model || base) of an evaluated checkpoint, on held-out prompts of each task.

Each direction uses samples of its first argument at temperature 1 on validation prompts, so that no
evaluated problem is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onpol_cli.core.config import Config
from onpol_cli.core.seeding import derive_seed
from onpol_cli.stages import build

if TYPE_CHECKING:
    from onpol_cli.learner.chat import Chat
    from onpol_cli.learner.scorer import LocalScorer
    from onpol_cli.rollout.engine import RolloutEngine
    from onpol_cli.tasks.protocol import Task

Ids = tuple[int, ...]


def measure_kl(
    config: Config, tasks: Sequence[Task], chat: Chat, engine: RolloutEngine, checkpoint: build.Checkpoint
) -> dict[str, Any]:
    """By bench: `base_model` and `model_base` in nats per token, and the number of sampled tokens of each.

    The base is `model.path`; a foreign model on another tokenizer has no KL and gives {}.
    """
    from onpol_cli.core.console import LOGGER
    from onpol_cli.core.errors import OnpolError
    from onpol_cli.evaluation.kl import mean_kl

    base_checkpoint = build.find_checkpoint(config.model.path, config)
    try:
        base = build.load_teacher(base_checkpoint, config, checkpoint.path)
    except OnpolError as error:
        LOGGER.warning("No KL to the base is measured: %s", error)
        return {}
    model = build.load_teacher(checkpoint, config, checkpoint.path)
    result: dict[str, Any] = {}
    for task in tasks:
        problems = task.problems("validation")[: config.eval.kl_problems]
        if not problems:
            continue
        prompts = build.encoded(task, chat, problems, config)
        own = _samples(config, task.name, prompts, engine)
        engine.sync_weights(_weights(base))
        theirs = _samples(config, task.name, prompts, engine)
        engine.sync_weights(_weights(model))
        model_base, n_model = mean_kl(model, base, own)
        base_model, n_base = mean_kl(base, model, theirs)
        result[task.name] = {
            "model_base": model_base,
            "base_model": base_model,
            "n_tokens": n_model + n_base,
        }
    return result


def _samples(config: Config, bench: str, prompts: Sequence[tuple[Any, Ids]], engine: RolloutEngine) -> list[tuple[Ids, Ids]]:
    from onpol_cli.rollout.engine import Prompt
    from onpol_cli.stages.evaluate import sampling_at

    asked = [
        Prompt(problem.problem_id, ids, seed=derive_seed(config.eval.seed, "kl", bench, problem.problem_id))
        for problem, ids in prompts
    ]
    return [(r.prompt_ids, r.completion_ids) for r in engine.generate(asked, sampling_at(config, 1.0))]


def _weights(scorer: LocalScorer) -> Any:
    from onpol_cli.learner.weights import merged_weights

    return merged_weights(scorer.model)
