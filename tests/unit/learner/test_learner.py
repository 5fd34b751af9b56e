"""The learner's step: invariances, masks, guards, adapters, resume, saved folders."""

import io
import math
import random
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_cases import CPU, VOCAB, assert_same, gradient, make_config, make_examples, make_learner, make_model
from transformers import AutoModelForCausalLM

from onpol_cli.core.config import Dtype, LoraConfig
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.learner.batch import TrainExample
from onpol_cli.learner.learner import Learner
from onpol_cli.learner.model import add_adapters
from onpol_cli.learner.nonfinite import NonFinite, Part, described, suspects
from onpol_cli.learner.parallel import ALONE
from onpol_cli.learner.scorer import BaseScorer, LocalScorer
from onpol_cli.learner.throughput import matmul_peak, rates, work_of

KINDS = ["sft", "pg", "div", "dpo"]


def gradient_of(kind, examples, micro_tokens=8192, native=True):
    config = make_config(kind)
    config.learner.micro_tokens = micro_tokens
    config.learner.native = native
    return gradient(make_learner(kind, config=config), examples)


@pytest.mark.parametrize("kind", KINDS)
@given(micro_tokens=st.integers(1, 120), order=st.randoms(use_true_random=False), native=st.booleans())
@settings(max_examples=6, deadline=None, derandomize=True)
def test_result_depends_neither_on_micro_batches_nor_packing_nor_order(
    kind, micro_tokens, order: random.Random, native
):
    examples = make_examples(kind)
    whole, metrics = gradient_of(kind, examples)
    shuffled = list(examples)
    order.shuffle(shuffled)
    split, split_metrics = gradient_of(kind, shuffled, micro_tokens, native)
    # transformers' norms round to float32 even in a float64 model; the native decoder's do not.
    assert_same(whole, split, 1e-9 if native else 2e-5)
    assert split_metrics["loss/total"] == pytest.approx(metrics["loss/total"], rel=1e-5)


@pytest.mark.parametrize("kind", ["sft", "pg", "div"])
def test_masked_tokens_get_no_gradient(kind):
    examples = make_examples(kind)
    before, _ = gradient_of(kind, examples)
    for example in examples:
        mask = {"sft": example.ce_weights, "pg": example.pg_mask, "div": example.div_mask}[kind]
        hidden = mask == 0
        if kind == "pg":
            example.advantages[hidden] = 1e3
            example.teacher_logprobs[hidden] = -700.0
            example.sampler_logprobs[hidden] = -900.0
        if kind == "div":
            example.teacher_hidden[hidden] = 50.0
    after, _ = gradient_of(kind, examples)
    assert_same(before, after)


def test_last_masked_token_changes_nothing_even_as_input():
    examples = make_examples("sft", count=2)
    examples[0].ce_weights = torch.ones(len(examples[0].completion_ids))
    before, _ = gradient_of("sft", examples)
    longer = make_examples("sft", count=2)
    longer[0].completion_ids = [*examples[0].completion_ids, 5, 6]
    longer[0].ce_weights = torch.cat([examples[0].ce_weights, torch.zeros(2)])
    after, _ = gradient_of("sft", longer)
    assert_same(before, after)


def test_exact_divergence_from_itself_has_no_gradient():
    model = make_model()
    learner = Learner(model, VOCAB, make_config("div"), 5, CPU, model.get_output_embeddings().weight)
    examples = make_examples("div")
    states = learner.hidden([(e.prompt_ids, e.completion_ids) for e in examples])
    for example, hidden in zip(examples, states, strict=True):
        example.teacher_hidden = hidden
    grads, metrics = gradient(learner, examples)
    assert metrics["loss/divergence"] == pytest.approx(0, abs=1e-12)
    assert max(grad.abs().max().item() for grad in grads.values()) < 1e-10


def test_advantages_of_zero_have_no_gradient():
    examples = make_examples("pg")
    for example in examples:
        example.advantages, example.teacher_coef = torch.zeros(len(example.completion_ids)), 0.0
    grads, _ = gradient_of("pg", examples)
    assert all(grad.abs().max().item() == 0 for grad in grads.values())


