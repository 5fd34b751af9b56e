"""The embedded engine against transformers: same logits, whatever the batch around a rollout."""

import math

import pytest
import torch

from onpol_cli.core.config import Dtype, RolloutConfig, SamplingConfig
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.types import Finish
from onpol_cli.rollout.engine import Prompt, build_engine
from onpol_cli.rollout.lean import LeanDecoder
from onpol_cli.rollout.module import ModuleDecoder

PROMPTS = [
    Prompt("a", (5, 9, 2, 7), samples=3, seed=1),
    Prompt("b", tuple(range(1, 30)), samples=2, seed=2),
    Prompt("c", (11,), samples=4, seed=3),
]
SAMPLING = SamplingConfig(max_new_tokens=24)


def learner_logprobs(model, rollout, vocabulary=60):
    with torch.no_grad():
        logits = model(torch.tensor([rollout.prompt_ids + rollout.completion_ids])).logits[0].float()
    logprobs = logits[len(rollout.prompt_ids) - 1 : -1, :vocabulary].log_softmax(-1)
    return logprobs.gather(1, torch.tensor(rollout.completion_ids)[:, None])[:, 0]


def key(rollout):
    return rollout.problem_id, rollout.sample


def worst_gap(model, rollouts):
    return max((learner_logprobs(model, r) - torch.tensor(r.sampler_logprobs)).abs().max().item() for r in rollouts)


def engine_of(model, tokenizer, max_batch=4, dtype=Dtype.float32):
    return build_engine(RolloutConfig(max_batch=max_batch, dtype=dtype), "", tokenizer, 0, "cpu", model)


@pytest.mark.parametrize(
    ("kind", "kv_heads", "tied", "decoder"),
    [
        ("qwen3", 1, True, LeanDecoder),
        ("qwen3", 2, False, LeanDecoder),
        ("qwen2", 2, True, LeanDecoder),
        ("llama", 1, False, LeanDecoder),
        ("qwen3_moe", 1, True, ModuleDecoder),
        ("mistral", 1, False, ModuleDecoder),
        ("gemma2", 1, True, ModuleDecoder),  # caps its logits
        ("phi", 2, False, ModuleDecoder),  # adds a bias to its logits
    ],
)
def test_sampler_logprobs_are_the_learners(make_model, tokenizer, kind, kv_heads, tied, decoder):
    model = make_model(kind, kv_heads, tied)
    with engine_of(model, tokenizer) as engine:
        assert isinstance(engine.decoder, decoder)
        rollouts = engine.generate(PROMPTS, SAMPLING)
    assert [key(r) for r in rollouts] == [(p.problem_id, i) for p in PROMPTS for i in range(p.samples)]
    assert worst_gap(model, rollouts) < 1e-4
    assert engine.last_stats.tokens == sum(len(r.completion_ids) for r in rollouts)


@pytest.mark.parametrize(("kind", "sharpen"), [("qwen3", 8.0), ("qwen3", 1.0), ("qwen3_moe", 8.0)])
def test_rollouts_do_not_depend_on_the_batch(make_model, tokenizer, kind, sharpen):
    model = make_model(kind, sharpen=sharpen)
    want = {key(r): r.completion_ids for r in engine_of(model, tokenizer, 9).generate(PROMPTS, SAMPLING)}
    for batch, order in ((1, PROMPTS), (2, PROMPTS[::-1]), (5, PROMPTS[1:])):
        for rollout in engine_of(model, tokenizer, batch).generate(order, SAMPLING):
            assert rollout.completion_ids == want[key(rollout)]


def test_samples_of_a_prompt_differ_and_seeds_matter(make_model, tokenizer):
    engine = engine_of(make_model(sharpen=2.0), tokenizer)
    first, again, other = (
        [r.completion_ids for r in engine.generate([Prompt("a", (3, 4), 4, seed)], SAMPLING)] for seed in (1, 1, 2)
    )
    assert len(set(first)) == 4
    assert first == again != other


def test_ends_are_reported(make_model, tokenizer):
    prompts = [Prompt("a", (3, 4), 64, 0)]
    rollouts = engine_of(make_model(sharpen=3.0), tokenizer, 16).generate(prompts, SamplingConfig(max_new_tokens=40))
    assert {r.finish for r in rollouts} == {Finish.STOP, Finish.LENGTH}
    for rollout in rollouts:
        ended = rollout.completion_ids[-1] == tokenizer.eos_token_id
        assert rollout.finish is (Finish.STOP if ended else Finish.LENGTH)
        assert ended or len(rollout.completion_ids) == 40
        assert tokenizer.eos_token_id not in rollout.completion_ids[:-1]
        assert rollout.text == tokenizer.decode(rollout.completion_ids, skip_special_tokens=True)


