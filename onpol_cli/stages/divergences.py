"""How far a checkpoint moved from the base, measured on held-out prompts: KL both ways and where the update falls.

Each direction of the KL uses samples of its first argument at temperature 1 on prompts that are not evaluated
(`held_out`); benches that have none are left out. Formulas are `evaluation.kl`'s and `evaluation.update`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onpol_cli.core.config import Config
from onpol_cli.core.console import LOGGER
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.seeding import derive_seed
from onpol_cli.core.types import Completion, Problem
from onpol_cli.stages import build

if TYPE_CHECKING:
    from torch import Tensor

    from onpol_cli.learner.chat import Chat
    from onpol_cli.learner.forward import Pair, TokenScores
    from onpol_cli.learner.scorer import LocalScorer
    from onpol_cli.rollout.engine import RolloutEngine
    from onpol_cli.sandbox import Sandbox
    from onpol_cli.tasks.protocol import Task

Ids = tuple[int, ...]
Sequences = list[tuple[Ids, Ids]]
FORCED_PLACE = 1 / 3
"""Relative position of the forced wrong token in the reference."""


class Remembered:
    """A frozen model that keeps the states of the sequences asked for last: KL and token change share one pass.

    Implements `evaluation.kl.States` and `evaluation.update.Scoring`.
    """

    def __init__(self, scorer: LocalScorer) -> None:
        self.scorer = scorer
        self.vocab = scorer.vocab
        self._sequences: list[Pair] = []
        self._states: list[Tensor] = []

    @property
    def output_matrix(self) -> Tensor:
        """`[V, H]`."""
        return self.scorer.output_matrix

    def hidden(self, sequences: Sequence[Pair]) -> list[Tensor]:
        """States `[T, H]` that predict each completion's tokens."""
        if not self._states or self._sequences != list(sequences):
            self._sequences, self._states = list(sequences), self.scorer.hidden(sequences)
        return self._states

    def score(self, sequences: Sequence[Pair]) -> list[TokenScores]:
        """Log-probs and entropies of each completion's tokens."""
        return self.scorer.score_states(self.hidden(sequences), [completion for _, completion in sequences])


@dataclass
class Moved:
    """The base and a checkpoint side by side, with an engine that holds the checkpoint.

    For the base itself both are one object: nothing is sampled or computed twice.
    """

    config: Config
    chat: Chat
    engine: RolloutEngine
    base: Remembered
    model: Remembered

    def sample(self, bench: str, prompts: Sequence[tuple[Problem, Ids]], stream: str) -> Sequences:
        """One sample per prompt of whatever the engine holds, at temperature 1."""
        from onpol_cli.rollout.engine import Prompt
        from onpol_cli.stages.evaluate import sampling_at

        asked = [
            Prompt(problem.problem_id, ids, seed=derive_seed(self.config.eval.seed, stream, bench, problem.problem_id))
            for problem, ids in prompts
        ]
        return [(r.prompt_ids, r.completion_ids) for r in self.engine.generate(asked, sampling_at(self.config, 1.0))]

    def base_samples(self, bench: str, prompts: Sequence[tuple[Problem, Ids]], own: Sequences) -> Sequences:
        """Samples of the base (`own` where it is the model); the engine holds the checkpoint again afterwards."""
        if self.base is self.model:
            return own
        self.engine.sync_weights(weights(self.base))
        try:
            return self.sample(bench, prompts, "kl")
        finally:
            self.engine.sync_weights(weights(self.model))


def weights(model: Remembered) -> Iterable[tuple[str, Tensor]]:
    """Named weights of a frozen model, for an engine."""
    from onpol_cli.learner.weights import merged_weights

    return merged_weights(model.scorer.model)


def held_out(config: Config, task: Task, sandbox: Sandbox) -> list[Problem]:
    """At most `eval.kl_problems` problems of the bench's kind that are not evaluated.

    The bench's own validation split, or that of the training data if `task` names the same task with a file.

    Raises:
        OnpolError: there are none, or the training data cannot be read.
    """
    from onpol_cli.tasks.registry import build_task

    trained = config.task.name == task.name and config.task.data
    problems = (build_task(config.task, sandbox) if trained else task).problems("validation")
    evaluated = {problem.problem_id for problem in task.problems("test")}
    found = [problem for problem in problems if problem.problem_id not in evaluated]
    if not found:
        raise OnpolError(f"all its problems are evaluated; task={task.name} task.data=FILE names those trained on.")
    return found[: config.eval.kl_problems]


def prompts_of(
    config: Config, tasks: Sequence[Task], chat: Chat, sandbox: Sandbox
) -> list[tuple[Task, list[tuple[Problem, Ids]]]]:
    """Benches with the held-out prompts on which distances are measured; says which ones have none, and why.

    All answers are there by now: no bench may fail for want of these.
    """
    found = []
    for task in tasks:
        try:
            found.append((task, build.encoded(task, chat, held_out(config, task, sandbox), config)))
        except OnpolError as error:
            LOGGER.warning("no distance to the base is measured on %s: %s", task.name, error)
    return found