def test_padded_vocabulary_rows_do_not_matter():
    sequences = [(e.prompt_ids, e.completion_ids) for e in make_examples("sft")]
    small = make_learner()
    with torch.no_grad():
        before = torch.cat(small.logprobs(sequences))
        small.engine.output_matrix[VOCAB:] = 1e4
        assert torch.equal(torch.cat(small.logprobs(sequences)), before)


@pytest.mark.parametrize("field", ["teacher_logprobs", "sampler_logprobs"])
def test_missing_logprobs_are_an_error(field):
    examples = make_examples("pg")
    setattr(examples[3], field, None)
    with pytest.raises(OnpolError, match=f"Example 3.*{field}"):
        make_learner("pg").step(examples)


def test_missing_teacher_value_is_an_error():
    examples = make_examples("pg")
    examples[1].teacher_logprobs[0] = float("nan")
    with pytest.raises(OnpolError, match="teacher_logprobs are missing"):
        make_learner("pg").step(examples)


def test_half_a_pair_is_an_error():
    with pytest.raises(OnpolError, match="pair 2"):
        make_learner("dpo").step(make_examples("dpo")[:5])


def test_overlong_sequences_are_dropped_and_counted():
    config = make_config()
    examples = make_examples("sft")
    config.model.max_context = max(map(len, examples)) - 1
    kept = [e for e in examples if len(e) <= config.model.max_context]
    assert 0 < len(kept) < len(examples)
    metrics = make_learner(config=config).step(examples)
    assert metrics["tokens/dropped_sequences"] == len(examples) - len(kept)


def test_a_step_of_overlong_sequences_or_of_none_is_an_error():
    learner = make_learner()
    learner.config.model.max_context = 3
    with pytest.raises(OnpolError, match=r"model\.max_context=3 tokens \(longest \d+, 6 in all\)"):
        learner.step(make_examples("sft"))
    with pytest.raises(OnpolError, match="0 in all"):
        learner.step([])
    assert learner.steps_done == 0


def test_nonfinite_loss_stops_with_step_and_dump_and_leaves_weights():
    learner = make_learner("pg")
    examples = make_examples("pg")
    learner.step(examples)
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    seen = []
    learner.dump = lambda facts: seen.append(facts) or "debug/step-2.pt"
    examples[0].advantages[:] = float("inf")
    examples[0].pg_mask[:] = 1
    with pytest.raises(RunFailed, match=r"Non-finite loss.*step 2.*debug/step-2\.pt"):
        learner.step(examples)
    assert seen[0]["step"] == 2
    assert all(torch.equal(before[name], p) for name, p in learner.model.named_parameters())
    assert all(p.grad is None for p in learner.model.parameters())


def test_a_nonfinite_step_names_its_problems_and_its_micro_batch():
    config = make_config("sft")
    config.learner.micro_tokens = 1  # a micro-batch each
    learner = make_learner("sft", config=config)
    examples = make_examples("sft")
    for number, example in enumerate(examples):
        example.problem_id = f"p{number}"
    examples[1].ce_weights[:] = float("inf")
    seen = []
    learner.dump = lambda facts: seen.append(facts) or "somewhere"
    with pytest.raises(NonFinite, match=r"over 1 sequences in micro-batch \d+ \(problems p1\)\. Dump: somewhere\. The"):
        learner.step(examples)
    held = io.BytesIO()
    torch.save(seen[0], held)
    held.seek(0)
    dump = torch.load(held, weights_only=True)
    (part,) = dump["micro_batches"]
    assert dump["problem_ids"] == ["p1"] and part["examples"][0]["problem_id"] == "p1"
    assert not math.isfinite(part["loss"]) and part["examples"][0]["completion_ids"] == examples[1].completion_ids


def test_many_problems_are_counted():
    parts = [Part(number, [TrainExample([1], [2], problem_id=f"p{number}")], torch.tensor(1.0)) for number in range(7)]
    assert described(parts, ALONE) == "over 7 sequences in 7 micro-batches (problems p0, p1, p2, p3, p4 and 2 more)"
    assert suspects(parts, ALONE) == parts, "a gradient alone that is not finite says nothing of where"


