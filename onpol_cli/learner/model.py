"""Models and tokenizers from a path, a run, the package or the hub.

Owns path resolution, devices, number formats, LoRA injection and the real vocabulary. `resolve_model_path`
needs no torch; everything heavy is imported inside functions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onpol_cli.core.config import Device, LoraConfig, ModelConfig
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.seeding import derive_seed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from onpol_cli.learner.parallel import World

TINY = "tiny"
PACKAGED_TINY = Path(__file__).parent.parent / "assets" / "tiny_base"


def resolve_model_path(path: str | Path) -> str:
    """Folder or hub name that transformers can open.

    `tiny` is the packaged folder; a run directory stands for its `checkpoint/`; a folder with
    `config.json` for itself; anything that is no local path is taken as a hub name.
    """
    if str(path) == TINY:
        return str(PACKAGED_TINY)
    folder = Path(path).expanduser()
    for candidate in (folder, folder / "checkpoint"):
        if (candidate / "config.json").is_file():
            return str(candidate)
    text = str(path)
    if folder.exists() or text.startswith(("/", ".", "~")) or text.count("/") > 1:
        raise OnpolError(
            f"No model at {text!r}: neither it nor its checkpoint/ holds a config.json. "
            "Give 'tiny', a Hugging Face model folder, a run directory with a finished checkpoint, or a hub name."
        )
    return text


SMALL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
"""Configuration, tokenizer and chat template of a hub model."""
NOT_WANTED = ("*/*.safetensors", "*/*.bin", "consolidated*")
"""Weights in formats of others that some hub models hold besides."""


@cache
def hub_folder(name: str, revision: str | None, weights: bool = True) -> str:
    """Local folder of a hub model at `revision` (None: its main branch), the same one throughout a process.

    What the hub's cache lacks is downloaded; the hub's own locks let one process do so for all that ask at once.
    Without a network the cache alone is read.

    Args:
        weights: false brings configuration and tokenizer only.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    def fetch(*kinds: str) -> str:
        wanted, unwanted = [*SMALL_FILES, *kinds], list(NOT_WANTED)
        return str(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted))

    try:
        folder = fetch(*(["*.safetensors"] if weights else []))
        if weights and not any(Path(folder).glob("*.safetensors")):
            folder = fetch("*.bin")
    except (OSError, ValueError, HfHubHTTPError) as error:
        where = f"{name} at revision {revision}" if revision else name
        raise OnpolError(_load_message("model", where, error)) from error
    if not (Path(folder) / "config.json").is_file():
        raise OnpolError(f"The hub's cache holds no config.json of {name} in {folder}. Download it with a network.")
    return folder


def pick_device(config: ModelConfig) -> torch.device:
    """The learner's device; on CUDA that of this process's local rank, or the only one that it sees (Slurm's way)."""
    import os

    import torch

    if config.device is Device.cpu or (config.device is Device.auto and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise OnpolError("model.device=cuda, but torch sees no CUDA device. Use model.device=cpu or auto.")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def load_config(path: str | Path, revision: str | None = None) -> Any:
    """The Hugging Face configuration at `path`; no weights are read."""
    from transformers import AutoConfig

    source = resolve_model_path(path)
    try:
        return AutoConfig.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        raise OnpolError(_load_message("configuration", path, error)) from error


def quiet() -> None:
    """No progress bars of transformers: a run has its own display."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def load_tokenizer(path: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer at `path` (resolved like a model)."""
    from transformers import AutoTokenizer

    source = resolve_model_path(path)
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision)
    except (OSError, ValueError) as error:
        raise OnpolError(_load_message("tokenizer", path, error)) from error


def load_model(config: ModelConfig, seed: int = 0, world: World | None = None) -> PreTrainedModel:
    """The policy in `config.dtype` on the CPU or GPU chosen by `config.device`, adapters injected.

    Args:
        config: path, format, device, attention, LoRA.
        seed: of random weights and of adapter initialisation.
        world: processes that will shard it. With more than one, rank 0 has the weights on its CPU, others have none.
    """
    import torch

    from onpol_cli.learner.parallel import World

    quiet()
    world = world or World()
    dtype = getattr(torch, config.dtype.value)
    device = pick_device(config) if world.size == 1 else torch.device("cpu")
    extra = {} if config.attention == "auto" else {"attn_implementation": config.attention}

    def load() -> PreTrainedModel:
        if config.random_weights:
            return random_model(load_config(config.path, config.revision), seed, dtype, device, **extra)
        model = stored_model(config.path, config.revision, dtype, **extra)
        model.to(device)  # type: ignore[arg-type]  # in place
        return model

    model = _by_the_first(world, load, config.path, config.revision, dtype, **extra)
    if config.lora.rank > 0:
        add_adapters(model, config.lora, seed)
    return model


