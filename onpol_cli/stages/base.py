"""`onpol train base`: the small Qwen3 model that ships with the package, pretrained on the procedural world.

Tokenizer and architecture come from `tasks.world.base`, examples from `tasks.world.pretraining`; the
loop and the learner are everybody's. Each step's examples depend on seed and step alone, so a resumed
run goes on exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpol_cli.core.config import BaseConfig, Config
from onpol_cli.core.files import sha256_text
from onpol_cli.core.seeding import derive_seed
from onpol_cli.core.types import Problem
from onpol_cli.runs.rundir import RunDir
from onpol_cli.stages import build
from onpol_cli.stages.session import default_name, open_run

if TYPE_CHECKING:
    from onpol_cli.learner.chat import Chat
    from onpol_cli.learner.learner import Learner
    from onpol_cli.methods.base import Group
    from onpol_cli.tasks.protocol import Task

AHEAD = 4
"""Steps whose examples are made in the second process before they are needed."""


def texts_of_step(seed: int, step: int, config: BaseConfig, characters: int) -> list[tuple[str, str]]:
    """(prompt content, answer) pairs of a 0-based step, until they hold `characters` characters."""
    from onpol_cli.tasks.world.pretraining import pretraining_examples

    pairs: list[tuple[str, str]] = []
    size = 0
    for messages, answer in pretraining_examples(derive_seed(seed, "pretraining", step), config):
        pairs.append((messages[0]["content"], answer))
        size += len(messages[0]["content"]) + len(answer)
        if size >= characters:
            return pairs
    raise AssertionError("the stream of examples never ends")


class StreamSource:
    """Fresh examples in every step, cut at `base.batch_tokens` tokens; made ahead in another process."""

    def __init__(self, config: Config, chat: Chat, pool: ProcessPoolExecutor) -> None:
        self.config = config
        self.chat = chat
        self.pool = pool
        self.waiting: dict[int, Future[list[tuple[str, str]]]] = {}

    def _ask(self, step: int) -> Future[list[tuple[str, str]]]:
        characters = 3 * self.config.base.batch_tokens
        return self.pool.submit(texts_of_step, self.config.seed, step, self.config.base, characters)

    def groups(self, step: int) -> tuple[list[Group], dict[str, float]]:
        """One group per example."""
        for ahead in range(step, min(step + AHEAD, self.config.method.steps)):
            if ahead not in self.waiting:
                self.waiting[ahead] = self._ask(ahead)
        pairs = self.waiting.pop(step).result(timeout=300)
        return list(self._cut(pairs)), {}

    def _cut(self, pairs: list[tuple[str, str]]) -> Iterator[Group]:
        from onpol_cli.methods.base import Sample

        left = self.config.base.batch_tokens
        for content, answer in pairs:
            prompt = self.chat.prompt_ids([{"role": "user", "content": content}])
            completion = self.chat.completion_ids(answer)
            left -= len(prompt) + len(completion)
            if left < 0:
                return
            yield [Sample(Problem("pretraining", content, None), prompt, completion)]


def train_base(config: Config, *, command: list[str], resume: bool = False) -> Path:
    """Pretrain, score on the validation split as it goes, and leave a checkpoint with its manifest."""
    facts: dict[str, Any] = {"method": "sft", "method_choice": "pretrain", "model_role": "base", "label": "base"}
    with open_run(config, default_name("base", config), command, resume=resume, **facts) as run:
        if run.manifest().get("finished_steps"):
            return run.path
        with ExitStack() as stack:
            _train(run, config, stack)
    return run.path


def _train(run: RunDir, config: Config, stack: ExitStack) -> None:
    from onpol_cli.methods.base import Context
    from onpol_cli.methods.registry import build_method
    from onpol_cli.sandbox import Sandbox
    from onpol_cli.stages.progress import StepReporter
    from onpol_cli.stages.train import dump_to, finish
    from onpol_cli.training.loop import Parts, train
    from onpol_cli.training.monitors import Monitors

    learner, chat, tokenizer, folder = make_model(run, config)
    learner.dump = dump_to(run, learner.world)
    pool = stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn")))
    source = StreamSource(config, chat, pool)
    sandbox = stack.enter_context(Sandbox(config.sandbox))
    tasks = validation_tasks(config, sandbox)
    engine = None
    if config.run.validate_every:
        engine = stack.enter_context(build.engine_for(config, str(folder), tokenizer, learner.model))
    validate = _validators(tasks, chat, config, engine, learner) if engine else None
    method = build_method(config.method, Context(tasks[0], chat.prompt_ids, {}))
    reporter = stack.enter_context(StepReporter(run, config, config.method.steps))
    parts = Parts(
        run, method, learner, source, Monitors(config.monitor), config.method.steps, validate=validate, on_step=reporter
    )
    train(parts, config.run)
    run.update_manifest(data_hash=data_hash(config))
    finish(run, learner, config.method.steps)


def make_model(run: RunDir, config: Config) -> tuple[Learner, Chat, Any, Path]:
    """Tokenizer and random-weight model of `base.*`, with its learner; the start is written under `start/`."""
    from onpol_cli.learner.chat import Chat
    from onpol_cli.stages.train import make_learner
    from onpol_cli.tasks.world.base import base_model_config, save_tokenizer

    folder = run.path / "start"
    tokenizer = save_tokenizer(derive_seed(config.seed, "tokenizer"), config.base, folder)
    base_model_config(config.base, tokenizer).save_pretrained(folder)
    model_config = replace(config.model, path=str(folder), random_weights=True)
    learner = make_learner(config, model_config, tokenizer, config.method.steps, None)
    return learner, Chat(tokenizer), tokenizer, folder


def validation_tasks(config: Config, sandbox: Any) -> list[Task]:
    """The two tasks that the base is watched on."""
    from onpol_cli.tasks.registry import build_task

    specs = [replace(config.task, name="tiny-edit", families="in-domain"), replace(config.task, name="tiny-codegen")]
    return [build_task(spec, sandbox) for spec in specs]


def _validators(
    tasks: list[Task], chat: Chat, config: Config, engine: Any, learner: Learner
) -> Callable[[int], dict[str, float]]:
    from onpol_cli.stages.validation import validator

    parts = [validator(task, chat, lambda p: engine.generate(p, config.rollout.sampling), config) for task in tasks]

    def validate(done: int) -> dict[str, float]:
        engine.sync_weights(learner.named_weights())
        scores: dict[str, float] = {}
        for part in parts:
            scores |= part(done)
        return scores

    return validate


def data_hash(config: Config) -> str:
    """Hash of the first step's texts: changes when the world or the mixture does."""
    pairs = texts_of_step(config.seed, 0, config.base, 3 * config.base.batch_tokens)
    return sha256_text("\0".join(part for pair in pairs for part in pair))
