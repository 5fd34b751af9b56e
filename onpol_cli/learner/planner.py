"""How much memory a run needs per GPU, from a configuration alone.

Owns arithmetic over shapes (no weights are read, nothing runs). Figures are estimates: the caching
allocator, kernels' workspaces and fragmentation are covered by one stated reserve.
"""

from __future__ import annotations

from dataclasses import dataclass

from onpol_cli.core.config import Config, Device, Dtype, Engine, MethodConfig, OpdSignal, ScorerKind
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.placement import server_places, servers_beside
from onpol_cli.learner.shapes import Shape, find_shape, local_shape

GIB = 2**30
RESERVE = 1.0
"""GiB for the CUDA context, workspaces and fragmentation."""
BYTES = {Dtype.float32: 4, Dtype.bfloat16: 2}
WITHOUT_SAMPLER = ("sft",)
"""Methods that never sample, validation aside."""
SAMPLES_FIRST = ("rsft", "dpo")
"""Methods that sample before the first step only, when the optimiser holds nothing yet."""


@dataclass(frozen=True)
class MemoryPlan:
    """Estimated GiB per GPU, by part.

    Attributes:
        model: path of the policy.
        method: what is trained.
        sizes: where the model's sizes are from.
        parameters: weights of the policy.
        trained: weights that get a gradient.
        processes: over which weights, gradients and optimiser are sharded.
        learner: parts while training: weights, gradients, optimiser, what layers are gathered or cast to, gradients
            on their way, activations, logits chunk, and the frozen models scored in the same process.
        rollout: parts while sampling: the sampler's weights and its KV cache; and throughout: local servers' shares.
        peak: the largest sum that is resident at once, reserve included.
        available: memory of this machine's GPU, or None without one.
        verdict: `fits`, `tight` (above 90%), `does not fit`, or `unknown`.
        advice: what would help, empty if it fits.
    """

    model: str
    method: str
    sizes: str
    parameters: int
    trained: int
    processes: int
    learner: dict[str, float]
    rollout: dict[str, float]
    peak: float
    available: float | None
    verdict: str
    advice: str


def activation_bytes(shape: Shape, tokens: int, width: int, checkpointing: bool) -> int:
    """Saved activations of one micro-batch.

    Per token and layer without checkpointing: residual stream and two norms (float32), q, k, v,
    attention output, and four FFN-wide tensors in `width` bytes; q and k also as their norms take them (float32)
    and give them. With checkpointing: the layer's input and one layer in full.
    """
    projections = shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    normed = shape.head_dim * (shape.heads + shape.kv_heads)
    full = 4 * 4 * shape.hidden + width * (2 * shape.hidden + projections + 4 * shape.ffn) + (4 + width) * normed
    if not checkpointing:
        return tokens * shape.layers * full
    return tokens * (shape.layers * 4 * shape.hidden + full)


def head_bytes(shape: Shape, chunk: int, tokens: int, method: MethodConfig) -> int:
    """Logits that exist at a time (two float32 chunks, five for a divergence), hidden states with gradient."""
    copies = 2 if method.signal is OpdSignal.sampled or method.name not in ("opd", "gkd", "rl_opd") else 5
    return copies * 4 * chunk * shape.vocab + 2 * 4 * tokens * shape.hidden


def frozen_models(config: Config, policy: Shape) -> tuple[list[Shape], int]:
    """Whole models beside the policy in the learner's process: teachers scored here, and how many references."""
    method = config.method
    local = method.scorer is not ScorerKind.vllm_server and method.needs_tutor
    tutors = list(method.tutors.values()) or [config.tutor or ""]
    reference = int(method.reference_kl > 0 or method.name == "dpo")
    if config.model.lora.rank > 0:
        # The policy with its adapter off is the reference, and the teacher where that is the base.
        reference = 0
        if not config.model.random_weights:
            tutors = [name for name in tutors if name != config.model.path]
    return [tutor_shape(name, policy) for name in tutors] if local else [], reference


def tutor_shape(name: str, policy: Shape) -> Shape:
    """Sizes of a tutor; the policy's where they cannot be known yet, as of a run that is still to be made."""
    try:
        found = local_shape(name) if name else None
    except OnpolError:
        found = None
    return found[0] if found else policy


