"""The hand-written decoder against the transformers modules: values and every gradient."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from learner_cases import CPU, make_examples, make_learner, make_model, make_sequences
from peft import LoraConfig as PeftConfig
from peft.tuners.lora import LoraLayer

from onpol_cli.core.config import LoraConfig
from onpol_cli.learner import native, packed
from onpol_cli.learner.batch import lay_out
from onpol_cli.learner.model import add_adapters
from onpol_cli.learner.packed import pack, plan_packed
from onpol_cli.learner.weights import adapters_off


def both(model, sequences, dtype):
    padded, packed = lay_out(sequences, CPU), pack(sequences)
    assert torch.equal(padded.targets, packed.targets)
    assert torch.equal(padded.segments, packed.segments)
    states = model.base_model(input_ids=padded.input_ids, use_cache=False).last_hidden_state
    return states.flatten(0, 1)[padded.predict], native.decode(model, packed, dtype)


@pytest.fixture(params=["one part", "many parts"])
def parts(request):
    """Attention over all prompts at once, and over as many parts as there are prompt lengths."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "many parts":
            patch.setattr(packed, "BLOCK_TOKENS", 0)
            patch.setattr(packed, "PADDING", 0.0)
        yield request.param


def test_parts_hold_every_token_once_and_little_padding(monkeypatch):
    monkeypatch.setattr(packed, "BLOCK_TOKENS", 30)
    sequences = [([1] * (5 + 3 * n), list(range(1, 2 + n % 3))) for n in range(20)] * 2
    layout = pack(sequences)
    assert len(layout.parts) > 2
    blocks = [block for part in layout.parts for block in (part.prompts, *(a.block for a in part.answers))]
    assert sorted(torch.cat([block.tokens for block in blocks]).tolist()) == list(range(layout.padded_tokens))
    computed = sum(part.prompts.rows.numel() for part in layout.parts)
    real = sum(len(part.prompts.real) for part in layout.parts)
    assert real == sum({len(prompt) for prompt, _ in sequences})
    assert computed < 1.25 * real < 62 * 20


@given(count=st.integers(1, 9), prompts=st.integers(1, 4), longest=st.integers(1, 8), seed=st.integers(0, 99))
@settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_states_and_gradients_equal_transformers(parts, count, prompts, longest, seed):
    model = make_model(seed)
    sequences = make_sequences(count, seed, prompts, 1, longest)
    lengths = {len(prompt) for prompt, _ in sequences}
    assert len(pack(sequences).parts) == (1 if parts == "one part" else len(lengths))
    wanted, got = both(model, sequences, torch.float64)
    assert torch.allclose(wanted, got, atol=1e-5)
    upstream = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parameters = list(model.base_model.parameters())
    expected = torch.autograd.grad((wanted * upstream).sum(), parameters)
    actual = torch.autograd.grad((got * upstream).sum(), parameters)
    for one, two in zip(expected, actual, strict=True):
        assert (one - two).abs().max() <= 1e-4 * one.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize(
    "trained",
    ["k_proj", "o_proj", "gate_proj", "down_proj", "input_layernorm", "post_attention_layernorm", "q_norm", "embed"],
)
def test_frozen_weights_cost_no_product_and_leave_the_other_gradients(trained, monkeypatch):
    model = make_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    made, weight_gradient = [], native._weight_gradient

    def counted(wanted, *tensors):
        made.append(wanted)
        return weight_gradient(wanted, *tensors)

    monkeypatch.setattr(native, "_weight_gradient", counted)
    wanted, got = both(model, make_sequences(9), torch.float64)
    parameters = [parameter for parameter in model.base_model.parameters() if parameter.requires_grad]
    expected, actual = (torch.autograd.grad(states.square().sum(), parameters) for states in (wanted, got))
    for one, two in zip(expected, actual, strict=True):
        assert one.abs().max() > 1e-6
        assert (one - two).abs().max() <= 1e-4 * one.abs().max()
    products = {"post_attention_layernorm": 2, "q_norm": 0, "embed": 0}.get(trained, 1)
    assert sum(made) == products * model.config.num_hidden_layers


