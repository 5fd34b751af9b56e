"""Sizes of decoders that memory and operations depend on, from a config.json or from what is known of Qwen3.

Owns the sizes and where they come from; reads no weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onpol_cli.core.errors import OnpolError
from onpol_cli.learner.model import load_config, resolve_model_path


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
    def end_parameters(self) -> int:
        """Embeddings and output matrix; a tied one counts once."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.layers * self.layer_parameters + self.end_parameters + self.hidden

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


QWEN3 = {
    "0.6B": Shape(1024, 28, 16, 8, 128, 3072, 151936, tied=True),
    "1.7B": Shape(2048, 28, 16, 8, 128, 6144, 151936, tied=True),
    "4B": Shape(2560, 36, 32, 8, 128, 9728, 151936, tied=True),
    "8B": Shape(4096, 36, 32, 8, 128, 12288, 151936, tied=False),
    "14B": Shape(5120, 40, 40, 8, 128, 17408, 151936, tied=False),
}
"""Sizes in the published config.json of the dense Qwen3 models."""
QWEN3_NAME = re.compile(r"Qwen/Qwen3-([0-9.]+B)(-Base|-Instruct-2507|-Thinking-2507)?")


def shape_of(hf: Any) -> Shape:
    """Sizes from a Hugging Face configuration.

    Raises:
        OnpolError: it lacks one of them, as other architectures' do.
    """
    try:
        heads = int(hf.num_attention_heads)
        return Shape(
            hidden=int(hf.hidden_size),
            layers=int(hf.num_hidden_layers),
            heads=heads,
            kv_heads=getattr(hf, "num_key_value_heads", None) or heads,
            head_dim=getattr(hf, "head_dim", None) or hf.hidden_size // heads,
            ffn=int(hf.intermediate_size),
            vocab=int(hf.vocab_size),
            tied=bool(getattr(hf, "tie_word_embeddings", False)),
        )
    except (AttributeError, TypeError) as error:
        kind = getattr(hf, "model_type", "this model")
        raise OnpolError(
            f"The sizes of {kind} are not those of a Llama-like decoder ({error}). Give a model whose config.json "
            "has hidden_size, intermediate_size, num_hidden_layers, num_attention_heads and vocab_size."
        ) from error


def hf_config(shape: Shape) -> Any:
    """Qwen3's Hugging Face configuration with the sizes of `shape`."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.ffn, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied, max_position_embeddings=40960, architectures=["Qwen3ForCausalLM"],
    )  # fmt: skip


def local_shape(path: str, revision: str | None = None) -> tuple[Shape, str] | None:
    """Sizes of a model without any network, and where they are from; None if only the hub could tell."""
    source = resolve_model_path(path)
    folder = source if Path(source).is_dir() else _cached_folder(source, revision)
    if folder is not None:
        return shape_of(load_config(folder)), "config.json"
    name = QWEN3_NAME.fullmatch(source)
    if name is None or name[1] not in QWEN3:
        return None
    return QWEN3[name[1]], f"published sizes of Qwen3-{name[1]} ({source} is not here)"


def find_shape(path: str, revision: str | None = None) -> tuple[Shape, str]:
    """Sizes of a model and where they are from; the hub is asked only where nothing else can tell."""
    return local_shape(path, revision) or (shape_of(load_config(path, revision)), "config.json")


def _cached_folder(name: str, revision: str | None) -> str | None:
    """The cache's folder with the config.json of a hub model, None if it was never downloaded."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:  # no hub name, `latest:sft` say
        return None
    return str(Path(found).parent) if isinstance(found, str) else None
