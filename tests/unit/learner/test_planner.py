"""The memory plan: parameters counted as the real model has them, and each setting moves its part."""

import pytest
from learner_cases import make_config, make_model
from transformers import Qwen3Config

from onpol_cli.learner.planner import GIB, plan, shape_of


@pytest.fixture
def qwen(tmp_path):
    """Folder with the configuration of Qwen3-0.6B."""
    Qwen3Config(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    ).save_pretrained(tmp_path)  # fmt: skip
    return str(tmp_path)


def planned(path, change=lambda config: None, available=80.0):
    config = make_config()
    config.model.path = path
    change(config)
    return plan(config, available)


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_exactly(tied):
    model = make_model(tied=tied)
    assert shape_of(model.config).parameters == sum(p.numel() for p in model.parameters())


def test_known_model_by_hand(qwen):
    got = planned(qwen)
    assert got.parameters == 596_049_920
    assert got.learner["weights"] == pytest.approx(4 * got.parameters / GIB)
    assert got.learner["optimiser"] == pytest.approx(8 * got.parameters / GIB)
    assert got.learner["logits chunk"] == pytest.approx((2 * 4 * 256 * 151936 + 8 * 8192 * 1024) / GIB)


@pytest.mark.parametrize(
    ("part", "setting"),
    [
        ("optimiser", lambda c: setattr(c.parallel, "nproc", 8)),
        ("gradients", lambda c: setattr(c.model.lora, "rank", 8)),
        ("activations", lambda c: setattr(c.learner, "gradient_checkpointing", True)),
        ("logits chunk", lambda c: setattr(c.learner, "chunk", 32)),
    ],
)
def test_each_setting_shrinks_its_part(qwen, part, setting):
    assert planned(qwen, setting).learner[part] < 0.5 * planned(qwen).learner[part]


def test_verdict_and_advice(qwen):
    assert planned(qwen, available=1000.0).verdict == "fits"
    small = planned(qwen, available=20.0)
    assert small.verdict == "does not fit"
    assert "learner.gradient_checkpointing=true" in small.advice


def test_adapters_are_counted_exactly():
    from onpol_cli.core.config import LoraConfig
    from onpol_cli.learner.model import add_adapters

    model, lora = make_model(), LoraConfig(rank=3)
    add_adapters(model, lora, 0)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert shape_of(model.config).adapter_parameters(3, lora.targets) == trained
