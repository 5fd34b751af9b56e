"""Requests to vLLM leave nothing to defaults, and answers are not believed unchecked."""

import json
from dataclasses import replace

import pytest
import torch

from onpol_cli.core.config import Dtype, RolloutConfig, SamplingConfig
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.core.types import Finish
from onpol_cli.rollout.engine import Prompt
from onpol_cli.rollout.server_process import server_arguments
from onpol_cli.rollout.teacher import ServerScorer, read_logprobs, request_body
from onpol_cli.rollout.vllm_params import (
    CompleteWeights,
    adapter_rank,
    hf_overrides,
    make_rollout,
    real_rows,
    request_fields,
)

PROMPT = Prompt("p", (1, 2), samples=2, seed=5, limits=(9, 30))


def answer(ids, logprobs):
    return make_rollout(PROMPT, 1, ids, logprobs, "text", eos=3, vocabulary=10, version=4)


def test_every_sampling_parameter_is_sent():
    fields = request_fields(PROMPT, 0, SamplingConfig(0.7, 0.8, 20, 0.1, 1.1, 16), eos=3)
    assert fields == {
        "temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "seed": PROMPT.sample_seed(0) % (2**63 - 1),
        "max_tokens": 9, "min_tokens": 0, "n": 1, "logprobs": 0, "ignore_eos": True, "stop_token_ids": [3],
    }
    assert request_fields(PROMPT, 1, SamplingConfig(), None)["top_k"] == 0


def test_reduced_layers_are_asked_for_with_float32_logits():
    half = RolloutConfig(dtype=Dtype.bfloat16)
    assert hf_overrides(RolloutConfig()) == {} and hf_overrides(half) == {"head_dtype": "float32"}
    words = server_arguments(half, 256, 1, 0)
    assert json.loads(words[words.index("--hf-overrides") + 1]) == hf_overrides(half)
    assert "--hf-overrides" not in server_arguments(RolloutConfig(), 256, 1, 0)


def test_a_good_answer_becomes_a_rollout():
    rollout = answer([4, 3], [-0.5, -1.0])
    assert (rollout.sample, rollout.finish, rollout.weight_version) == (1, Finish.STOP, 4)
    assert answer([4], [0.0]).finish is Finish.LENGTH


@pytest.mark.parametrize(
    ("ids", "logprobs", "message"),
    [
        ([], [], "no token"),
        ([4, 5], [-0.5], "usable log-prob"),
        ([4, 5], [-0.5, None], "usable log-prob"),
        ([4], [float("nan")], "usable log-prob"),
        ([4], [0.5], "usable log-prob"),
        ([10], [-0.5], "padded rows"),
    ],
)
def test_bad_answers_end_the_run(ids, logprobs, message):
    with pytest.raises(RunFailed, match=message):
        answer(ids, logprobs)


def test_padded_rows_are_cut_from_both_matrices():
    names = ("model.embed_tokens.weight", "lm_head.weight", "x")
    cut = dict(real_rows([(name, torch.ones(8, 2)) for name in names], 5))
    assert [len(cut[name]) for name in names] == [5, 5, 8]


def test_a_sync_without_the_output_matrix_is_refused():
    with pytest.raises(OnpolError, match=r"lm_head\.weight"):
        list(CompleteWeights([("a", torch.ones(1))], set()))
    complete = CompleteWeights([("a", torch.ones(1)), ("lm_head.weight", torch.ones(1))], {"a"})
    assert len(list(complete)) == 2
    with pytest.raises(OnpolError, match="first 'b'"):
        list(CompleteWeights([("lm_head.weight", torch.ones(1))], {"b"}))


def test_teacher_logprobs_are_read_by_position_and_token():
    entries = [None, {"2": {"logprob": -9.0}}, {"3": {"logprob": -0.25}}, {"9": {"logprob": 0}, "4": {"logprob": -0.5}}]
    assert read_logprobs(entries, ((1, 2), (3, 4)), "url").tolist() == [-0.25, -0.5]


@pytest.mark.parametrize(
    "entries",
    [
        None,
        [None, {"2": {"logprob": -1.0}}, {"3": {"logprob": -1.0}}],
        [None, {"2": {"logprob": -1.0}}, {"3": {"logprob": -1.0}}, None],
        [None, {"2": {"logprob": -1.0}}, {"3": {"logprob": -1.0}}, {"5": {"logprob": -1.0}}],
        [None, {"2": {"logprob": -1.0}}, {"3": {"logprob": -1.0}}, {"4": {"logprob": None}}],
        [None, {"2": {"logprob": -1.0}}, {"3": {"logprob": -1.0}}, {"4": {"logprob": float("-inf")}}],
    ],
)
def test_a_missing_teacher_logprob_is_an_error(entries):
    with pytest.raises(OnpolError, match=r"Every position is required|never taken as 0"):
        read_logprobs(entries, ((1, 2), (3, 4)), "url")


def test_teacher_requests_score_at_temperature_one():
    body = request_body("m", ((1, 2), (3,)))
    assert (body["prompt"], body["prompt_logprobs"], body["temperature"], body["max_tokens"]) == ([1, 2, 3], 0, 1.0, 1)
    with pytest.raises(OnpolError, match="always at temperature 1"):
        ServerScorer(None, "", None, temperature=0.7)


def test_adapters_on_a_gpu_want_bf16_layers():
    config = RolloutConfig(max_lora_rank=5)
    assert adapter_rank(config, gpu=False) == 8
    with pytest.raises(OnpolError, match=r"needs rollout\.dtype=bfloat16.*rollout\.lora_sync=merged"):
        adapter_rank(config, gpu=True)
    assert adapter_rank(replace(config, dtype=Dtype.bfloat16), gpu=True) == 8
    with pytest.raises(OnpolError, match="beyond vLLM's 512"):
        adapter_rank(RolloutConfig(max_lora_rank=513), gpu=False)