def test_a_nonfinite_step_leaves_the_random_state():
    config = make_config("sft")
    model = add_dropout(make_model(dtype=torch.float32))
    learner = make_learner("sft", config=config, model=model, dtype=torch.float32)
    examples = make_examples("sft")
    before = torch.get_rng_state()
    learner.step(examples)
    assert not torch.equal(torch.get_rng_state(), before), "dropout draws"
    examples[-1].ce_weights[:] = float("nan")
    before = torch.get_rng_state()
    with pytest.raises(NonFinite):
        learner.step(examples)
    assert torch.equal(torch.get_rng_state(), before)


def add_dropout(model):
    add_adapters(model, LoraConfig(rank=2, dropout=0.1), 0)
    return model


@pytest.mark.parametrize("prepare", [lambda model: model, add_dropout], ids=["full", "lora-dropout"])
@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_resume_is_bit_for_bit(prepare, rule):
    def fresh():
        config = make_config()
        config.optim.name = rule
        return make_learner(config=config, model=prepare(make_model(dtype=torch.float32)), dtype=torch.float32)

    straight = fresh()
    for seed in range(4):
        straight.step(make_examples("sft", seed=seed))
        if seed == 1:
            state = straight.state_dict()
            torch.save(state, buffer := io.BytesIO())
    resumed = fresh()
    buffer.seek(0)
    resumed.load_state_dict(torch.load(buffer))
    for seed in (2, 3):
        resumed.step(make_examples("sft", seed=seed))
    assert resumed.steps_done == 4
    for (name, wanted), got in zip(
        straight.model.named_parameters(), resumed.model.parameters(), strict=True
    ):
        assert torch.equal(wanted, got), name


def test_state_of_another_setting_is_refused():
    lora = make_learner(model=add_dropout(make_model()))
    with pytest.raises(OnpolError, match="another model or LoRA setting"):
        make_learner().load_state_dict(lora.state_dict())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lora", [False, True])
def test_saved_folder_opens_in_transformers_with_equal_logprobs(tmp_path, tied, lora):
    model = make_model(dtype=torch.float32, tied=tied)
    if lora:
        add_adapters(model, LoraConfig(rank=3), 0)
    learner = make_learner(model=model, dtype=torch.float32)
    for seed in range(3):
        learner.step(make_examples("sft", seed=seed))
    learner.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    again = make_learner(model=opened, dtype=torch.float32)
    sequences = [(e.prompt_ids, e.completion_ids) for e in make_examples("sft")]
    learner.model.eval()
    assert torch.allclose(torch.cat(learner.logprobs(sequences)), torch.cat(again.logprobs(sequences)), atol=1e-5)
    names = dict(again.named_weights())
    assert names.keys() == dict(learner.named_weights()).keys()
    assert "lm_head.weight" in names
    assert not any("lora" in name or "base_layer" in name for name in names)


def test_weights_that_share_a_buffer_are_saved_as_they_are(tmp_path):
    """As FSDP leaves embedding and final norm behind after a pass without backward: views of what it gathered."""
    learner = make_learner(dtype=torch.float32)
    model = learner.model
    ends = [model.model.embed_tokens.weight, model.model.norm.weight]
    buffer = torch.cat([end.detach().flatten() for end in ends])
    for end, part in zip(ends, buffer.split([end.numel() for end in ends]), strict=True):
        end.data = part.view(end.shape)
    learner.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, opened[name]) for name, value in model.state_dict().items())


def test_saved_folder_can_be_bf16(tmp_path):
    learner = make_learner(dtype=torch.float32)
    learner.save_pretrained(tmp_path, torch.bfloat16)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_lora_trains_adapters_only_and_switches_off():
    model = make_model(dtype=torch.float32)
    sequences = [(e.prompt_ids, e.completion_ids) for e in make_examples("sft")]
    base = torch.cat(make_learner(model=model, dtype=torch.float32).logprobs(sequences))
    add_adapters(model, LoraConfig(rank=2), 0)
    learner = make_learner(model=model, dtype=torch.float32)
    assert torch.allclose(torch.cat(learner.logprobs(sequences)), base, atol=1e-5)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    for _ in range(3):
        learner.step(make_examples("sft"))
    assert all(torch.equal(frozen[n], p) for n, p in model.named_parameters() if n in frozen)
    assert (torch.cat(learner.logprobs(sequences)) - base).abs().max() > 0.01
    with learner.adapter_off():
        assert torch.allclose(torch.cat(learner.logprobs(sequences)), base, atol=1e-5)
    assert (torch.cat(learner.logprobs(sequences)) - base).abs().max() > 0.01