def test_limits_end_samples_one_by_one(make_model, tokenizer):
    engine = engine_of(make_model(), tokenizer)
    engine.eos = None
    rollouts = engine.generate([Prompt("a", (3, 4), 3, 0, limits=(1, 7, 99))], SamplingConfig(max_new_tokens=20))
    assert [len(r.completion_ids) for r in rollouts] == [1, 7, 20]


def test_greedy_is_transformers_greedy(make_model, tokenizer):
    model = make_model()
    prompt = torch.tensor([[5, 9, 2, 7]])
    want = model.generate(
        prompt, do_sample=False, max_new_tokens=24, eos_token_id=0, pad_token_id=0,
        suppress_tokens=list(range(60, 64)),
    )[0, 4:]
    (got,) = engine_of(model, tokenizer).generate([Prompt("a", (5, 9, 2, 7))], SamplingConfig(0.0, max_new_tokens=24))
    assert got.completion_ids == tuple(want.tolist())


def test_padded_rows_are_never_sampled(make_model, tokenizer):
    model = make_model(tied=False)
    with torch.no_grad():
        model.lm_head.weight[60:] = 50 * model.lm_head.weight[:4]  # padded rows that would win every draw
    rollouts = engine_of(model, tokenizer).generate(PROMPTS, SAMPLING)
    assert max(max(r.completion_ids) for r in rollouts) < 60
    assert worst_gap(model, rollouts) < 1e-4


def test_sync_replaces_every_weight(make_model, tokenizer):
    old, new = make_model(seed=0), make_model(seed=1)
    engine = engine_of(old, tokenizer)
    engine.generate(PROMPTS, SAMPLING)
    engine.sync_weights(new.state_dict().items())
    rollouts = engine.generate(PROMPTS, SAMPLING)
    assert {r.weight_version for r in rollouts} == {1}
    assert worst_gap(new, rollouts) < 1e-4 < worst_gap(old, rollouts)


@pytest.mark.parametrize("kind", ["qwen3", "qwen3_moe"])
@pytest.mark.parametrize("left_out", ["lm_head.weight", "model.layers.1.self_attn.q_norm.weight"])
def test_sync_refuses_a_missing_weight(make_model, tokenizer, kind, left_out):
    model = make_model(kind)
    engine = engine_of(model, tokenizer)
    with pytest.raises(OnpolError, match=left_out):
        engine.sync_weights((name, w) for name, w in model.state_dict().items() if name != left_out)
    assert engine.weight_version == 0


def test_sync_refuses_an_unknown_weight(make_model, tokenizer):
    with pytest.raises(OnpolError, match="no weight named 'extra'"):
        engine_of(make_model(), tokenizer).sync_weights([("extra", torch.zeros(1))])


def test_sleep_frees_the_cache_and_generation_goes_on(make_model, tokenizer):
    engine = engine_of(make_model(), tokenizer)
    before = engine.generate(PROMPTS, SAMPLING)
    engine.sleep()
    assert engine.decoder.cache.numel() == 0
    engine.wake()
    assert engine.generate(PROMPTS, SAMPLING) == before


def test_bfloat16_stays_near_float32(make_model, tokenizer):
    model = make_model(sharpen=2.0)
    rollouts = engine_of(model, tokenizer, dtype=Dtype.bfloat16).generate(PROMPTS, SAMPLING)
    assert 1e-5 < worst_gap(model, rollouts) < 0.3


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["qwen3", "mistral"])
def test_bfloat16_layers_keep_float32_logits(make_model, tokenizer, kind, tied):
    decoder = engine_of(make_model(kind, sharpen=2.0, tied=tied), tokenizer, dtype=Dtype.bfloat16).decoder
    for logits in (decoder.prefill([(5, 9, 2)]).logits, decode_once(decoder)):
        assert logits.dtype == torch.float32
        assert (logits != logits.bfloat16().float()).float().mean() > 0.9


