"""How much memory a run needs per GPU, from a configuration alone.

Owns arithmetic over shapes (no weights are read, nothing runs). Figures are estimates: the caching
allocator, kernels' workspaces and fragmentation are covered by one stated reserve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onpol_cli.core.config import Config, Dtype, Engine, MethodConfig, OpdSignal, ScorerKind
from onpol_cli.learner.model import load_config

GIB = 2**30
RESERVE = 1.0
"""GiB for the CUDA context, workspaces and fragmentation."""
BYTES = {Dtype.float32: 4, Dtype.bfloat16: 2}


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder that memory depends on."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer, norms included."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + 3 * self.hidden * self.ffn + 2 * self.hidden + 2 * self.head_dim

    @property
    def parameters(self) -> int:
        """All weights; a tied output matrix counts once."""
        ends = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + ends + self.hidden

    def adapter_parameters(self, rank: int, targets: list[str]) -> int:
        """LoRA weights of `rank` on `targets` of every layer."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        sides = {
            "q_proj": self.hidden + query,
            "k_proj": self.hidden + key,
            "v_proj": self.hidden + key,
            "o_proj": query + self.hidden,
            "gate_proj": self.hidden + self.ffn,
            "up_proj": self.hidden + self.ffn,
            "down_proj": self.ffn + self.hidden,
        }
        return self.layers * rank * sum(sides.get(target, 0) for target in targets)


def shape_of(hf: Any) -> Shape:
    """Sizes from a Hugging Face configuration."""
    heads = hf.num_attention_heads
    return Shape(
        hidden=hf.hidden_size,
        layers=hf.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(hf, "num_key_value_heads", None) or heads,
        head_dim=getattr(hf, "head_dim", None) or hf.hidden_size // heads,
        ffn=hf.intermediate_size,
        vocab=hf.vocab_size,
        tied=bool(getattr(hf, "tie_word_embeddings", False)),
    )


@dataclass(frozen=True)
class MemoryPlan:
    """Estimated GiB per GPU, by part.

    Attributes:
        model: path of the policy.
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


def frozen_models(config: Config) -> tuple[int, int]:
    """Whole models beside the policy in the learner's process: teachers scored here, and references."""
    method = config.method
    local = method.scorer is not ScorerKind.vllm_server and (method.teacher_coef != 0 or method.name in ("opd", "gkd"))
    tutors = list(method.tutors.values()) or [config.tutor or ""]
    reference = int(method.reference_kl > 0 or method.name == "dpo")
    if config.model.lora.rank > 0:
        # The policy with its adapter off is the reference, and the teacher where that is the base.
        tutors, reference = [name for name in tutors if name != config.model.path], 0
    return len(tutors) if local and method.name != "opsd" else 0, reference


def learner_parts(config: Config, shape: Shape, processes: int, trained: int) -> dict[str, float]:
    """GiB per GPU while training."""
    learner = config.learner
    held = BYTES[config.model.dtype]
    width = 2 if Dtype.bfloat16 in (learner.autocast, config.model.dtype) else 4
    tokens = learner.micro_tokens
    optimiser = 8 * trained
    # FSDP2 gathers one layer at a time, and the ends as a whole.
    gathered = 0 if processes == 1 else 2 * width * shape.layer_parameters + held * 2 * shape.vocab * shape.hidden
    teachers, references = frozen_models(config)
    sharded = processes > 1 and config.parallel.shard_frozen
    if sharded and teachers + references > 0:  # one at a time, given back after its pass
        gathered += 2 * width * shape.layer_parameters + width * 2 * shape.vocab * shape.hidden
    # Exact divergences hold the teacher's output matrix whole beside its shards.
    whole_matrix = sharded and teachers > 0 and config.method.signal is not OpdSignal.sampled
    parts = {
        "weights": (held * shape.parameters + 4 * (trained if config.model.lora.rank > 0 else 0)) / processes,
        "gradients": (4 if config.model.lora.rank > 0 else held) * trained / processes,
        "optimiser": optimiser / processes,
        "gathered layers": gathered,
        "activations": activation_bytes(shape, tokens, width, learner.gradient_checkpointing),
        "logits chunk": head_bytes(shape, learner.chunk, tokens, config.method),
        # Teachers are held in the compute format.
        "frozen models": (teachers * width + references * held) * shape.parameters / (processes if sharded else 1)
        + (width * shape.vocab * shape.hidden if whole_matrix else 0),
    }
    return {name: size / GIB for name, size in parts.items()}