@pytest.mark.parametrize("autocast", list(Dtype))
def test_adapters_of_a_bfloat16_model_train_in_float32(autocast):
    """Updates of 1e-5 of weights near 0.3 vanish in bf16, whose steps there are 0.001 to 0.002."""
    model = make_model(dtype=torch.bfloat16)
    add_adapters(model, LoraConfig(rank=2), 0)
    config = make_config()
    config.optim.lr, config.learner.autocast = 1e-5, autocast
    learner = make_learner(model=model, dtype=torch.bfloat16, config=config)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32} and model.dtype == torch.bfloat16
    start = {name: p.detach().clone() for name, p in trained.items()}
    for _ in range(3):
        assert learner.step(make_examples("sft"))["grad_norm"] > 0
    for name, value in trained.items():
        moved = (value - start[name]).abs()
        assert 0 < moved.max() < 1e-4 and (moved > 0).float().mean() > 0.9, name
    merged = dict(learner.named_weights())["model.layers.0.self_attn.q_proj.weight"]
    assert merged.dtype == torch.bfloat16


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_base_under_adapters_scores_as_a_copy_of_its_own(temperature):
    sequences = [(e.prompt_ids, e.completion_ids) for e in make_examples("sft")]
    config = make_config()
    copy = LocalScorer(make_model(dtype=torch.float32), VOCAB, config.learner, CPU, temperature)
    model = make_model(dtype=torch.float32)
    add_adapters(model, LoraConfig(rank=2, dropout=0.3), 0)
    learner = make_learner(model=model, dtype=torch.float32)
    for _ in range(3):
        learner.step(make_examples("sft"))
    base = BaseScorer(learner.engine, temperature)
    assert base.output_matrix is learner.engine.output_matrix
    for mine, theirs in ((base.logprobs, copy.logprobs), (base.hidden, copy.hidden)):
        assert torch.allclose(torch.cat(mine(sequences)), torch.cat(theirs(sequences)), atol=1e-5)
    trained = torch.cat(learner.logprobs(sequences))
    assert (trained - torch.cat(base.logprobs(sequences))).abs().max() > 0.01, "the adapters are back on"
    assert torch.equal(trained, torch.cat(learner.logprobs(sequences))), "scores are without dropout"
    assert learner.model.training


def test_adapters_on_the_output_matrix_are_refused():
    with pytest.raises(OnpolError, match="Name projections of the layers only"):
        add_adapters(make_model(tied=False), LoraConfig(rank=2, targets=["lm_head"]), 0)


@pytest.mark.parametrize(
    ("device", "autocast", "inside"),
    [("cuda", Dtype.bfloat16, "high"), ("cuda", Dtype.float32, "highest"), ("cpu", Dtype.bfloat16, "highest")],
)
def test_float32_products_are_reduced_only_beside_bf16_layers_on_cuda(device, autocast, inside):
    config = make_config()
    config.learner.autocast = autocast
    engine = make_learner(config=config, dtype=torch.float32).engine
    engine.device = torch.device(device)
    with engine.products():
        assert torch.get_float32_matmul_precision() == inside
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_step_and_a_scoring_run_with_reduced_products(monkeypatch):
    learner, seen = make_learner(dtype=torch.float32), []
    pairs = [(e.prompt_ids, e.completion_ids) for e in make_examples("sft")]
    monkeypatch.setattr(learner.engine, "products", lambda: nullcontext(seen.append(1)))
    learner.step(make_examples("sft"))
    learner.logprobs(pairs)
    learner.engine.score_states(learner.hidden(pairs), [completion for _, completion in pairs])
    assert len(seen) == 4


