"""What can be known before a run starts, each as a finding with its remedy. Reads no weights.

Owns the single checks; `doctor` chooses, shows and judges them. Every check takes a configuration and
returns findings, never raises for what it found.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from onpol_cli.core.config import Config, Device, Engine, LoraSync, ScorerKind, WeightTransfer
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.packages import installed_version
from onpol_cli.stages import build
from onpol_cli.stages.session import runs_root

HEADROOM = 3.0
"""Free space that a run wants, in copies of the final weights: checkpoint, a state being written, its predecessor."""
STATE_COPIES = 7.0
"""A resumable state in copies of bf16 weights: float32 weights, two float32 moments, and the model folder."""
BEST_COPIES = 2.0
"""The best weights and their successor being written."""


class Level(StrEnum):
    """How bad a finding is. Only an `error` keeps a run from starting."""

    ok = "ok"
    warning = "warning"
    error = "error"


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        check: what was looked at, a word or two.
        message: what was found.
        remedy: what to do, empty where all is well.
    """

    level: Level
    check: str
    message: str
    remedy: str = ""


def ok(check: str, message: str) -> Finding:
    """All is well."""
    return Finding(Level.ok, check, message)


def warning(check: str, message: str, remedy: str) -> Finding:
    """It runs, but look at this."""
    return Finding(Level.warning, check, message, remedy)


def failure(check: str, message: str, remedy: str) -> Finding:
    """It cannot run."""
    return Finding(Level.error, check, message, remedy)


def caught(check: str, body: Callable[[], Finding]) -> Finding:
    """`body`'s finding; an `OnpolError` becomes an error whose remedy is its last sentence."""
    try:
        return body()
    except OnpolError as error:
        message, _, remedy = str(error).rpartition(". ")
        return failure(check, message or remedy, remedy if message else "")