def stored_model(path: str | Path, revision: str | None, dtype: torch.dtype, **extra: Any) -> PreTrainedModel:
    """The weights at `path` (resolved) in `dtype`, on the CPU."""
    from transformers import AutoModelForCausalLM

    source = resolve_model_path(path)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=dtype, **extra)
    except (OSError, ValueError) as error:
        raise OnpolError(_load_message("model", path, error)) from error
    if getattr(model.config, "tie_word_embeddings", False):
        # transformers leaves a stored output matrix that differs from the embeddings alone, whatever its config says;
        # the config decides whether checkpoints hold it.
        model.config.tie_word_embeddings = _ends_are_one(model)
    return model


def _ends_are_one(model: PreTrainedModel) -> bool:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and head.weight is embedding.weight


def _by_the_first(
    world: World, load: Callable[[], PreTrainedModel], path: str | Path, revision: str | None, dtype: torch.dtype,
    **extra: Any,
) -> PreTrainedModel:  # fmt: skip
    """What `load` gives on rank 0, and its architecture without values on the others. A collective call."""
    model = load() if world.rank == 0 else None
    tied = world.gather(model is not None and _ends_are_one(model))[0]
    if model is None:
        hf_config = load_config(path, revision)
        hf_config.tie_word_embeddings = tied
        model = empty_model(hf_config, dtype, **extra)
    return model


def empty_model(hf_config: Any, dtype: torch.dtype, **extra: Any) -> PreTrainedModel:
    """The architecture of `hf_config` without values, for processes that get them from another (`parallel.shard`)."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(hf_config, dtype=dtype, **extra)
    return model


def frozen_model(path: str | Path, dtype: torch.dtype, device: torch.device, world: World) -> PreTrainedModel:
    """Weights that will only score: on `device`, or as `load_model` gives them to processes that shard them."""
    quiet()
    model = _by_the_first(world, lambda: stored_model(path, None, dtype), path, None, dtype)
    return model.to(device) if world.size == 1 else model  # type: ignore[arg-type]


def random_model(hf_config: Any, seed: int, dtype: torch.dtype, device: torch.device, **extra: Any) -> PreTrainedModel:
    """The architecture of `hf_config` with random weights, the same for the same seed and device."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=_gpus(device)), torch.device(device):
        torch.manual_seed(derive_seed(seed, "random-weights") % 2**31)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(hf_config, dtype=dtype, **extra)
        return model


def _gpus(device: torch.device) -> list[torch.device]:
    """Devices besides the CPU whose random state a draw on `device` changes."""
    return [device] if device.type == "cuda" else []


def add_adapters(model: PreTrainedModel, config: LoraConfig, seed: int) -> None:
    """Inject LoRA adapters in place and freeze everything else. The model keeps its class.

    Adapters of a bf16 model are float32: an update of 1e-4 of a weight would be lost in bf16, whose steps are 0.4%.
    """
    import torch
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    alpha = config.alpha or 2.0 * config.rank
    wanted = PeftConfig(
        r=config.rank, lora_alpha=alpha, lora_dropout=config.dropout, target_modules=list(config.targets)  # type: ignore[arg-type]
    )
    with torch.random.fork_rng(devices=_gpus(model.device)):
        torch.manual_seed(derive_seed(seed, "lora") % 2**31)
        try:
            inject_adapter_in_model(wanted, model)
        except ValueError as error:
            raise OnpolError(f"model.lora.targets={config.targets} do not fit this model: {error}") from error
    if model.dtype == torch.bfloat16:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if any(isinstance(end, BaseTunerLayer) for end in ends):
        raise OnpolError(
            f"model.lora.targets={config.targets} include the embedding or the output matrix, which the chunked "
            "losses use without adapters. Name projections of the layers only."
        )


def real_vocab(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int:
    """Number of real tokens: rows of the output matrix beyond are padding and never enter a softmax."""
    head = model.get_output_embeddings()
    rows = int(head.weight.shape[0])  # type: ignore[union-attr]
    size = len(tokenizer)
    if size > rows:
        raise OnpolError(f"The tokenizer has {size} tokens but the model only {rows} output rows: they do not fit.")
    return size


def _load_message(what: str, path: str | Path, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"Cannot load the {what} at {str(path)!r}: {first} Give 'tiny', a local folder, a run, or a hub name."