def test_work_by_hand_and_rates():
    model = make_model()
    ends = model.get_input_embeddings().weight.numel()
    inner = sum(p.numel() for p in model.parameters()) - ends
    work = work_of(model, VOCAB)
    assert (work.token, work.prediction) == (6 * inner, 6 * VOCAB * 16)
    add_adapters(model, LoraConfig(rank=2), 0)
    added = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (work_of(model, VOCAB).token, work_of(model, VOCAB).prediction) == (4 * inner + 6 * added, 4 * VOCAB * 16)
    assert rates(2.0, 10, work.flops(10, 3), 100.0) == {
        "rate/train_tokens_per_s": 5.0, "rate/mfu": (10 * 6 * inner + 3 * 6 * VOCAB * 16) / 200.0,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["sft", "pg", "div", "dpo"])
def test_each_trained_token_is_counted_once(kind):
    """Whatever trains it: masked tokens are left out, both sides of a pair are in, two components are one token."""
    examples = make_examples(kind)
    masks = [next(m for m in (e.ce_weights, e.pg_mask, e.div_mask, torch.ones(len(e.completion_ids))) if m is not None)
             for e in examples]  # fmt: skip
    expected = sum(int((mask != 0).sum()) for mask in masks)
    assert make_learner(kind).step(examples)["tokens/trained"] == expected > 0
    if kind == "div":
        for example, mask in zip(examples, masks, strict=True):
            example.pg_mask, example.sampler_logprobs = mask.clone(), torch.full_like(mask, -3.5)
        assert make_learner(kind).step(examples)["tokens/trained"] == expected


