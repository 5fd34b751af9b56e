"""Weights on their way to samplers in other processes: folders that vLLM loads as they are.

Owns where such a folder lives, its layout, and its removal. Checkpoints of a run are not its business.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from onpol_cli.learner.weights import Adapter
from onpol_cli.rollout.vllm_params import real_rows

MEMORY = Path("/dev/shm")


def base_folder(configured: str) -> Path:
    """Where exchange folders are made: as configured, else memory-backed storage, else the temporary folder."""
    if configured:
        return Path(configured).expanduser()
    return MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else Path(tempfile.gettempdir())


def make_folder(configured: str) -> Path:
    """A new empty exchange folder; the caller removes it with `remove_folder`."""
    base = base_folder(configured)
    base.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix="onpol-weights-", dir=base))


def remove_folder(folder: Path) -> None:
    """Delete an exchange folder; no error if it is gone."""
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def exchange_folder(configured: str) -> Iterator[Path]:
    """A folder that is removed when the context ends."""
    folder = make_folder(configured)
    try:
        yield folder
    finally:
        remove_folder(folder)


def write_weights(folder: Path, weights: Iterable[tuple[str, Tensor]]) -> None:
    """All weights into `model.safetensors`, tied ones twice: vLLM's CPU build needs `lm_head.weight` by name."""
    from safetensors.torch import save_file

    # clone: safetensors refuses tensors that share memory, and views of a larger storage
    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in weights}
    save_file(own, folder / "model.safetensors", metadata={"format": "pt"})


def write_adapter(folder: Path, adapter: Adapter) -> None:
    """A LoRA adapter in peft's layout: `adapter_model.safetensors` and `adapter_config.json`."""
    from safetensors.torch import save_file

    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in adapter.weights.items()}
    save_file(own, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    facts: dict[str, Any] = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none"}
    facts |= {"target_modules": list(adapter.targets), "r": adapter.rank, "lora_alpha": adapter.alpha}
    (folder / "adapter_config.json").write_text(json.dumps(facts), encoding="utf-8")


def write_model(
    folder: Path, weights: Iterable[tuple[str, Tensor]], config: Any, vocabulary: int, tokenizer: Any
) -> None:
    """A model folder whose vocabulary has `vocabulary` rows, without a `generation_config.json`.

    Args:
        config: transformers configuration of the policy; not changed.
        vocabulary: real vocabulary size; padded rows are cut.
        tokenizer: saved as well if given.
    """
    write_weights(folder, real_rows(weights, vocabulary))
    small = type(config).from_dict(config.to_dict() | {"vocab_size": vocabulary})
    small.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


@contextmanager
def model_folder(
    configured: str, weights: Iterable[tuple[str, Tensor]], config: Any, vocabulary: int, tokenizer: Any
) -> Iterator[Path]:
    """`write_model` into a folder that is removed when the context ends."""
    with exchange_folder(configured) as folder:
        write_model(folder, weights, config, vocabulary, tokenizer)
        yield folder
