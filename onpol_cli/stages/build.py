"""From configuration to parts: tasks, models, engines, teachers.

Owns the wiring that several commands share. Everything heavy is imported inside functions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpol_cli.core.config import Config, ModelConfig, ScorerKind, TaskConfig
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.files import sha256_file
from onpol_cli.core.types import Problem
from onpol_cli.learner.chat import Chat
from onpol_cli.learner.parallel import ALONE, World, join_world
from onpol_cli.runs.lookup import RunInfo, find_run, list_runs
from onpol_cli.stages.session import follower, runs_root

if TYPE_CHECKING:
    import torch

    from onpol_cli.learner.scorer import LocalScorer
    from onpol_cli.rollout.engine import RolloutEngine
    from onpol_cli.tasks.protocol import Task

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk and what is known of it.

    Attributes:
        path: Hugging Face folder; the hub name of what was not to be fetched.
        run: the run that made it, None for foreign folders.
        label: how tables call it.
        hub: name on the hub, None for anything else.
        revision: branch, tag or commit on the hub that was asked for.
    """

    path: str
    run: RunInfo | None
    label: str
    hub: str | None = None
    revision: str | None = None

    @property
    def origin(self) -> str:
        """Where it is from: the hub name, or the folder."""
        return self.hub or self.path

    @property
    def hub_facts(self) -> dict[str, str | None]:
        """What a manifest says of a hub model besides its name; {} for anything else."""
        return {"revision": self.revision, "commit": Path(self.path).name} if self.hub else {}

    def fact(self, name: str, default: Any = None) -> Any:
        """An entry of the run's manifest."""
        return self.run.manifest.get(name, default) if self.run else default

    @property
    def name(self) -> str | None:
        """The run's name, with `-best` or `-step-N` for other weights than its last; None for foreign folders."""
        if self.run is None:
            return None
        folder = Path(self.path).resolve()
        place = folder.name if _step(folder) is None else folder.parent.name
        return self.run.name if place == "checkpoint" else f"{self.run.name}-{place}"


def find_checkpoint(spec: str, config: Config, *, fetch: bool = True) -> Checkpoint:
    """The checkpoint that `spec` names: `tiny`, a model folder, a run, `latest:<method>`, or a hub name.

    A run's model folders are `checkpoint`, `best` and `state/step-N/model`. `model.revision` is that of the hub model
    `model.path`, in whatever part that has.

    Args:
        spec: as the user gave it.
        config: paths, and where the revision stands.
        fetch: bring a hub model here, so that its path is a folder of one revision for all that read it.

    Raises:
        OnpolError: nothing fits; the message lists near names.
    """
    revision = config.model.revision if spec == config.model.path else None
    found = _local_checkpoint(spec, config)
    if found is None:
        return _hub_checkpoint(spec, revision, fetch, weights=not _scored_elsewhere(spec, config))
    if revision is not None:
        raise OnpolError(
            f"model.revision={revision} is for models of the hub, and model.path={spec} is none. "
            "Leave it out (model.revision=null), or name the hub model."
        )
    return found


def _local_checkpoint(spec: str, config: Config) -> Checkpoint | None:
    """The checkpoint that is on this disk; None for a hub name."""
    from onpol_cli.learner.model import TINY, resolve_model_path

    if spec == TINY:
        return Checkpoint(resolve_model_path(TINY), None, "base")
    folder = Path(spec).expanduser()
    if (folder / "config.json").is_file():
        return Checkpoint(str(folder), _owner(folder), _owner_label(folder))
    if folder.is_dir() or ":" in spec or "/" not in spec:
        info = find_run(spec, runs_root(config))
        if not info.has_checkpoint:
            raise OnpolError(
                f"Run {info.name} has no finished checkpoint (status: {info.status}). Finish it with --resume"
                f"{_instead(info.path)}."
            )
        return Checkpoint(str(info.path / "checkpoint"), info, str(info.manifest.get("label", info.name)))
    resolve_model_path(spec)  # refuses what can be no hub name
    return None


