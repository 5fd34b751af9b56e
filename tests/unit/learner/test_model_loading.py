"""Paths, vocabularies and the check of a student-teacher pair."""

import json

import pytest
import torch
from learner_cases import make_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
)

from onpol_cli.core.config import LoraConfig, ModelConfig
from onpol_cli.core.errors import OnpolError
from onpol_cli.learner.model import add_adapters, load_model, real_vocab, resolve_model_path
from onpol_cli.learner.preflight import check_logits, check_pair
from onpol_cli.learner.weights import merged_weights, to_saved


def tokenizer(words=("a", "b", "c"), eos="<e>", template="{{ messages }}"):
    table = {word: number for number, word in enumerate([*words, "<e>", "<p>"])}
    backend = Tokenizer(models.WordLevel(table, unk_token="<p>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, pad_token="<p>")
    made.chat_template = template
    return made


class Rows:
    """A stand-in for a Hugging Face configuration."""

    def __init__(self, vocab_size):
        self.vocab_size = vocab_size


def test_folder_run_and_hub_name_resolve(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoint").mkdir(parents=True)
    (run / "checkpoint" / "config.json").write_text("{}")
    assert resolve_model_path(run) == str(run / "checkpoint")
    assert resolve_model_path(run / "checkpoint") == str(run / "checkpoint")
    assert resolve_model_path("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert resolve_model_path("tiny").endswith("tiny_base")


def test_missing_folder_says_what_is_allowed(tmp_path):
    with pytest.raises(OnpolError, match=r"config\.json.*'tiny'"):
        resolve_model_path(tmp_path / "nothing")


def test_random_weights_depend_on_the_seed_only(tmp_path):
    make_model().config.save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path), random_weights=True)
    first, same, other = load_model(config, 1), load_model(config, 1), load_model(config, 2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), same.parameters(), strict=True))
    assert not torch.equal(first.base_model.embed_tokens.weight, other.base_model.embed_tokens.weight)


def test_wrong_adapter_targets_are_refused():
    with pytest.raises(OnpolError, match=r"lora\.targets"):
        add_adapters(make_model(), LoraConfig(rank=2, targets=["query_key_value"]), 0)


def test_real_vocabulary_is_the_tokenizers():
    assert real_vocab(tokenizer(), make_model()) == 5
    with pytest.raises(OnpolError, match="do not fit"):
        real_vocab(tokenizer([str(number) for number in range(50)]), make_model())


def test_equal_pair_passes_with_different_padding():
    check_pair(tokenizer(), tokenizer(), Rows(8), Rows(64))


@pytest.mark.parametrize(
    ("teacher", "rows", "message"),
    [
        (tokenizer(["a", "b", "c", "d"]), 64, "real vocabulary 5 .student. and 6"),
        (tokenizer(["b", "a", "c"]), 64, "2 tokens have different ids"),
        (tokenizer(eos="<p>"), 64, "EOS '<e>'"),
        (tokenizer(template="{{ other }}"), 64, "chat templates differ"),
        (tokenizer(), 4, "the teacher has 4 output rows for 5 tokens"),
    ],
)
def test_every_difference_is_named(teacher, rows, message):
    with pytest.raises(OnpolError, match=message):
        check_pair(tokenizer(), teacher, Rows(64), Rows(rows))


def with_head(kind, **more):
    """A small model whose logits are not plainly states times matrix (or are, with no `more` that says so)."""
    config = kind(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, **more,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.25)
    return model


@pytest.mark.parametrize(
    "model",
    [
        lambda: with_head(GraniteConfig, logits_scaling=4.0),
        lambda: with_head(CohereConfig, logit_scale=0.5),
        lambda: with_head(PhiConfig),
        lambda: with_head(Gemma2Config, head_dim=8, final_logit_softcapping=30.0),
    ],
    ids=["scaled", "divided", "shifted", "capped"],
)
def test_logits_that_the_losses_would_get_wrong_are_refused(model):
    with pytest.raises(OnpolError, match="caps, scales or shifts"):
        check_logits(model(), 37)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_logits_pass_adapters_and_padded_rows_included(dtype):
    model = with_head(MistralConfig).to(dtype)
    check_logits(model, 37)
    add_adapters(model, LoraConfig(rank=2), 0)
    check_logits(model.train(), 37)
    assert model.training
    check_logits(make_model(), 40)


def test_the_look_at_logits_takes_torchs_own_attention_and_gives_the_models_back():
    """Other kernels refuse a CPU, or float32 where autocast is off; the model trains with what was chosen."""
    model = make_model()

    def refuses(*words, **more):
        raise AssertionError("a kernel for GPUs")

    AttentionInterface.register("gpu-only", refuses)
    model.config._attn_implementation = "gpu-only"
    check_logits(model, 37)
    assert model.config._attn_implementation == "gpu-only"
    model.config._attn_implementation = "eager"


def test_a_stored_output_matrix_unlike_the_embeddings_stays_one_of_its_own(tmp_path):
    """Whatever the config says of ties: transformers loads both, and a checkpoint must then hold both."""
    model = make_model(dtype=torch.float32, tied=False)
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    opened = load_model(ModelConfig(path=str(tmp_path)))
    assert opened.lm_head.weight is not opened.model.embed_tokens.weight
    saved = to_saved(merged_weights(opened), opened, torch.float32)
    assert torch.equal(saved["lm_head.weight"], model.lm_head.weight)
    assert not opened.config.tie_word_embeddings