def optimiser_bytes(config: Config, shape: Shape, trained: int, width: int) -> int:
    """Moments, which torch keeps in the weights' own format: two of each weight, one where muon moves matrices."""
    matrices = shape.layers * shape.layer_parameters
    if config.optim.name == "muon" and config.model.lora.rank == 0:
        return width * (2 * trained - matrices)
    return width * (trained if config.optim.name == "muon" else 2 * trained)


def layer_bytes(shape: Shape, processes: int, held: int, width: int, checkpointing: bool) -> int:
    """Weights of layers as products use them, beside those that are kept.

    FSDP2 gathers two layers, in `width` bytes. Alone, autograd keeps autocast's copies until backward has used them:
    of every layer, with checkpointing of one.
    """
    if processes > 1:
        return 2 * width * shape.layer_parameters
    copied = 1 if checkpointing else shape.layers
    return width * copied * shape.layer_parameters if width < held else 0


def passing_gradients(shape: Shape, processes: int, held: int, width: int, saved: int) -> int:
    """Gradients of all weights on their way to `grad`, at the moment of training when most is held.

    That is the beginning of backward, where `saved` bytes of activations and logits exist beside the output matrix's
    gradient, or the end, where they are gone and the embeddings' gradient has come too.

    Returns:
        What `saved` and these gradients reach together, less `saved`.
    """
    matrix = shape.vocab * shape.hidden
    if processes == 1:
        # A matrix of a layer at a time, under autocast in its format too. A tied matrix waits for its other gradient.
        inner = shape.hidden * shape.ffn * (held + (width if width < held else 0))
        late = held * matrix * (2 if shape.tied else 1)
    else:
        # A layer's gradients, and the copy of the layer before that is being summed, in the weights' own format.
        inner = (width + held) * shape.layer_parameters
        # Both ends' gradients beside their gathered weights; once these are gone, a copy to be summed takes no more.
        late = 2 * held * matrix
    return inner + max(held * matrix, late - saved)


def learner_parts(config: Config, shape: Shape, processes: int, trained: int) -> dict[str, float]:
    """GiB per GPU while training, at the moment when their sum is largest."""
    learner, lora = config.learner, config.model.lora.rank > 0
    held = BYTES[config.model.dtype]
    moved = 4 if lora else held  # adapters are float32 on bf16 weights too
    width = 2 if Dtype.bfloat16 in (learner.autocast, config.model.dtype) else 4
    teacher = BYTES[learner.autocast]
    tokens = learner.micro_tokens
    gathered = layer_bytes(shape, processes, held, width, learner.gradient_checkpointing)
    if processes > 1:  # the ends as a whole
        gathered += held * shape.end_parameters
    teachers, references = frozen_models(config, shape)
    sharded = processes > 1 and config.parallel.shard_frozen
    frozen = [*teachers, *[shape] * references]
    if sharded and frozen:  # one at a time, given back after its pass
        gathered += max(width * (2 * of.layer_parameters + of.end_parameters) for of in frozen)
    # Exact divergences hold the teacher's output matrix whole beside its shards.
    whole = teachers[:1] if sharded and config.method.signal is not OpdSignal.sampled else []
    activations = activation_bytes(shape, tokens, width, learner.gradient_checkpointing)
    logits = head_bytes(shape, learner.chunk, tokens, config.method)
    parts = {
        "weights": (held * shape.parameters + moved * (trained if lora else 0)) / processes,
        "gradients": moved * trained / processes,
        "optimiser": optimiser_bytes(config, shape, trained, moved) / processes,
        "gathered layers": gathered,
        # Those of adapters are small.
        "passing gradients": 0 if lora else passing_gradients(shape, processes, held, width, activations + logits),
        "activations": activations,
        "logits chunk": logits,
        # Teachers are held in the format of autocast.
        "frozen models": (teacher * sum(of.parameters for of in teachers) + held * references * shape.parameters)
        / (processes if sharded else 1)
        + teacher * sum(of.vocab * of.hidden for of in whole),
    }
    return {name: size / GIB for name, size in parts.items()}