def check_device(config: Config) -> list[Finding]:
    """Processor or GPU of the learner, and whether all processes have one."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.model.device is Device.cuda and not count:
        return [failure("device", "model.device=cuda, but torch sees no CUDA device", "Use model.device=auto or cpu.")]
    if config.model.device is Device.cpu or not count:
        return [ok("device", f"CPU, {cores} cores (torch {torch.__version__}, no GPU in use)")]
    names = {torch.cuda.get_device_name(i) for i in range(count)}
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    found = [ok("device", f"{count} x {', '.join(sorted(names))}, {memory:.0f} GiB (torch {torch.__version__})")]
    if config.parallel.nproc > count:
        message = f"parallel.nproc={config.parallel.nproc} processes for {count} GPUs"
        found.append(failure("device", message, f"Use parallel.nproc={count} or run on more GPUs."))
    return found


def _on_gpu(config: Config) -> bool:
    import torch

    return config.model.device is not Device.cpu and torch.cuda.is_available()


def check_compile(config: Config) -> list[Finding]:
    """Whether `learner.compile` finds what it needs: a C++ compiler on the CPU, Triton on a GPU."""
    if not config.learner.compile:
        return []
    if _on_gpu(config):
        there, what = importlib.util.find_spec("triton") is not None, "Triton"
    else:
        there, what = shutil.which(os.environ.get("CXX", "g++")) is not None, "a C++ compiler (g++, or CXX)"
    if there:
        return [ok("compile", f"learner.compile: {what} is here")]
    return [failure("compile", f"learner.compile=true needs {what}", "Install it, or leave learner.compile at false.")]


def check_liger(config: Config) -> list[Finding]:
    """Whether `learner.liger` can run here."""
    if not config.learner.liger:
        return []
    from onpol_cli.learner.kernels import liger_obstacle

    if obstacle := liger_obstacle("cuda" if _on_gpu(config) else "cpu"):
        return [failure("liger", f"learner.liger=true: {obstacle}", "Install it on a machine with a GPU, or drop it.")]
    return [ok("liger", f"Liger {installed_version('liger-kernel')}")]


def engine_state(engine: Engine) -> tuple[bool, str]:
    """Whether an engine can run here, and its version or why not."""
    if engine is Engine.hf:
        return True, f"transformers {installed_version('transformers')}"
    from onpol_cli.rollout.vllm_env import SERVERS_SINCE, too_old, vllm_problem, vllm_version

    if vllm_problem():
        return False, "vLLM is not installed"
    problem = too_old(SERVERS_SINCE) if engine is Engine.vllm_server else None
    return problem is None, f"vLLM: {problem}" if problem else f"vLLM {vllm_version()}"


def check_engines(config: Config) -> list[Finding]:
    """Every rollout engine: those that cannot run here are errors only where the configuration asks for them."""
    found = []
    for engine in Engine:
        runs, why = engine_state(engine)
        asked = engine is config.rollout.engine and not config.rollout.servers
        name = f"engine {engine.value}"
        if runs:
            found.append(ok(name, why + (" (chosen)" if engine is config.rollout.engine else "")))
        elif asked:
            found.append(failure(name, why, "Install it: pip install 'onpol[vllm]'; or use rollout=hf."))
        else:
            found.append(ok(name, f"{why}; not asked for"))
    return found


def check_sync(config: Config) -> list[Finding]:
    """Whether weights can reach the sampler in the way that is asked for."""
    servers = [*_local_servers(config), *_teacher_servers(config)]
    return [caught("weight sync", lambda: _adapter_sync(config)), *_weight_transfer(config), *servers]


def _adapter_sync(config: Config) -> Finding:
    from onpol_cli.rollout.vllm_params import adapter_rank

    rollout, rank = config.rollout, config.model.lora.rank
    if rollout.lora_sync is LoraSync.merged:
        return ok("weight sync", "whole weights")
    if rollout.engine is Engine.hf:
        message = "rollout.lora_sync=adapter needs rollout=vllm or rollout=vllm_server; rollout=hf merges at no cost"
        return failure("weight sync", message, "Use rollout.lora_sync=merged.")
    if rank == 0:
        message = "rollout.lora_sync=adapter without an adapter"
        return failure("weight sync", message, "Set model.lora.rank, or rollout.lora_sync=merged.")
    if rank > rollout.max_lora_rank:
        message = f"model.lora.rank={rank} is beyond rollout.max_lora_rank={rollout.max_lora_rank}"
        return failure("weight sync", message, f"Set rollout.max_lora_rank={rank}.")
    if not rollout.servers:
        adapter_rank(rollout, _on_gpu(config))  # raises where vLLM offers none
    return ok("weight sync", f"LoRA adapters of rank {rank}")


def _weight_transfer(config: Config) -> list[Finding]:
    from onpol_cli.rollout.transfer import chosen

    rollout, way = config.rollout, config.rollout.weight_transfer
    if way not in (WeightTransfer.ipc, WeightTransfer.nccl):
        return []
    remedy = "Leave rollout.weight_transfer at auto."
    if rollout.engine is not Engine.vllm_server:
        message = f"rollout.weight_transfer={way.value} needs rollout=vllm_server; others are handed the weights"
        return [failure("weight transfer", message, remedy)]
    if rollout.lora_sync is LoraSync.adapter:
        message = f"rollout.weight_transfer={way.value} moves whole weights, rollout.lora_sync=adapter none"
        return [failure("weight transfer", message, remedy)]
    if config.parallel.nproc * config.parallel.nnodes > 1:  # not started yet, so that `chosen` cannot see them
        message = f"rollout.weight_transfer={way.value} moves weights of one learner process"
        return [failure("weight transfer", message, remedy)]
    return [caught("weight transfer", lambda: ok("weight transfer", chosen(rollout).value))]


def _local_servers(config: Config) -> list[Finding]:
    """Servers that are started here listen on loopback, where learner processes of other machines cannot reach them."""
    rollout = config.rollout
    wanted = {
        "rollout.servers": rollout.engine is Engine.vllm_server and not rollout.servers,
        "rollout.teacher_servers": config.method.scorer is ScorerKind.vllm_server and not rollout.teacher_servers,
    }
    missing = [name for name, needed in wanted.items() if needed and config.parallel.nnodes > 1]
    message = f"servers started on one machine's loopback are out of reach of parallel.nnodes={config.parallel.nnodes}"
    return [failure("servers", message, f"Start them yourself and set {name}=[http://HOST:PORT].") for name in missing]


def _teacher_servers(config: Config) -> list[Finding]:
    """The servers given are replicas of one teacher: they cannot tell which of several tutors a domain asks for."""
    tutors, given = set(config.method.tutors.values()), config.rollout.teacher_servers
    if config.method.scorer is not ScorerKind.vllm_server or not given or len(tutors) < 2:
        return []
    message = f"rollout.teacher_servers all serve one tutor, and method.tutors names {len(tutors)}"
    return [failure("servers", message, "Leave it out: each tutor gets a server here. Or use method.scorer=learner.")]


def check_isolation(config: Config) -> list[Finding]:
    """How model output would be run."""
    from onpol_cli.sandbox import isolation_level

    level, explanation = isolation_level(config.sandbox)
    if level == "bubblewrap":
        return [ok("sandbox", f"bubblewrap: {explanation}")]
    message, _, remedy = explanation.partition("; ")
    remedy = f"To isolate: {remedy.split('; sandbox.')[0]}."
    make = failure if config.sandbox.require_isolation else warning
    return [make("sandbox", f"{level} only: {message}", remedy)]


def check_disk(config: Config) -> list[Finding]:
    """Whether run directories can be written, and whether a run of this model fits."""
    root = runs_root(config).absolute()
    place = next(folder for folder in (root, *root.parents) if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        return [failure("disk", f"{place} cannot be written", "Choose another folder: paths.runs=DIR.")]
    free = shutil.disk_usage(place).free / 1e9
    weights = weights_gb(config)
    saves = config.run.keep_last + 1 if config.run.save_every else 1
    best = BEST_COPIES if config.run.validate_every and config.run.keep_best else 0.0
    needed = weights * (HEADROOM + saves * STATE_COPIES + best)
    message = f"{free:.1f} GB free at {place}, about {max(needed, 0.1):.1f} GB wanted per run"
    if free < needed:
        return [failure("disk", message, "Free space (onpol runs prune --states --yes) or choose paths.runs=DIR.")]
    return [ok("disk", message)]


def weights_gb(config: Config) -> float:
    """Size of the model's weights on disk in GB (10^9); 0 for models that are not here yet."""
    folder = Path(config.model.path).expanduser()
    try:
        folder = Path(build.find_checkpoint(config.model.path, config, fetch=False).path)
    except OnpolError:
        return 0.0
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e9 if folder.is_dir() else 0.0


