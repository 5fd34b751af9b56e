"""Weights under Hugging Face names: for samplers, checkpoints and resuming.

Owns the merge of adapters and the folder layout that `transformers` and vLLM read as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from onpol_cli.core.errors import OnpolError
from onpol_cli.learner.parallel import whole

HEAD = "lm_head.weight"
ADAPTER = "default"
"""peft's name of the adapter that `model.add_adapters` injects."""


def has_adapters(model: PreTrainedModel) -> bool:
    """Whether LoRA adapters are injected."""
    return any(name.endswith(".base_layer.weight") for name, _ in model.named_parameters())


@contextmanager
def adapters_off(model: PreTrainedModel) -> Iterator[None]:
    """The base model while the context lasts; nothing to do without adapters."""
    if not has_adapters(model):
        yield
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    for parameter in trained:  # peft freezes them meanwhile; FSDP takes what it finds at its first forward for good
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """No dropout while the context lasts: scores are of the policy, not of a draw of it."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


def merged_weights(model: PreTrainedModel, merge: bool = True) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every weight as if adapters had been merged; `lm_head.weight` also when tied.

    Args:
        model: the policy; if it is sharded, every rank must iterate.
        merge: false leaves adapters out, which gives the base that `adapter_of` belongs to.
    """
    deltas = _lora_layers(model) if has_adapters(model) else {}
    seen_head = False
    for name, parameter in model.named_parameters():
        owner, _, kind = name.rpartition(".base_layer.")
        if owner:
            value = whole(parameter)
            if kind == "weight" and merge:
                wide = torch.promote_types(value.dtype, torch.float32)
                value = (value.to(wide) + _delta(deltas[owner]).to(wide)).to(value.dtype)
            yield f"{owner}.{kind}", value
        elif ".lora_" not in name:
            seen_head = seen_head or name == HEAD
            yield name, whole(parameter)
    kept = _persistent_buffers(model)
    for name, buffer in model.named_buffers():
        if name in kept:
            yield name, whole(buffer)
    if not seen_head:
        yield HEAD, whole(model.get_output_embeddings().weight)  # type: ignore[union-attr, arg-type]


def _lora_layers(model: PreTrainedModel) -> dict[str, Any]:
    """Adapted layers by name. peft is imported only where there are some."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _persistent_buffers(model: PreTrainedModel) -> set[str]:
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name for name in model.state_dict() if name not in parameters}


def _delta(layer: Any) -> Tensor:
    """`scaling * B A` of a linear LoRA layer, in float32."""
    up, down = layer.lora_B[ADAPTER].weight, layer.lora_A[ADAPTER].weight
    return whole(up).float() @ whole(down).float() * float(layer.scaling[ADAPTER])


@dataclass(frozen=True)
class Adapter:
    """LoRA matrices apart from the weights that they change.

    Attributes:
        rank: inner dimension r.
        alpha: the change of a weight is alpha / r * B A.
        targets: last names of the layers that have one.
        weights: `base_model.model.<layer>.lora_A.weight` [r, in] and `...lora_B.weight` [out, r], peft's names.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    weights: dict[str, Tensor]


def adapter_of(model: PreTrainedModel) -> Adapter:
    """The adapters of the policy; if it is sharded, every rank must call.

    Raises:
        OnpolError: the model has none.
    """
    layers = _lora_layers(model) if has_adapters(model) else {}
    if not layers:
        raise OnpolError("There is no LoRA adapter to send: set model.lora.rank, or rollout.lora_sync=merged.")
    weights = {
        f"base_model.model.{name}.{side}.weight": whole(getattr(layer, side)[ADAPTER].weight).detach()
        for name, layer in layers.items()
        for side in ("lora_A", "lora_B")
    }
    one = next(iter(layers.values()))
    targets = tuple(sorted({name.rpartition(".")[2] for name in layers}))
    return Adapter(one.r[ADAPTER], float(one.lora_alpha[ADAPTER]), targets, weights)


def to_saved(
    weights: Iterator[tuple[str, Tensor]], model: PreTrainedModel, dtype: torch.dtype, keep: bool = True
) -> dict[str, Tensor]:
    """Weights as a checkpoint holds them: in `dtype`, on the CPU, a tied output matrix left out.

    With `keep` false they are only passed through, for ranks that take part but do not write.
    """
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    state = {}
    for name, value in weights:
        if keep and not (tied and name == HEAD):
            # Copied always: what FSDP has gathered are views of one buffer, which safetensors takes for shared weights.
            kept = dtype if value.is_floating_point() else value.dtype
            state[name] = value.to("cpu", kept, copy=True, memory_format=torch.contiguous_format)
    return state


def write_folder(
    path: Path,
    state: dict[str, Tensor],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    dtype: torch.dtype,
) -> None:
    """A plain Hugging Face folder: safetensors, config, generation config, tokenizer.

    Args:
        path: created if needed. Atomicity is the caller's: write beside, then rename.
        state: from `to_saved`.
        model: for its configuration.
        tokenizer: saved as well if given.
        dtype: format of the floating-point weights.
    """
    from huggingface_hub import save_torch_state_dict

    path.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(state, path, max_shard_size="4GB", safe_serialization=True)
    config = type(model.config).from_dict(model.config.to_dict())
    config.architectures = [type(model).__name__]
    config.dtype = dtype
    config.save_pretrained(path)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(path)
    if tokenizer is not None:
        tokenizer.save_pretrained(path)
