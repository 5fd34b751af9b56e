"""How much memory a run needs per GPU, from a configuration alone.

Owns arithmetic over shapes (no weights are read, nothing runs). Figures are estimates: the caching
allocator, kernels' workspaces and fragmentation are covered by one stated reserve.
"""

from __future__ import annotations

from dataclasses import dataclass

from onpol_cli.core.config import Config, Device, Dtype, Engine, MethodConfig, OpdSignal, ScorerKind
from onpol_cli.core.errors import OnpolError
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
        learner: parts while training: weights, gradients, optimiser, activations, logits chunk, and the
            frozen models scored in the same process.
        rollout: parts while sampling: the sampler's weights and its KV cache.
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
    attention output, and four FFN-wide tensors in `width` bytes. With checkpointing: the layer's input
    and one layer in full.
    """
    projections = shape.head_dim * (2 * shape.heads + 2 * shape.kv_heads)
    full = 4 * 4 * shape.hidden + width * (2 * shape.hidden + projections + 4 * shape.ffn)
    if not checkpointing:
        return tokens * shape.layers * full
    return tokens * (shape.layers * 4 * shape.hidden + full)


def head_bytes(shape: Shape, chunk: int, tokens: int, method: MethodConfig) -> int:
    """Logits that exist at a time (two float32 chunks, five for a divergence), hidden states with gradient."""
    copies = 2 if method.signal is OpdSignal.sampled or method.name not in ("opd", "gkd", "opsd") else 5
    return copies * 4 * chunk * shape.vocab + 2 * 4 * tokens * shape.hidden


def frozen_models(config: Config, policy: Shape) -> tuple[list[Shape], int]:
    """Whole models beside the policy in the learner's process: teachers scored here, and how many references."""
    method = config.method
    local = method.scorer is not ScorerKind.vllm_server and (method.teacher_coef != 0 or method.name in ("opd", "gkd"))
    tutors = list(method.tutors.values()) or [config.tutor or ""]
    reference = int(method.reference_kl > 0 or method.name == "dpo")
    if config.model.lora.rank > 0:
        # The policy with its adapter off is the reference, and the teacher where that is the base.
        reference = 0
        if not config.model.random_weights:
            tutors = [name for name in tutors if name != config.model.path]
    return [tutor_shape(name, policy) for name in tutors] if local and method.name != "opsd" else [], reference


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


def learner_parts(config: Config, shape: Shape, processes: int, trained: int) -> dict[str, float]:
    """GiB per GPU while training."""
    learner, lora = config.learner, config.model.lora.rank > 0
    held = BYTES[config.model.dtype]
    moved = 4 if lora else held  # adapters are float32 on bf16 weights too
    width = 2 if Dtype.bfloat16 in (learner.autocast, config.model.dtype) else 4
    teacher = BYTES[learner.autocast]
    tokens = learner.micro_tokens
    # FSDP2 gathers one layer at a time, and the ends as a whole.
    gathered = 0 if processes == 1 else 2 * width * shape.layer_parameters + held * 2 * shape.vocab * shape.hidden
    teachers, references = frozen_models(config, shape)
    sharded = processes > 1 and config.parallel.shard_frozen
    frozen = [*teachers, *[shape] * references]
    if sharded and frozen:  # one at a time, given back after its pass
        gathered += max(2 * width * of.layer_parameters + width * 2 * of.vocab * of.hidden for of in frozen)
    # Exact divergences hold the teacher's output matrix whole beside its shards.
    whole = teachers[:1] if sharded and config.method.signal is not OpdSignal.sampled else []
    parts = {
        "weights": (held * shape.parameters + moved * (trained if lora else 0)) / processes,
        "gradients": moved * trained / processes,
        "optimiser": optimiser_bytes(config, shape, trained, moved) / processes,
        "gathered layers": gathered,
        "activations": activation_bytes(shape, tokens, width, learner.gradient_checkpointing),
        "logits chunk": head_bytes(shape, learner.chunk, tokens, config.method),
        # Teachers are held in the format of autocast.
        "frozen models": (teacher * sum(of.parameters for of in teachers) + held * references * shape.parameters)
        / (processes if sharded else 1)
        + teacher * sum(of.vocab * of.hidden for of in whole),
    }
    return {name: size / GIB for name, size in parts.items()}


def samples(config: Config) -> bool:
    """Whether the run has a sampler: its method draws completions, or it is validated on the way."""
    return config.method.name not in WITHOUT_SAMPLER or config.run.validate_every > 0


def rollout_parts(config: Config, shape: Shape, available: float | None, held: float) -> dict[str, float]:
    """GiB per GPU for sampling in this process; nothing for servers elsewhere.

    Args:
        available: GiB of the GPU, None if it is not known.
        held: what the learner holds meanwhile, GiB.
    """
    rollout = config.rollout
    if rollout.engine is Engine.vllm_server or not samples(config):
        return {"weights": 0.0, "kv cache": 0.0}
    width = BYTES[rollout.dtype]
    parallel = rollout.tensor_parallel if rollout.engine is Engine.vllm else 1
    weights = width * shape.parameters / parallel / GIB
    tokens = rollout.max_batch * min(config.model.max_context, 2 * rollout.sampling.max_new_tokens)
    cache = 2 * width * shape.layers * shape.kv_heads * shape.head_dim * tokens / parallel / GIB
    if available is not None and rollout.engine is Engine.vllm:
        # vLLM takes its share of the card whole and fills what the weights leave with cache.
        cache = max(0.0, rollout.gpu_memory * available - weights)
    elif available is not None:
        # The embedded sampler decodes fewer sequences at once where a third of what is free would not hold all.
        cache = min(cache, max(0.0, available - RESERVE - held - weights) / 3)
    return {"weights": weights, "kv cache": cache}


def peak_of(config: Config, learner: dict[str, float], rollout: dict[str, float], resident: float) -> float:
    """Largest sum that is resident at once, GiB.

    Args:
        resident: what the learner holds while samples are drawn.
    """
    training, sampling = sum(learner.values()), sum(rollout.values())
    if config.rollout.max_off_policy_steps > 0 or not config.rollout.sleep:
        return training + sampling + RESERVE
    # A sleeping vLLM leaves nothing on the card, the embedded sampler its weights.
    kept = rollout["weights"] if config.rollout.engine is Engine.hf else 0.0
    return max(training + kept, resident + sampling) + RESERVE


def gpu_gib() -> float | None:
    """Memory of the first CUDA device, GiB; None without one."""
    import torch

    return torch.cuda.get_device_properties(0).total_memory / GIB if torch.cuda.is_available() else None


def plan(config: Config, available: float | None = None) -> MemoryPlan:
    """Estimate the memory of `config` per GPU.

    Args:
        config: a composed configuration; `model.path`'s config.json is read, its weights are not.
        available: GiB of a GPU; default: this machine's, if it has one.
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
    rollout = rollout_parts(config, shape, available, resident)
    peak = peak_of(config, learner, rollout, resident)
    verdict, advice = judge(peak, available, {**learner, "kv cache": rollout["kv cache"]}, lora.rank > 0)
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
    "frozen models": "model.lora.rank=16 (the base with its adapter off serves) or method.scorer=vllm_server",
    "kv cache": "a smaller rollout.gpu_memory or rollout.max_batch, or rollout.engine=vllm_server",
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
