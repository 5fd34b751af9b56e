"""A model of the smallest size with a byte tokenizer: everything that stages read from disk, in a second."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def byte_tokenizer(template: str = TEMPLATE, extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """One token per byte, two special ones, and a chat template."""
    vocabulary = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=["<|start|>", *extra],
    )
    tokenizer.chat_template = template
    return tokenizer


def save_model(folder: Path, seed: int, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A random one-layer Qwen3 with its tokenizer."""
    torch.manual_seed(seed)
    shape = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=4096, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    Qwen3ForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student's starting weights."""
    return save_model(tmp_path_factory.mktemp("policy"), 0, byte_tokenizer())


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights, the same tokens."""
    return save_model(tmp_path_factory.mktemp("teacher"), 1, byte_tokenizer())


@pytest.fixture(scope="session")
def foreign_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that speaks of other tokens."""
    return save_model(tmp_path_factory.mktemp("foreign"), 2, byte_tokenizer(TEMPLATE + " ", ("<|think|>",)))
