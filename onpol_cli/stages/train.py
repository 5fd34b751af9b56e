"""`onpol train tutor` and `onpol distill student`: one function, since only the method differs.

Follows one problem: task -> prompt ids -> rollout -> grade -> streams -> step -> sync -> metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpol_cli.core.config import Config, ScorerKind
from onpol_cli.core.seeding import derive_seed
from onpol_cli.core.types import Completion, Grade, Problem
from onpol_cli.runs.rundir import RunDir
from onpol_cli.stages import build
from onpol_cli.stages.completions import make_source, steps_of
from onpol_cli.stages.session import default_name, label, open_run, run_folder, variant

if TYPE_CHECKING:
    from torch import Tensor

    from onpol_cli.learner.chat import Chat
    from onpol_cli.learner.learner import Learner
    from onpol_cli.learner.parallel import World
    from onpol_cli.learner.scorer import TeacherScorer
    from onpol_cli.methods.base import Context, Group, Method
    from onpol_cli.rollout.engine import RolloutEngine
    from onpol_cli.tasks.protocol import Task
    from onpol_cli.training.sources import CompletionSource

Ids = tuple[int, ...]
Observer = Callable[[int, dict[str, float], "list[Group]"], None]


@dataclass
class Workbench:
    """The parts of a training run that live as long as it does."""

    config: Config
    task: Task
    chat: Chat
    learner: Learner
    problems: list[tuple[Problem, Ids]]
    engine: RolloutEngine | None
    teachers: dict[str, TeacherScorer]
    reference: TeacherScorer | None

    def sample(self, prompts: Sequence[Any]) -> list[Any]:
        """Rollouts of the policy as last synced."""
        assert self.engine is not None
        self.engine.wake()
        rollouts = self.engine.generate(prompts, self.config.rollout.sampling)
        self.rest()
        return rollouts

    def rest(self) -> None:
        """Let the sampler give its memory to the learner until it is asked again."""
        if self.engine is None:
            return
        if self.config.rollout.sleep and self.learner.device.type == "cuda":
            self.engine.sleep()  # one GPU, two tenants; on a CPU the cache is wanted again in the next step

    def grade(self, items: Sequence[tuple[Problem, Completion]]) -> list[Grade]:
        """Verdicts of the training task."""
        return self.task.grade(items)


def train_model(config: Config, *, role: str, command: list[str], resume: bool = False) -> Path:
    """Train one model; returns its run directory.

    Args:
        role: `tutor` or `student`.
        command: words to repeat it with.

    Raises:
        OnpolError: a setting, tutor or data that cannot work; nothing was started.
        RunFailed: started and could not finish.
    """
    from onpol_cli.learner.model import pick_device
    from onpol_cli.learner.parallel import join_world, leave_world
    from onpol_cli.methods.registry import check_method
    from onpol_cli.stages.doctor import require_preflight

    check_method(config.method)
    require_preflight(config, role, command)
    tutors = find_tutors(config, config.method.needs_tutor)
    build.verify_all(config, tutors)
    facts, short = _facts(config, role, tutors)
    verb = "train" if role == "tutor" else "distill"
    world = join_world(config.parallel, pick_device(config.model))
    # The time in a default name differs from process to process.
    folder = world.agreed(lambda: run_folder(config, default_name(verb, config, short), resume))
    with open_run(config, folder.name, command, resume=resume, folder=folder, **facts) as run, ExitStack() as stack:
        if not ((run.checkpoint / "config.json").is_file() and run.manifest().get("finished_steps")):
            _train(run, config, tutors, stack)
    leave_world()
    return run.path


def find_tutors(config: Config, needed: bool) -> dict[str, build.Checkpoint]:
    """The configured tutors by domain; the key "" serves every problem."""
    if config.method.tutors:
        return {name: build.find_checkpoint(spec, config) for name, spec in config.method.tutors.items()}
    if not needed:
        return {}
    return {"": build.find_checkpoint(build.require_tutor(config), config)}


def _facts(config: Config, role: str, tutors: dict[str, build.Checkpoint]) -> tuple[dict[str, Any], str | None]:
    first = next(iter(tutors.values()), None)
    origin = " + ".join(c.label for c in tutors.values())
    name = f"{label(config)} from {origin}" if origin else label(config)
    facts = {
        "method": config.method.name,
        "method_choice": variant(config),
        "model_role": role,
        "label": name,
        "tutor": first.run.name if first and first.run else (first.origin if first else None),
        "tutors": {key: build.lasting_name(c, config) for key, c in tutors.items()},
        "tutor_label": origin or None,
        **build.start_facts(config),
        "hashes": build.hashes_of(config, tutors),
    }
    short = None if first is None else str(first.fact("method_choice") or Path(first.origin).name)
    return facts, short


def _train(run: RunDir, config: Config, tutors: dict[str, build.Checkpoint], stack: ExitStack) -> None:
    from onpol_cli.learner.memory import forget_peak
    from onpol_cli.learner.model import pick_device
    from onpol_cli.learner.planner import gpu_count, gpus_used
    from onpol_cli.methods.base import Source
    from onpol_cli.methods.registry import scores_by_teacher
    from onpol_cli.stages.progress import StepReporter
    from onpol_cli.stages.syncing import measure_noise, sync_of, validation_of
    from onpol_cli.training.loop import Parts, train
    from onpol_cli.training.monitors import Monitors

    forget_peak(pick_device(config.model))
    bench, method, source, steps = assemble(run, config, tutors, stack)
    first = bench.learner.world.rank == 0
    reporter: Observer = stack.enter_context(StepReporter(run, config, steps)) if first else silent
    used = gpus_used(config, gpu_count(config)) if bench.learner.device.type == "cuda" else 0
    run.update_manifest(planned_steps=steps, processes=bench.learner.world.size, gpus_used=used)
    bench.learner.dump = dump_to(run, bench.learner.world)
    run.resumed = bench.learner.world.agreed(lambda: run.resumed)  # only the first process knows what it found
    measure_noise(run, bench)
    bench.rest()
    sync = sync_of(bench, source)
    synced = method.source is not Source.DATASET  # after each step
    parts = Parts(
        run=run,
        method=method,
        learner=bench.learner,
        source=source,
        monitors=Monitors(config.monitor, config.rollout.sampling.max_new_tokens),
        steps=steps,
        sync=sync if synced else None,
        validate=validation_of(bench, config, None if synced else sync, source) if config.run.validate_every else None,
        scores_teacher=scores_by_teacher(config.method),
        on_step=_observer(run, config, reporter, bench.learner.world),
    )
    train(parts, config.run)
    finish(run, bench.learner, steps)


def silent(step: int, metrics: dict[str, float], groups: list[Group]) -> None:
    """What processes other than the first report."""


def _observer(run: RunDir, config: Config, reporter: Observer, world: World) -> Observer:
    """What is told of every step: the live view, and the saved rollouts where they are asked for."""
    from onpol_cli.stages.rollout_log import ROLLOUTS, rows_of

    def observe(step: int, metrics: dict[str, float], groups: list[Group]) -> None:
        if config.rollout.save:
            run.append(ROLLOUTS, rows_of(step, world.join(groups)))
        reporter(step, metrics, groups)

    return observe


def finish(run: RunDir, learner: Learner, steps: int) -> None:
    """Write the final weights, whole or not at all."""
    import torch

    from onpol_cli.runs.checkpoint import write_folder

    if learner.world.rank > 0:  # gathering the shards needs every process; only the first writes
        learner.save_pretrained(run.checkpoint, torch.bfloat16)
    else:
        write_folder(run.checkpoint, lambda folder: learner.save_pretrained(folder, torch.bfloat16))
        hashes = {**run.manifest().get("hashes", {}), "model": build.model_hash(str(run.checkpoint))}
        run.update_manifest(finished_steps=steps, hashes=hashes)
    learner.world.gather(None)  # nobody leaves earlier: after a signal, a peer that is gone ends the one that writes


def assemble(
    run: RunDir, config: Config, tutors: dict[str, build.Checkpoint], stack: ExitStack
) -> tuple[Workbench, Method, CompletionSource, int]:
    """Everything that the loop needs, in the order in which mistakes are cheapest."""
    from onpol_cli.methods.base import Source
    from onpol_cli.methods.registry import METHODS, build_method
    from onpol_cli.sandbox import Sandbox
    from onpol_cli.stages.rollout_log import has_selected
    from onpol_cli.tasks.registry import build_task, preload_for

    kind = METHODS[config.method.name]
    sandbox = stack.enter_context(Sandbox(config.sandbox, preload_for([config.task.name])))
    task = build_task(config.task, sandbox)
    model_config = build.policy_config(config)
    tokenizer, chat = build.tokenizer_and_chat(model_config.path)
    train_problems = task.problems("train")
    problems = build.encoded(task, chat, train_problems[: config.task.problems or None], config)
    learner, teachers, reference = make_models(
        config, tokenizer, steps_of(config, len(problems)), tutors,
        lambda tutor, number: make_teacher(tutor, config, model_config.path, stack, number),
    )  # fmt: skip
    engine = None
    selects = kind.prepares and not learner.world.agreed(lambda: has_selected(run.path))
    if kind.source is not Source.DATASET or selects or config.run.validate_every:
        made = build.engine_for(config, model_config.path, tokenizer, learner.model, learner.world)
        engine = stack.enter_context(made)
    bench = Workbench(config, task, chat, learner, problems, engine, teachers, reference)
    run.update_manifest(isolation=sandbox.isolation, problems=len(problems))
    method = build_method(config.method, method_context(bench))
    source, steps = make_source(run, bench, method, stack)
    learner.plan_steps(steps)  # of what was selected, where that is not every problem
    return bench, method, source, steps


def make_models(
    config: Config,
    tokenizer: Any,
    steps: int,
    tutors: Mapping[str, build.Checkpoint],
    load: Callable[[build.Checkpoint, int], TeacherScorer],
) -> tuple[Learner, dict[str, TeacherScorer], TeacherScorer | None]:
    """The policy in training, its teachers by domain, and its reference if the method has one.

    Args:
        steps: optimiser steps planned.
        tutors: checkpoints by domain; those that are the base under the policy's adapters are not loaded.
        load: a scorer of any other, given its number among those loaded.
    """
    from onpol_cli.methods.registry import needs_hidden, needs_reference

    policy = build.policy_config(config)
    shared = build.shared_tutors(config, policy.path, tutors)
    loaded = [key for key in tutors if key not in shared]
    teachers = {key: load(tutors[key], number) for number, key in enumerate(loaded)}
    head = next(iter(teachers.values())).output_matrix if teachers and needs_hidden(config.method) else None
    learner = make_learner(config, policy, tokenizer, steps, head)
    teachers |= base_teachers(config, learner, shared)
    reference = frozen_start(config, policy, tokenizer, learner) if needs_reference(config.method) else None
    return learner, teachers, reference


def make_teacher(
    checkpoint: build.Checkpoint, config: Config, student_path: str, stack: ExitStack, number: int = 0
) -> TeacherScorer:
    """The tutor as `method.scorer` wants it: in this process, or behind vLLM servers that end with the run.

    Args:
        number: of the tutor among all that are loaded; each has a server of its own where one is started here.
    """
    from onpol_cli.learner.model import pick_device
    from onpol_cli.learner.parallel import join_world

    if config.method.scorer is not ScorerKind.vllm_server:
        world = build.frozen_world(config, pick_device(config.model))
        return build.load_teacher(checkpoint, config, student_path, world)
    from onpol_cli.rollout.teacher import ServerScorer

    tokenizer = build.fitting_tokenizer(checkpoint, student_path)
    temperature, world = config.method.teacher_temperature, join_world(config.parallel, pick_device(config.model))
    made = ServerScorer(config.rollout, checkpoint.path, tokenizer, temperature, world, number)
    scorer: Any = stack.enter_context(made)
    teacher: TeacherScorer = scorer
    return teacher


def method_context(bench: Workbench) -> Context:
    """What the method may call."""
    from onpol_cli.methods.base import Context

    reference: Callable[[Sequence[tuple[Ids, Ids]]], list[Tensor]] | None = None
    if bench.reference is not None:
        reference = bench.reference.logprobs
    policy = bench.learner.engine.at(bench.config.method.teacher_temperature)
    return Context(bench.task, bench.chat.prompt_ids, bench.teachers, reference, policy)


def make_learner(config: Config, model_config: Any, tokenizer: Any, steps: int, head: Tensor | None) -> Learner:
    """The policy with its optimiser."""
    import torch

    from onpol_cli.learner.learner import Learner
    from onpol_cli.learner.model import load_model, pick_device
    from onpol_cli.learner.parallel import join_world

    device = pick_device(config.model)
    model = load_model(model_config, derive_seed(config.seed, "model") % 2**31, join_world(config.parallel, device))
    learner = Learner(model, tokenizer, config, max(1, steps), device, teacher_head=head)
    # Dropout draws from torch's own state, which differs from process to process unless it is set.
    torch.manual_seed(derive_seed(config.seed, "dropout", learner.world.rank))
    return learner


def base_teachers(config: Config, learner: Learner, names: Sequence[str]) -> dict[str, TeacherScorer]:
    """Teachers that are the base under the student's adapters: its own weights with the adapters off."""
    from onpol_cli.learner.scorer import BaseScorer
    from onpol_cli.methods.registry import needs_hidden

    if names and needs_hidden(config.method):
        learner.teach_from_own_head()
    return {name: BaseScorer(learner.engine, config.method.teacher_temperature) for name in names}