def _hub_checkpoint(name: str, revision: str | None, fetch: bool, weights: bool) -> Checkpoint:
    from onpol_cli.learner.model import hub_folder

    label = f"{name}@{revision}" if revision else name
    return Checkpoint(hub_folder(name, revision, weights) if fetch else name, None, label, name, revision)


def _scored_elsewhere(spec: str, config: Config) -> bool:
    """Whether a tutor's weights are those of running servers: here only its tokenizer is read."""
    served = config.method.scorer is ScorerKind.vllm_server and bool(config.rollout.teacher_servers)
    return served and spec != config.model.path and spec in (config.tutor, *config.method.tutors.values())


def fetch_hub_models(config: Config) -> None:
    """Bring policy and tutors that are hub models here, before several processes ask for them at once."""
    for spec in dict.fromkeys([config.model.path, config.tutor, *config.method.tutors.values()]):
        if spec == config.model.path:
            policy_config(config)
        elif spec is not None and _named_on_hub(spec, config):
            find_checkpoint(spec, config)


def _named_on_hub(spec: str, config: Config) -> bool:
    try:
        return _local_checkpoint(spec, config) is None
    except OnpolError:  # a missing run: told by whoever needs it
        return False


def _instead(run: Path) -> str:
    """What else of an unfinished run could be taken: its best weights, else those of its newest state."""
    from onpol_cli.runs.checkpoint import MODEL, step_folder, steps_saved

    folders = [run / "best", *(step_folder(run / "state", step) / MODEL for step in steps_saved(run / "state")[::-1])]
    found = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    return f", or name a folder of it: {found}" if found else ""


def _owner(folder: Path) -> RunInfo | None:
    """The run whose `checkpoint`, `best` or `state/step-N/model` the folder is."""
    folder = folder.resolve()
    run = folder.parents[2] if _step(folder) is not None else folder.parent
    return find_run(str(run), run) if (run / "manifest.json").is_file() else None


def _step(folder: Path) -> int | None:
    """Steps behind a state's model folder; None for any other."""
    found = re.search(r"/state/step-(\d+)/model$", folder.as_posix())
    return int(found.group(1)) if found else None


def _owner_label(folder: Path) -> str:
    owner = _owner(folder)
    if owner is None:
        return folder.name
    label, step = str(owner.manifest.get("label", folder.name)), steps_behind(folder, owner)
    if folder.resolve().name == "best":
        return f"{label} best (step {'?' if step is None else step})"
    return label if step is None else f"{label} step {step}"


def steps_behind(folder: Path, owner: RunInfo) -> int | None:
    """Steps behind the weights of a state or of `best`; None for a run's last ones."""
    folder = folder.resolve()
    return (owner.manifest.get("best") or {}).get("step") if folder.name == "best" else _step(folder)


def tutors_found(config: Config) -> list[str]:
    """Names of finished tutors, newest first, for messages."""
    runs = [r for r in list_runs(runs_root(config)) if r.has_checkpoint and r.manifest.get("model_role") == "tutor"]
    return [run.name for run in reversed(runs)]


def require_tutor(config: Config) -> str:
    """`config.tutor`, or an error that lists what could be given."""
    if config.method.name == "multi_opd":
        raise OnpolError("method=multi_opd has a tutor for each domain: method.tutors.DOMAIN=RUN, for each.")
    if config.tutor:
        return config.tutor
    found = tutors_found(config)
    hint = f"Found: {', '.join(found[:6])}." if found else "There is none yet; train one: onpol train tutor method=sft."
    raise OnpolError(f"Which tutor? Add tutor=RUN, tutor=PATH or tutor=latest:sft. {hint}")


