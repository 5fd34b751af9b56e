"""The memory plan: parameters counted as the real model has them, and each setting moves its part."""

import pytest
from learner_cases import make_config, make_model
from transformers import Qwen3Config

from onpol_cli.core.config import OpdSignal
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


def test_frozen_models_are_sharded_unless_told_otherwise_and_free_under_adapters(qwen):
    def frozen(**changes):
        def change(config):
            config.method.name, config.method.teacher_coef, config.tutor = "opd", 1.0, "other"
            for name, value in changes.items():
                part, _, key = name.partition("__")
                setattr(getattr(config, part) if key else config, key or part, value)

        return planned(qwen, change).learner["frozen models"]

    one = frozen()
    assert one > 0 and frozen(parallel__nproc=8) == pytest.approx(one / 8)
    assert frozen(parallel__nproc=8, parallel__shard_frozen=False) == one
    assert frozen(parallel__nproc=8, method__signal=OpdSignal.reverse) > 1.1 * one / 8  # the output matrix is whole
    assert frozen(method__reference_kl=0.1) == 2 * one
    assert frozen(method__name="opsd") == 0

    def adapted(config):
        config.method.name, config.method.teacher_coef, config.tutor = "opd", 1.0, config.model.path
        config.method.reference_kl, config.model.lora.rank = 0.1, 8

    assert planned(qwen, adapted).learner["frozen models"] == 0