def test_the_peak_is_measured_once_and_draws_nothing():
    before = torch.get_rng_state()
    peak = matmul_peak(CPU, torch.float32, 1)
    assert peak > 1e8 and peak == matmul_peak(CPU, torch.float32, 1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.full  # compiling takes a minute
@pytest.mark.parametrize("lora", [False, True])
def test_compiled_layers_follow_the_same_curve(lora):
    def curve(compiled):
        config = make_config("pg")
        config.learner.native, config.learner.compile, config.optim.lr = False, compiled, 1e-3
        model = make_model(dtype=torch.float32)
        if lora:
            add_adapters(model, LoraConfig(rank=2), 0)
        learner = make_learner("pg", config=config, model=model, dtype=torch.float32)
        compiled_calls = [layer._compiled_call_impl is not None for layer in learner.model.base_model.layers]
        assert all(compiled_calls) if compiled else not any(compiled_calls)
        return [learner.step(make_examples("pg", seed=seed))["loss/total"] for seed in range(8)]

    plain = curve(False)
    assert len(set(plain)) == 8
    assert curve(True) == pytest.approx(plain, abs=1e-5, rel=1e-5)


def test_compiling_takes_the_place_of_the_native_decoder():
    config = make_config()
    assert make_learner(config=config).engine.native
    config.learner.compile = True
    assert not make_learner(config=config).engine.native


def test_metrics_of_policy_gradient_by_hand():
    examples = make_examples("pg", count=2)
    learner = make_learner("pg")
    policy = learner.logprobs([(e.prompt_ids, e.completion_ids) for e in examples])
    for example, values in zip(examples, policy, strict=True):
        example.pg_mask = torch.ones(len(values))
        example.sampler_logprobs, example.teacher_logprobs = values.clone(), values - 0.5
        example.advantages = torch.zeros(len(values))
    metrics = learner.step(examples)
    expected = 0.7 * 0.5 * torch.cat(policy).mean().item()  # -(1 * 0.7 * -0.5) log p
    assert metrics["loss/policy_gradient"] == pytest.approx(expected, rel=1e-6)
    assert metrics["kl/teacher"] == pytest.approx(0.5, rel=1e-6)
    assert metrics["kl/mismatch"] == pytest.approx(0, abs=1e-9)
    assert metrics["ratio/mean"] == pytest.approx(1)
    assert metrics["ratio/p01"] == pytest.approx(1)
    assert "signal/clipped_share" not in metrics
    assert metrics["tokens/trained"] == sum(len(values) for values in policy)


def test_the_share_of_clipped_signals_is_counted():
    examples = make_examples("pg", count=2)
    config = make_config("pg")
    config.method.signal_clip = 0.5
    learner = make_learner("pg", config=config)
    policy = learner.logprobs([(e.prompt_ids, e.completion_ids) for e in examples])
    for example, values in zip(examples, policy, strict=True):
        example.pg_mask = torch.ones(len(values))
        example.teacher_logprobs = values - 0.1
    examples[0].teacher_logprobs[0] -= 3.0
    tokens = sum(len(values) for values in policy)
    assert learner.step(examples)["signal/clipped_share"] == pytest.approx(1 / tokens)


def exact_examples(learner, coefficient=1.0):
    """Examples of an exact divergence with everything that rollouts bring, the reference 0.3 nats above."""
    examples = make_examples("div")
    policy = learner.score([(e.prompt_ids, e.completion_ids) for e in examples])
    for example, scores in zip(examples, policy, strict=True):
        example.div_mask = example.div_mask * coefficient
        example.sampler_logprobs = scores.logprobs - 0.1
        example.reference_logprobs = scores.logprobs + 0.3
    return examples, policy


def test_exact_signals_tell_entropy_mismatch_and_the_teacher_in_nats():
    learner = make_learner("div")
    examples, policy = exact_examples(learner, coefficient=0.25)
    examples[0].sampler_logprobs = None  # of a data set: nobody sampled it
    entropy = torch.cat([scores.entropy[e.div_mask != 0] for e, scores in zip(examples, policy, strict=True)])
    _, metrics = gradient(learner, examples)
    assert metrics["entropy"] == pytest.approx(entropy.mean().item(), rel=1e-6)
    assert metrics["kl/mismatch"] == pytest.approx(math.exp(0.1) - 1 - 0.1, rel=1e-6)
    assert metrics["loss/divergence"] == pytest.approx(0.25 * metrics["kl/teacher"], rel=1e-9)
    assert metrics["loss/total"] == pytest.approx(metrics["loss/divergence"])
    assert not {"kl/reference", "ratio/mean"} & metrics.keys()


@pytest.mark.parametrize("micro_tokens", [20, 8192])
def test_the_reference_penalty_of_exact_signals_is_that_of_sampled_ones(micro_tokens):
    def run(weight, kind):
        config = make_config("div")
        config.method.reference_kl, config.learner.micro_tokens = weight, micro_tokens
        learner = make_learner("div", config=config)
        examples, _ = exact_examples(learner)
        for example in examples:
            if "pg" in kind:  # without advantages
                example.pg_mask = (example.div_mask != 0).double()
            if "div" not in kind:
                example.div_mask = None
        return gradient(learner, examples)

    (plain, _), (penalised, metrics), (both, told) = run(0.0, "div"), run(2.0, "div"), run(2.0, "pg div")
    alone, sampled = run(2.0, "pg")
    assert_same(penalised, {name: plain[name] + alone[name] for name in plain}, 1e-9)
    assert_same(both, penalised, 1e-9)
    k3 = math.exp(0.3) - 1 - 0.3
    for found in (metrics, told, sampled):
        assert found["kl/reference"] == pytest.approx(k3, rel=1e-6)
        assert found["loss/reference_kl"] == pytest.approx(2 * k3, rel=1e-6)
        assert found["kl/mismatch"] == pytest.approx(math.exp(0.1) - 1 - 0.1, rel=1e-6)
        parts = sum(found.get(f"loss/{name}", 0.0) for name in ("divergence", "policy_gradient", "reference_kl"))
        assert found["loss/total"] == pytest.approx(parts)
    assert sampled["loss/total"] == pytest.approx(2 * k3, rel=1e-6)


def test_a_reference_penalty_without_reference_is_an_error():
    config = make_config("div")
    config.method.reference_kl = 0.1
    with pytest.raises(OnpolError, match="needs reference_logprobs"):
        make_learner("div", config=config).step(make_examples("div"))


def test_bf16_autocast_stays_near_float32():
    sequences = [(e.prompt_ids, e.completion_ids) for e in make_examples("sft", count=12)]
    exact = torch.cat(make_learner(dtype=torch.float32).logprobs(sequences))
    for native in (True, False):
        config = make_config()
        config.learner.autocast, config.learner.native = Dtype.bfloat16, native
        rough = torch.cat(make_learner(dtype=torch.float32, config=config).logprobs(sequences))
        assert 0 < (rough - exact).abs().mean() < 0.05