def rollout_parts(config: Config, shape: Shape, available: float | None) -> dict[str, float]:
    """GiB per GPU for sampling in this process; nothing for servers elsewhere."""
    rollout = config.rollout
    samples = config.method.name not in ("sft", "dpo", "pretrain")
    if rollout.engine is Engine.vllm_server or not samples:
        return {"weights": 0.0, "kv cache": 0.0}
    width = BYTES[rollout.dtype]
    weights = width * shape.parameters / rollout.tensor_parallel / GIB
    tokens = rollout.max_batch * min(config.model.max_context, 2 * rollout.sampling.max_new_tokens)
    cache = 2 * width * shape.layers * shape.kv_heads * shape.head_dim * tokens / rollout.tensor_parallel / GIB
    if rollout.engine is Engine.vllm and available is not None:
        # vLLM takes its share of the card whole and fills what the weights leave with cache.
        cache = max(0.0, rollout.gpu_memory * available - weights)
    return {"weights": weights, "kv cache": cache}


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
    shape = shape_of(load_config(config.model.path, config.model.revision))
    processes = config.parallel.nproc * config.parallel.nnodes
    lora = config.model.lora
    trained = shape.adapter_parameters(lora.rank, lora.targets) if lora.rank > 0 else shape.parameters
    available = gpu_gib() if available is None else available
    learner = learner_parts(config, shape, processes, trained)
    rollout = rollout_parts(config, shape, available)
    resident = learner["weights"] + learner["gradients"] + learner["optimiser"] + learner["frozen models"]
    sampling, training = sum(rollout.values()), sum(learner.values())
    apart = config.rollout.engine is Engine.vllm and config.rollout.sleep
    peak = max(training, resident + sampling) if apart else training + sampling
    peak += RESERVE
    verdict, advice = judge(peak, available, learner, rollout)
    return MemoryPlan(
        config.model.path, shape.parameters, trained, processes, learner, rollout, peak, available, verdict, advice
    )


ADVICE = {
    "optimiser": "model.lora.rank=16 or a larger parallel.nproc",
    "weights": "model.dtype=bfloat16 or a larger parallel.nproc",
    "gradients": "model.lora.rank=16 or a larger parallel.nproc",
    "gathered layers": "learner.autocast=bfloat16",
    "activations": "learner.gradient_checkpointing=true or a smaller learner.micro_tokens",
    "logits chunk": "a smaller learner.chunk",
    "frozen models": "model.lora.rank=16 (the base with its adapter off serves) or method.scorer=vllm_server",
    "kv cache": "a smaller rollout.gpu_memory or rollout.max_batch, or rollout.engine=vllm_server",
}


def judge(
    peak: float, available: float | None, learner: dict[str, float], rollout: dict[str, float]
) -> tuple[str, str]:
    """Whether `peak` GiB fit into `available`, and what would shrink the largest part."""
    if available is None:
        return "unknown", "No CUDA device here to compare with."
    if peak <= 0.9 * available:
        return "fits", ""
    parts = {**learner, "kv cache": rollout["kv cache"]}
    largest = max(parts, key=lambda name: parts[name])
    verdict = "tight" if peak <= available else "does not fit"
    return verdict, f"Largest part: {largest} ({parts[largest]:.1f} GiB). Try {ADVICE[largest]}."