def verify_checkpoint(checkpoint: Checkpoint) -> None:
    """Check a checkpoint of ours against its hashes before anything uses it.

    Raises:
        OnpolError: it is damaged.
    """
    from onpol_cli.runs.checkpoint import HASHES, verify

    if (Path(checkpoint.path) / HASHES).is_file() or checkpoint.run is not None:
        verify(Path(checkpoint.path), ["config.json"])


def verify_all(config: Config, tutors: Mapping[str, Checkpoint]) -> None:
    """Check tutors and the start (which is the reference too), each once; with several processes the first does it.

    Raises:
        OnpolError: one is damaged.
    """
    if follower():
        return
    found = {checkpoint.path: checkpoint for checkpoint in tutors.values()}
    if not config.model.random_weights:
        start = find_checkpoint(config.model.path, config)
        found[start.path] = start
    for checkpoint in found.values():
        verify_checkpoint(checkpoint)


def model_hash(path: str) -> str | None:
    """Short hash of a model's weights, as recorded beside them where it is ours; None where there are none."""
    from onpol_cli.runs.checkpoint import recorded_hash

    files = sorted(Path(path).glob("*.safetensors"))
    return "-".join((recorded_hash(file) or _blob_hash(file) or sha256_file(file))[:16] for file in files) or None


def _blob_hash(file: Path) -> str | None:
    """The hash of its content under which the hub's cache keeps a large file."""
    kept = file.resolve()
    return kept.name if kept.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", kept.name) else None


def encoded(task: Task, chat: Chat, problems: Sequence[Problem], config: Config) -> list[tuple[Problem, Ids]]:
    """Problems with their prompt ids; prompts that leave no room for an answer are an error."""
    limit = config.model.max_context - config.rollout.sampling.max_new_tokens
    pairs = [(problem, chat.prompt_ids(task.messages(problem))) for problem in problems]
    fitting = [pair for pair in pairs if len(pair[1]) <= limit]
    if len(fitting) < len(pairs):
        from onpol_cli.core.console import LOGGER

        LOGGER.warning(
            "%d of %d prompts exceed %d tokens and are left out (model.max_context=%d less "
            "rollout.sampling.max_new_tokens=%d)",
            len(pairs) - len(fitting), len(pairs), limit, config.model.max_context,
            config.rollout.sampling.max_new_tokens,
        )  # fmt: skip
    if not pairs:
        raise OnpolError(f"{task.name}: no problems to work on. Raise task.validation_problems, or validate nothing.")
    if not fitting:
        raise OnpolError(f"No prompt fits model.max_context={config.model.max_context}. Raise it.")
    return fitting


def tokenizer_and_chat(path: str) -> tuple[Any, Chat]:
    """Tokenizer at `path` and its chat view."""
    from onpol_cli.learner.model import load_tokenizer

    tokenizer = load_tokenizer(path)
    return tokenizer, Chat(tokenizer)


def load_teacher(
    checkpoint: Checkpoint, config: Config, student_path: str, world: World = ALONE
) -> LocalScorer:
    """The tutor as a frozen scorer, sharded over `world`, after checking that it fits the student."""
    from onpol_cli.learner.model import frozen_model, pick_device, real_vocab
    from onpol_cli.learner.scorer import LocalScorer

    teacher_tokenizer = fitting_tokenizer(checkpoint, student_path)
    device = pick_device(config.model)
    model = frozen_model(checkpoint.path, teacher_dtype(config), device, world)
    vocab, temperature = real_vocab(teacher_tokenizer, model), config.method.teacher_temperature
    return LocalScorer(model, vocab, config.learner, device, temperature, world)


def frozen_world(config: Config, device: torch.device) -> World:
    """The processes that share teachers and references: all of the learner's, or each its own whole copy."""
    return join_world(config.parallel, device) if config.parallel.shard_frozen else ALONE