def measure(
    config: Config,
    tasks: Sequence[Task],
    chat: Chat,
    engine: RolloutEngine,
    checkpoint: build.Checkpoint,
    sandbox: Sandbox,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """KL by bench, and where the update falls; both {} for a foreign model on another tokenizer.

    Args:
        sandbox: of the tasks, for the one that was trained on.
    """
    benches = prompts_of(config, tasks, chat, sandbox)
    if not benches:
        return {}, {}
    base_checkpoint = build.find_checkpoint(config.model.path, config)
    try:
        base = Remembered(build.load_teacher(base_checkpoint, config, checkpoint.path))
    except OnpolError as error:
        LOGGER.warning("No distance to the base is measured: %s", error)
        return {}, {}
    same = checkpoint.path == base_checkpoint.path
    model = base if same else Remembered(build.load_teacher(checkpoint, config, checkpoint.path))
    moved = Moved(config, chat, engine, base, model)
    divergence: dict[str, Any] = {}
    update: dict[str, Any] = {}
    sampled: list[Sequences] = []
    for task, prompts in benches:
        own = moved.sample(task.name, prompts, "kl")
        sampled.append(own)
        theirs = moved.base_samples(task.name, prompts, own)
        divergence[task.name] = kl_of(moved, own, theirs)
        update[task.name] = where(moved, task, prompts, theirs)
    if checkpoint.run is not None:
        update |= whole_update(moved, checkpoint, sandbox, own=sampled[0])
    return divergence, update


def kl_of(moved: Moved, own: Sequences, theirs: Sequences) -> dict[str, float | int]:
    """Both directions in nats per token and the sampled tokens."""
    from onpol_cli.evaluation.kl import mean_kl

    model_base, n_model = mean_kl(moved.model, moved.base, own)
    base_model, n_base = mean_kl(moved.base, moved.model, theirs)
    return {"model_base": model_base, "base_model": base_model, "n_tokens": n_model + n_base}


def where(moved: Moved, task: Task, prompts: Sequence[tuple[Problem, Ids]], theirs: Sequences) -> dict[str, float]:
    """Token-level change on the base's own samples, and recovery from a forced wrong token."""
    from onpol_cli.evaluation.update import token_change

    return {**token_change(moved.base, moved.model, theirs), **forced(moved, task, prompts)}


def forced(moved: Moved, task: Task, prompts: Sequence[tuple[Problem, Ids]]) -> dict[str, float]:
    """Pass rate of answers whose token a third of the way in is forced to the base's likeliest mistake."""
    from onpol_cli.evaluation.update import forced_prefixes

    pairs = [(ids, moved.chat.completion_ids(task.reference(problem))) for problem, ids in prompts]
    states = moved.base.hidden(pairs)
    prefixes = forced_prefixes(
        states, moved.base.output_matrix, moved.base.vocab, [completion for _, completion in pairs], FORCED_PLACE
    )
    started = [(problem, (*ids, *prefix)) for (problem, ids), (prefix, _) in zip(prompts, prefixes, strict=True)]
    tails = moved.sample(task.name, started, "forced")
    texts = [moved.chat.text((*prefix, *tail)) for (prefix, _), (_, tail) in zip(prefixes, tails, strict=True)]
    grades = task.grade([(problem, Completion(text)) for (problem, _), text in zip(prompts, texts, strict=True)])
    return {"forced_pass": sum(grade.passed for grade in grades) / max(1, len(grades)), "forced_n": float(len(grades))}


def whole_update(
    moved: Moved, checkpoint: build.Checkpoint, sandbox: Sandbox, own: Sequences
) -> dict[str, float]:
    """Parameters that changed, and the share of trained tokens that the base finds unlikely.

    Args:
        own: samples of the checkpoint, which stand for what a policy method was trained on.
    """
    from onpol_cli.evaluation.update import low_probability_share, parameter_change

    change = parameter_change(dict(weights(moved.base)), weights(moved.model))
    try:
        trained = trained_tokens(moved, checkpoint, sandbox) or own
    except OnpolError as error:  # the data may have gone since
        LOGGER.warning("What %s was trained on cannot be read: %s", checkpoint.label, error)
        return change
    return {**change, "low_prob_share": low_probability_share(moved.base, trained)}


def trained_tokens(moved: Moved, checkpoint: build.Checkpoint, sandbox: Sandbox) -> Sequences:
    """Completions that a data set method was trained on; [] for methods that train on their own samples."""
    from onpol_cli.core.compose import from_yaml
    from onpol_cli.tasks.registry import build_task

    assert checkpoint.run is not None
    if checkpoint.fact("method") != "sft":
        return []
    config = from_yaml((checkpoint.run.path / "config.yaml").read_text(encoding="utf-8"))
    task = build_task(config.task, sandbox)
    problems = task.problems("train")[: moved.config.eval.kl_problems]
    prompts = build.encoded(task, moved.chat, problems, config)
    return [(ids, moved.chat.completion_ids(task.reference(problem))) for problem, ids in prompts]