def samples(config: Config) -> bool:
    """Whether the run has a sampler: its method draws completions, or it is validated on the way."""
    return config.method.name not in WITHOUT_SAMPLER or config.run.validate_every > 0


def local_servers(config: Config, gpus: int) -> int:
    """Most vLLM servers started here that share one of the learner's GPUs, for samples and for teachers.

    Args:
        gpus: of this machine.
    """
    return servers_beside(_places(config, gpus), config.parallel.nproc)


def gpus_used(config: Config, gpus: int) -> int:
    """GPUs that a run computes on, of all its machines: the learner's, its sampler's and its local servers'.

    Args:
        gpus: of this machine; those of servers that others started are not known and not counted.
    """
    own = config.parallel.nproc
    if config.rollout.engine is Engine.vllm and samples(config):  # in this process, with workers on the next ones
        own = max(own, min(config.rollout.tensor_parallel, gpus))
    beside = {place for place in _places(config, gpus) if place >= own}
    return own + (config.parallel.nnodes - 1) * config.parallel.nproc + len(beside)


def _places(config: Config, gpus: int) -> list[int]:
    """GPUs of the vLLM servers that a run starts, for samples and for teachers."""
    rollout, parallel = config.rollout, config.parallel
    sampling = rollout.engine is Engine.vllm_server and not rollout.servers
    scoring = config.method.scorer is ScorerKind.vllm_server and not rollout.teacher_servers
    return server_places(
        rollout,
        rollout.local_servers if sampling and samples(config) else 0,
        max(1, len(config.method.tutors)) if scoring and config.method.needs_tutor else 0,
        parallel.nproc, gpus, parallel.nproc * parallel.nnodes == 1,
    )  # fmt: skip


def cache_gib(config: Config, shape: Shape, parallel: int) -> float:
    """Keys and values of all sequences that are decoded at once."""
    rollout = config.rollout
    tokens = rollout.max_batch * min(config.model.max_context, 2 * rollout.sampling.max_new_tokens)
    return 2 * BYTES[rollout.dtype] * shape.layers * shape.kv_heads * shape.head_dim * tokens / parallel / GIB


def server_gib(config: Config, shape: Shape, available: float | None) -> float:
    """What a local server holds of each of its GPUs, awake or not."""
    if available is not None:
        return config.rollout.gpu_memory * available
    parallel = config.rollout.tensor_parallel
    return BYTES[config.rollout.dtype] * shape.parameters / parallel / GIB + cache_gib(config, shape, parallel)


def rollout_parts(config: Config, shape: Shape, available: float | None, held: float, servers: int) -> dict[str, float]:
    """GiB per GPU for sampling in this process, and for vLLM servers on this GPU; nothing for servers elsewhere.

    Args:
        available: GiB of the GPU, None if it is not known.
        held: what the learner holds meanwhile, GiB.
        servers: local servers that share the GPU.
    """
    rollout = config.rollout
    taken = servers * server_gib(config, shape, available)
    if rollout.engine is Engine.vllm_server or not samples(config):
        return {"weights": 0.0, "kv cache": 0.0, "local servers": taken}
    parallel = rollout.tensor_parallel if rollout.engine is Engine.vllm else 1
    weights = BYTES[rollout.dtype] * shape.parameters / parallel / GIB
    cache = cache_gib(config, shape, parallel)
    if available is not None and rollout.engine is Engine.vllm:
        # vLLM takes its share of the card whole and fills what the weights leave with cache.
        cache = max(0.0, rollout.gpu_memory * available - weights)
    elif available is not None:
        # The embedded sampler decodes fewer sequences at once where a third of what is free would not hold all.
        cache = min(cache, max(0.0, available - RESERVE - held - taken - weights) / 3)
    return {"weights": weights, "kv cache": cache, "local servers": taken}