@pytest.mark.parametrize("kind", ["qwen3", "mistral"])
def test_bfloat16_layers_rotate_by_float32_angles(make_model, tokenizer, kind):
    """bf16 rounds frequencies by up to 0.2%, and the error of the angle grows with the position."""
    model = make_model(kind)
    decoder = engine_of(model, tokenizer, dtype=Dtype.bfloat16).decoder
    rotary = decoder.rotary if kind == "qwen3" else decoder.model.model.rotary_emb
    assert torch.equal(rotary.inv_freq, model.model.rotary_emb.inv_freq)
    assert rotary.inv_freq.dtype == torch.float32


@pytest.mark.parametrize(("free", "kept", "fits"), [(0, 0, 1), (2**21, 0, 4), (0, 2**21, 4), (2**40, 0, 96)])
def test_the_batch_fits_the_memory_that_is_free_or_torchs_own(make_model, tokenizer, monkeypatch, free, kept, fits):
    engine = engine_of(make_model(), tokenizer, max_batch=96)
    engine.device = torch.device("cuda", 0)
    facts = {"mem_get_info": (free, 2**40), "memory_reserved": 2**30 + kept, "memory_allocated": 2**30}
    for name, value in facts.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    prompts = [Prompt("a", tuple([1] * 100))]
    sampling = SamplingConfig(max_new_tokens=2**21 // 12 // engine.decoder.bytes_per_token() - 100)
    assert engine._slots(prompts, sampling) == fits
    engine.decoder.reserve(1, 100)  # the cache that the last call left can be used again
    assert engine.decoder.held_bytes() == 100 * engine.decoder.bytes_per_token()


def test_an_idle_cache_takes_the_shape_that_is_asked_for(make_model, tokenizer):
    """Many short sequences before, few long ones now: not many long ones."""
    decoder = engine_of(make_model(), tokenizer).decoder
    decoder.reserve(16, 20)
    decoder.reserve(2, 200)
    assert decoder.held_bytes() == 2 * 200 * decoder.bytes_per_token()
    decoder.admit(decoder.prefill([(5, 9, 2)]), [0])
    decoder.reserve(4, 100)  # what is being decoded stays
    assert decoder.held_bytes() == 4 * 200 * decoder.bytes_per_token()


def test_a_module_sampler_leaves_the_policys_configuration_alone(make_model, tokenizer):
    model = make_model("mistral")
    before = model.config.to_dict()
    engine_of(model, tokenizer, dtype=Dtype.bfloat16)
    assert model.config.to_dict() == before


def decode_once(decoder):
    decoder.admit(decoder.prefill([(5, 9, 2)]), [0])
    return decoder.decode(torch.tensor([7]))


def test_prompts_that_cannot_be_answered_are_refused(make_model, tokenizer):
    engine = engine_of(make_model(), tokenizer)
    for prompt, message in (
        (Prompt("a", ()), "empty"),
        (Prompt("a", (60,)), "different tokenizers"),
        (Prompt("a", tuple([1] * 240)), "context of 256"),
    ):
        with pytest.raises(OnpolError, match=message):
            engine.generate([prompt], SAMPLING)


def test_a_tokenizer_larger_than_the_model_is_refused(make_model, tokenizer):
    with pytest.raises(OnpolError, match="do not belong together"):
        engine_of(make_model(), [0] * 65)


def test_repetition_penalty_follows_each_sequence(make_model, tokenizer):
    model = make_model(sharpen=2.0)
    sampling = SamplingConfig(repetition_penalty=1.7, max_new_tokens=12)
    for rollout in engine_of(model, tokenizer).generate(PROMPTS, sampling):
        ids = rollout.prompt_ids
        for token, got in zip(rollout.completion_ids, rollout.sampler_logprobs, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1, :60]
            for seen in set(ids):
                logits[seen] = logits[seen] / 1.7 if logits[seen] > 0 else logits[seen] * 1.7
            assert math.isclose(logits.log_softmax(-1)[token].item(), got, abs_tol=1e-4)
            ids = (*ids, token)


def test_adapters_are_merged(make_model, tokenizer):
    from peft import LoraConfig, inject_adapter_in_model

    model = make_model(sharpen=3.0)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = inject_adapter_in_model(config, model)
    rollouts = engine_of(adapted, tokenizer).generate(PROMPTS, SAMPLING)
    assert worst_gap(adapted, rollouts) < 1e-4
    assert worst_gap(make_model(sharpen=3.0), rollouts) > 1e-3