def frozen_start(config: Config, model_config: Any, tokenizer: Any, learner: Learner) -> TeacherScorer:
    """The starting weights as a scorer that stays as it is: the learner's own without adapters, else a copy."""
    from onpol_cli.learner.model import load_model, pick_device, real_vocab
    from onpol_cli.learner.scorer import BaseScorer, LocalScorer

    # The penalty compares with what was sampled; preferences are defined at temperature 1.
    temperature = 1.0 if config.method.name == "dpo" else learner.engine.temperature
    if model_config.lora.rank > 0:
        return BaseScorer(learner.engine, temperature)
    device = pick_device(config.model)
    world = build.frozen_world(config, device)
    model = load_model(model_config, derive_seed(config.seed, "model") % 2**31, world)
    return LocalScorer(model, real_vocab(tokenizer, model), config.learner, device, temperature, world)


def dump_to(run: RunDir, world: World) -> Callable[[dict[str, Any]], str]:
    """Where a non-finite step leaves its examples: a file for each process that has some."""

    def dump(payload: dict[str, Any]) -> str:
        import torch

        from onpol_cli.runs.checkpoint import why_unwritten

        rank = f"-rank-{world.rank}" if world.size > 1 else ""
        path = run.path / f"dump-step-{payload['step']}{rank}.pt"
        try:
            with path.open("wb") as file:
                torch.save(payload, file)
        except (OSError, RuntimeError) as error:
            path.unlink(missing_ok=True)
            return f"none, {path} cannot be written ({why_unwritten(error) or error})"
        return str(path)

    return dump