def test_bf16_products_are_as_near_as_autocast():
    model = make_model(dtype=torch.float32)
    sequences = make_sequences(12)
    assert len(pack(sequences).input_ids) % native.GRAIN
    exact, rough = both(model, sequences, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        automatic, _ = both(model, sequences, torch.bfloat16)
    assert (rough - exact).abs().mean() < 2 * (automatic - exact).abs().mean()


def test_rows_that_fill_up_change_nothing(monkeypatch):
    model = make_model(dtype=torch.float32)
    sequences = make_sequences(7)
    parameters = list(model.base_model.parameters())
    found = []
    for grain in (1, 64):
        monkeypatch.setattr(native, "GRAIN", grain)
        states = native.decode(model, pack(sequences), torch.bfloat16)
        found.append((states, *torch.autograd.grad(states.square().sum(), parameters)))
    for one, two in zip(*found, strict=True):
        assert (one - two).norm() <= 1e-3 * one.norm()


def test_kept_tokens_are_distinct_and_a_multiple():
    predict = torch.tensor([5, 2, 5, 9])
    for grain in (1, 4, 5):
        kept, places = native.kept_tokens(predict, 10, grain)
        assert kept[places].tolist() == predict.tolist()
        assert len(kept) % grain == 0 and len(kept.unique()) == len(kept) < 3 + grain


def test_shared_prompts_are_computed_once():
    sequences = [([1, 2, 3, 4], [5, 6, 7]), ([1, 2, 3, 4], [8, 9]), ([1, 2], [3])]
    layout = pack(sequences)
    assert layout.padded_tokens == 4 + 2 + 2 + 1 + 0
    assert layout.real_tokens == 7 + 6 + 3
    assert layout.positions.tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 4]


def test_plan_keeps_every_unit_once_within_budget():
    units = [[pair] for pair in make_sequences(20, prompts=4)]
    for budget in (1, 12, 30, 1000):
        batches = plan_packed(units, budget)
        assert sorted(number for batch in batches for number in batch) == list(range(20))
        for batch in batches:
            assert len(batch) == 1 or pack([units[n][0] for n in batch]).padded_tokens <= budget


def make_adapted(rank=2, dropout=0.0, targets=("q_proj", "v_proj", "down_proj")):
    """A model whose adapters already change it."""
    model = make_model()
    add_adapters(model, LoraConfig(rank=rank, dropout=dropout, targets=list(targets)), 0)
    draw = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=draw, dtype=weight.dtype))
    return model


@pytest.mark.parametrize("targets", [("q_proj", "v_proj", "down_proj"), LoraConfig().targets], ids=len)
def test_adapters_have_the_states_and_gradients_of_pefts_own_layers(targets):
    model = make_adapted(targets=targets)
    assert native.supports(model)
    wanted, got = both(model, make_sequences(9), torch.float64)
    assert torch.allclose(wanted, got, atol=1e-5)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * len(targets)
    expected, actual = (torch.autograd.grad(states.square().sum(), trained) for states in (wanted, got))
    for one, two in zip(expected, actual, strict=True):
        assert one.abs().max() > 1e-3
        assert (one - two).abs().max() <= 1e-4 * one.abs().max()
    with adapters_off(model):
        wanted, off = both(model, make_sequences(9), torch.float64)
    assert torch.allclose(wanted, off, atol=1e-5)
    assert (off - got).abs().max() > 0.01


@pytest.mark.parametrize("change", ["dropout", "second adapter", "merged", "bias", "type", "rope"])
def test_other_architectures_are_left_to_transformers(change):
    model = make_adapted() if change in ("second adapter", "merged") else make_model()
    assert native.supports(model)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    if change == "dropout":
        model = make_adapted(dropout=0.1)
    elif change == "second adapter":
        layers[-1].update_layer("other", r=2, lora_alpha=1, config=PeftConfig())
    elif change == "merged":
        layers[-1].merge()
    elif change == "bias":
        model.config.attention_bias = True
    elif change == "rope":
        model.config.rope_parameters = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}
    else:
        model.config.model_type = "gpt_new"
    assert not native.supports(model)


def test_bf16_weights_are_left_to_transformers():
    model = make_model(dtype=torch.bfloat16)
    assert not native.supports(model)
    learner = make_learner(model=model, dtype=torch.bfloat16)
    assert math.isfinite(learner.step(make_examples("sft"))["loss/cross_entropy"])
