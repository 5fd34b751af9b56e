"""Small random models and a word tokenizer for the sampler's tests."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

CONFIGS = {
    "qwen3": Qwen3Config,
    "qwen2": Qwen2Config,
    "llama": LlamaConfig,
    "qwen3_moe": Qwen3MoeConfig,
    "mistral": MistralConfig,
    "gemma2": Gemma2Config,
    "phi": PhiConfig,
}
WORDS = 60
ROWS = 64


@pytest.fixture(scope="session")
def tokenizer():
    words = {"<eos>": 0, **{f"w{i}": i for i in range(1, WORDS)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="w1"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")


@pytest.fixture(scope="session")
def make_model():
    def make(kind="qwen3", kv_heads=1, tied=True, sharpen=8.0, seed=0, **more):
        """Random weights; `sharpen` scales the matrices, so that the distribution is peaked and draws are clear."""
        torch.manual_seed(seed)
        if kind == "qwen3_moe":
            more |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        config = CONFIGS[kind](
            vocab_size=ROWS, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=kv_heads, head_dim=32, tie_word_embeddings=tied, max_position_embeddings=256,
            pad_token_id=0, **more,
        )
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(sharpen) if weight.ndim >= 2 else weight.add_(0.1 * torch.randn_like(weight))
        return model

    return make
