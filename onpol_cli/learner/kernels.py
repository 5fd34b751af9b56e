"""Other people's kernels for transformers' decoder layers: torch.compile, Liger, and which attention torch may take."""

from __future__ import annotations

import os

import torch
from transformers import PreTrainedModel

from onpol_cli.core.errors import OnpolError


def steady_attention(device: torch.device) -> None:
    """On CUDA, no cuDNN kernels for torch's attention from now on in this process; nothing to do elsewhere.

    torch prefers them on Hopper and Blackwell. They build a plan for each new shape of queries and keys, in tens of
    milliseconds of the CPU's time, and here shapes change with every micro-batch, and while sampling with every token.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def compile_layers(model: PreTrainedModel) -> None:
    """torch.compile of every decoder layer in place; names of modules and weights stay.

    Layers are equal, so one graph serves all of them; lengths change from batch to batch and are symbols in it.
    """
    layers = getattr(model.base_model, "layers", None)
    if layers is None:
        raise OnpolError(f"{type(model).__name__} has no list of layers to compile; leave learner.compile at false.")
    for layer in layers:
        layer.compile(dynamic=True)


def liger_obstacle(device_type: str) -> str:
    """Why Liger's kernels cannot run on such a device; empty if they can (a CPU can in Triton's interpreter only)."""
    try:
        import liger_kernel  # noqa: F401
    except ImportError:
        return "Liger is not installed: pip install 'onpol[liger]'"
    if device_type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "Liger's kernels need a GPU, and this is a CPU"
    return ""


def use_liger(model: PreTrainedModel, device: torch.device) -> None:
    """Liger's RMSNorm, SwiGLU and rotary kernels in place of transformers' own; losses stay ours.

    Liger also replaces classes and a function of transformers' module: models of this architecture that the process
    builds later have its kernels too, whatever their settings.

    Raises:
        OnpolError: Liger is missing, `device` cannot run it, or it does not know the architecture.
    """
    if obstacle := liger_obstacle(device.type):
        raise OnpolError(f"learner.liger=true: {obstacle}. Leave learner.liger at false to do without.")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
    from transformers.integrations.liger import apply_liger_kernel

    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise OnpolError(f"Liger has no kernels for models of type {kind}; leave learner.liger at false.")
    wanted = {"rope": True, "rms_norm": True, "swiglu": True}
    apply_liger_kernel(model, wanted | {"cross_entropy": False, "fused_linear_cross_entropy": False})