def peak_of(config: Config, learner: dict[str, float], rollout: dict[str, float], resident: float) -> float:
    """Largest sum that is resident at once, GiB.

    Args:
        resident: what the learner holds while samples are drawn.
    """
    training, sampling = sum(learner.values()), sum(rollout.values())
    if config.rollout.max_off_policy_steps > 0 or not config.rollout.sleep:
        return training + sampling + RESERVE
    # A sleeping vLLM leaves nothing on the card, the embedded sampler its weights; servers do not sleep.
    kept = rollout["weights"] if config.rollout.engine is Engine.hf else 0.0
    return max(training + kept + rollout["local servers"], resident + sampling) + RESERVE


def gpu_gib() -> float | None:
    """Memory of the first CUDA device, GiB; None without one."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory / GIB if torch.cuda.is_available() else None


def gpu_count(config: Config) -> int:
    """GPUs of this machine; where there are none, as many as the learner's processes or a server's workers need."""
    import torch

    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return here or max(config.parallel.nproc, config.rollout.tensor_parallel)


def plan(config: Config, available: float | None = None, gpus: int | None = None) -> MemoryPlan:
    """Estimate the memory of `config` per GPU.

    Args:
        config: a composed configuration; `model.path`'s config.json is read, its weights are not.
        available: GiB of a GPU; default: this machine's, if it has one.
        gpus: of a machine; default: `gpu_count`'s.
    """
    shape, sizes = find_shape(config.model.path, config.model.revision)
    processes = config.parallel.nproc * config.parallel.nnodes
    lora = config.model.lora
    trained = shape.adapter_parameters(lora.rank, lora.targets) if lora.rank > 0 else shape.parameters
    if available is None and config.model.device is not Device.cpu:
        available = gpu_gib()
    learner = learner_parts(config, shape, processes, trained)
    # Gradients are freed with each step.
    resident = learner["weights"] + learner["frozen models"]
    if config.method.name not in SAMPLES_FIRST or config.run.validate_every > 0:
        resident += learner["optimiser"]
    servers = local_servers(config, gpu_count(config) if gpus is None else gpus)
    rollout = rollout_parts(config, shape, available, resident, servers)
    peak = peak_of(config, learner, rollout, resident)
    sampling = {name: rollout[name] for name in ("kv cache", "local servers")}
    verdict, advice = judge(peak, available, {**learner, **sampling}, lora.rank > 0)
    return MemoryPlan(
        config.model.path, config.method.variant or config.method.name, sizes, shape.parameters, trained, processes,
        learner, rollout, peak, available, verdict, advice,
    )  # fmt: skip


ADVICE = {
    "optimiser": "model.lora.rank=16 or a larger parallel.nproc",
    "weights": "model.lora.rank=16 with model.dtype=bfloat16, or a larger parallel.nproc",
    "gradients": "model.lora.rank=16 or a larger parallel.nproc",
    "gathered layers": "learner.autocast=bfloat16",
    "activations": "learner.gradient_checkpointing=true or a smaller learner.micro_tokens",
    "logits chunk": "a smaller learner.chunk",
    "passing gradients": "model.lora.rank=16",
    "frozen models": "model.lora.rank=16 (the base with its adapter off serves), or method.scorer=vllm_server with "
    "rollout.teacher_servers on other GPUs",
    "kv cache": "a smaller rollout.gpu_memory or rollout.max_batch, or rollout=vllm_server with rollout.servers on "
    "other GPUs",
    "local servers": "rollout.servers and rollout.teacher_servers on other GPUs, rollout=vllm (it sleeps while the "
    "learner trains), or a smaller rollout.gpu_memory",
}


def judge(peak: float, available: float | None, parts: dict[str, float], lora: bool) -> tuple[str, str]:
    """Whether `peak` GiB fit into `available`, and what would shrink the largest part."""
    if available is None:
        return "unknown", "No GPU here to compare with: give one's memory (--gpu-gib), which also bounds the kv cache."
    if peak <= 0.9 * available:
        return "fits", ""
    largest = max(parts, key=lambda name: parts[name])
    verdict = "tight" if peak <= available else "does not fit"
    # Weights that are trained themselves hardly move in bf16: only frozen ones may be held in it.
    advice = "model.dtype=bfloat16 or a larger parallel.nproc" if lora and largest == "weights" else ADVICE[largest]
    return verdict, f"Largest part: {largest} ({parts[largest]:.1f} GiB). Try {advice}."