def check_benches(config: Config) -> list[Finding]:
    """The data of the training task and of every bench of the configuration."""
    wanted = {config.task.name: config.task.data} | {n: config.eval.data.get(n) for n in config.eval.benches}
    return [caught(f"data of {name}", lambda n=name, f=file: _bench(n, f)) for name, file in wanted.items()]  # type: ignore[misc]


def _bench(name: str, given: str | None) -> Finding:
    from onpol_cli.stages.data import local_file
    from onpol_cli.tasks.catalog import BENCHES, how_to_get
    from onpol_cli.tasks.registry import check_name

    check_name(name)
    info = BENCHES.get(name)
    if info is None or info.generated:
        return ok(f"data of {name}", "built in")
    file = Path(given).expanduser() if given else local_file(name)
    if file is not None and file.exists():
        return ok(f"data of {name}", str(file))
    if given:
        return failure(f"data of {name}", f"{given} does not exist", how_to_get(info))
    if info.hub:
        return warning(f"data of {name}", f"not here; will be downloaded from the hub ({info.hub})", how_to_get(info))
    return failure(f"data of {name}", "not here", how_to_get(info))


def check_model(config: Config) -> list[Finding]:
    """The starting policy: is it here, has it a chat template and an end token, is its context long enough."""
    return [caught("model", lambda: _model(config)), *check_context(config)]


def _model(config: Config) -> Finding:
    from onpol_cli.learner.chat import Chat
    from onpol_cli.learner.model import load_config, load_tokenizer

    policy = build.policy_config(config, fetch=False)
    path, revision = policy.path, policy.revision
    if not Path(path).is_dir() and not _in_cache(path, revision):
        remedy = "Check the network (or HF_HUB_OFFLINE), or give a local folder: model.path=DIR."
        return warning("model", f"{path} is not here; it will be downloaded from the hub", remedy)
    shape = load_config(path, revision)
    Chat(load_tokenizer(path, revision))
    limit = getattr(shape, "max_position_embeddings", None)
    if limit is not None and limit < config.model.max_context:
        message = f"model.max_context={config.model.max_context} is beyond the {limit} positions of {path}"
        return failure("model", message, f"Use model.max_context={limit}.")
    note = " (random weights)" if config.model.random_weights else ""
    return ok("model", f"{path}: {getattr(shape, 'model_type', 'unknown')}{note}")


