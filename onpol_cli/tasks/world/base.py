"""Tokenizer and architecture of the tiny base model.

A byte-level BPE of a few hundred pieces, trained on the world's own text, with ChatML-like turns, and
a small Qwen3 configuration. Training is not here. `transformers` and `tokenizers` are imported when
needed, so that tasks load without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from onpol_cli.core.config import BaseConfig
from onpol_cli.tasks.world.pretraining import pretraining_examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3Config

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PIECES = r"\n *| ?\d| ?[A-Za-z_]+| ?[^\sA-Za-z_\d]+|\s+"
"""A newline with its indent is one piece; digits stand alone."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS_EXAMPLES = 6000
MAX_POSITIONS = 1024


def _corpus(seed: int, config: BaseConfig) -> Iterator[str]:
    for messages, answer in islice(pretraining_examples(seed, config), CORPUS_EXAMPLES):
        yield f"user\n{messages[0]['content']}"
        yield f"assistant\n{answer}"


def build_tokenizer(seed: int, config: BaseConfig) -> PreTrainedTokenizerFast:
    """A tokenizer of exactly `config.vocab` entries; any text survives encoding and decoding.

    Entries 0-2 are the special tokens, the next 256 the bytes, the rest merges learnt from the
    world's text.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed, config), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_tokenizer(seed: int, config: BaseConfig, folder: Path) -> PreTrainedTokenizerFast:
    """Build the tokenizer and write its files (template included) into `folder`."""
    tokenizer = build_tokenizer(seed, config)
    tokenizer.save_pretrained(folder)
    return tokenizer


def base_model_config(config: BaseConfig, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """The Qwen3 architecture of `config` with tied embeddings, for `tokenizer`."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden,
        intermediate_size=config.ffn,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