def shared_tutors(config: Config, student_path: str, tutors: Mapping[str, Checkpoint]) -> list[str]:
    """Domains whose tutor is the base that the student's adapters sit on: no second copy of it is loaded.

    Args:
        config: LoRA and scorer are read.
        student_path: resolved folder or hub name of the starting policy.
        tutors: checkpoints by domain.
    """
    apart = config.model.lora.rank == 0 or config.model.random_weights or config.method.scorer is not ScorerKind.learner
    if apart:
        return []
    return [name for name, checkpoint in tutors.items() if checkpoint.path == student_path]


def fitting_tokenizer(checkpoint: Checkpoint, student_path: str) -> Any:
    """The teacher's tokenizer, after checking that student and teacher share their tokens."""
    from onpol_cli.learner.model import load_config, load_tokenizer
    from onpol_cli.learner.preflight import check_pair

    teacher = load_tokenizer(checkpoint.path)
    check_pair(load_tokenizer(student_path), teacher, load_config(student_path), load_config(checkpoint.path))
    return teacher


def teacher_dtype(config: Config) -> torch.dtype:
    """Frozen models are held in the compute format."""
    import torch

    from onpol_cli.learner.model import pick_device

    dtype: torch.dtype = getattr(torch, config.learner.autocast.value)
    return dtype if pick_device(config.model).type == "cuda" else torch.float32


def engine_for(
    config: Config, model_path: str, tokenizer: Any, model: Any = None, world: World = ALONE
) -> RolloutEngine:
    """The rollout engine of the configuration, loaded with `model_path` (or copying `model`), for all of `world`."""
    from onpol_cli.core.seeding import derive_seed
    from onpol_cli.learner.model import pick_device, quiet
    from onpol_cli.rollout.engine import build_engine

    quiet()
    seed = derive_seed(config.seed, "engine") % 2**31
    device = pick_device(config.model)
    return build_engine(config.rollout, model_path, tokenizer, seed, device, model=model, world=world)


def bench_task(config: Config, name: str) -> TaskConfig:
    """The task configuration of an evaluation bench."""
    from dataclasses import replace

    return replace(
        config.task, name=name, data=config.eval.data.get(name), prompt=config.eval.prompt, shots=config.eval.shots
    )


def policy_config(config: Config, *, fetch: bool = True) -> ModelConfig:
    """The model configuration with run names, `latest:` and hub names resolved to a folder.

    Args:
        config: the whole one.
        fetch: false leaves a hub name with its revision.
    """
    from dataclasses import replace

    from onpol_cli.learner.model import TINY, resolve_model_path

    model = config.model
    if not model.random_weights:
        found = find_checkpoint(model.path, config, fetch=fetch)
    elif model.path == TINY or Path(resolve_model_path(model.path)).is_dir():
        return model
    else:
        found = _hub_checkpoint(model.path, model.revision, fetch, weights=False)
    return replace(model, path=found.path, revision=found.revision if found.path == found.hub else None)


def start_facts(config: Config) -> dict[str, Any]:
    """What a manifest says of the start: what names it again, and of which revision it is; {} for random weights."""
    if config.model.random_weights:
        return {}
    start = find_checkpoint(config.model.path, config)
    return {"start": {"path": start.hub or lasting_name(start, config), **start.hub_facts}}


def lasting_name(checkpoint: Checkpoint, config: Config) -> str:
    """What names `checkpoint` whatever runs and revisions come later: its run, or its folder."""
    run = checkpoint.run
    if run is None or checkpoint.name != run.name or run.path.resolve() != (runs_root(config) / run.name).resolve():
        return checkpoint.path
    return run.name


def hashes_of(config: Config, tutors: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """Hashes of the start and of the tutors by domain, each folder read once; {} in followers, which record nothing."""
    if follower():
        return {}
    start = None if config.model.random_weights else find_checkpoint(config.model.path, config).path
    paths = {start, *(tutor.path for tutor in tutors.values())}
    known = {path: model_hash(path) for path in paths if path is not None}
    return {
        "start": known[start] if start else None,
        "tutor": {name: known[tutor.path] for name, tutor in tutors.items()} or None,
    }