def _in_cache(name: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)


def context_limit(config: Config) -> tuple[str, int]:
    """The setting that bounds prompt plus answer, and its tokens: the sampler's where vLLM reserves less."""
    model, sampler = config.model.max_context, config.rollout.max_context
    shorter = config.rollout.engine is not Engine.hf and sampler < model
    return ("rollout.max_context", sampler) if shorter else ("model.max_context", model)


def _room(config: Config, setting: str, answer: int) -> list[Finding]:
    """Whether a prompt fits beside an answer of `answer` tokens, which `setting` allows."""
    name, limit = context_limit(config)
    if answer < limit:
        return []
    message = f"{setting}={answer} leaves no room for a prompt"
    return [failure("context", message, f"Lower it below {name}={limit}, or raise that.")]


def check_context(config: Config) -> list[Finding]:
    """Room for a prompt beside the longest answer, in the learner's context and in what vLLM reserves."""
    answer = config.rollout.sampling.max_new_tokens
    if found := _room(config, "rollout.sampling.max_new_tokens", answer):
        return found
    name, limit = context_limit(config)
    if limit == config.model.max_context:
        return []
    message = f"{name}={limit} is below model.max_context={config.model.max_context}"
    message += f": a prompt of more than {limit - answer} tokens would end the run"
    return [warning("context", message, f"Leave {name} out, or use model.max_context={limit}.")]


def check_eval_context(config: Config) -> list[Finding]:
    """The same room in evaluations."""
    return _room(config, "eval.max_new_tokens", config.eval.max_new_tokens)


def check_tutors(config: Config) -> list[Finding]:
    """Whether the tutor is there and shares tokens with the student: ids, EOS, chat template, real vocabulary."""
    specs = dict(config.method.tutors) or ({"": config.tutor} if config.tutor else {})
    if not specs:
        if not config.method.needs_tutor:
            return []
        return [caught("tutor", lambda: ok("tutor", build.require_tutor(config)))]
    return [caught("tutor", lambda s=spec: _tutor(str(s), config)) for spec in specs.values()]  # type: ignore[misc]


def _tutor(spec: str, config: Config) -> Finding:
    from onpol_cli.learner.model import load_config, load_tokenizer
    from onpol_cli.learner.preflight import check_pair

    tutor, student = build.find_checkpoint(spec, config, fetch=False), build.policy_config(config, fetch=False)
    pair = [(model.path, model.revision) for model in (student, tutor)]
    shapes: list[Any] = [load_config(*model) for model in pair]
    check_pair(*(load_tokenizer(*model) for model in pair), *shapes)
    return ok("tutor", f"{tutor.label} ({tutor.path}) shares its tokens with the student")


def check_sampling(config: Config) -> list[Finding]:
    """Whether the method may sample like this: truncated draws have another distribution than the learner scores."""
    from onpol_cli.methods.base import Source
    from onpol_cli.methods.registry import METHODS, check_method

    try:
        check_method(config.method)
    except OnpolError as error:
        return [failure("method", str(error), "See conf/method for methods that work.")]
    if METHODS[config.method.name].source is Source.DATASET:
        return [ok("sampling", f"{config.method.name} trains on a data set")]
    sampling = config.rollout.sampling
    off = sampling.top_k if sampling.top_k <= 0 else -1  # 0 is off as well
    plain = {"top_p": 1.0, "top_k": off, "min_p": 0.0, "repetition_penalty": 1.0}
    cut = [f"rollout.sampling.{name}={value}" for name, value in plain.items() if getattr(sampling, name) != value]
    found = []
    if cut:
        message = "truncated or penalised sampling biases the importance ratio of on-policy training"
        found.append(failure("sampling", message, f"Set {' '.join(cut)}."))
    if sampling.temperature == 0:
        message = "greedy rollouts: every sample of a group is the same"
        found.append(failure("sampling", message, "Set rollout.sampling.temperature=1."))
    elif sampling.temperature != 1:
        message = f"temperature {sampling.temperature:g}: the distribution at that temperature is trained"
        found.append(warning("sampling", message, "Set rollout.sampling.temperature=1 unless that is meant."))
    return found or [ok("sampling", "temperature 1, nothing truncated")]
