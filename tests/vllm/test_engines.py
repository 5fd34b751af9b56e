"""All three engines: one course of events for each, then what only servers do.

One file, because the engines are started once a session and `--dist loadfile` gives a file to one worker.
"""

import os
import signal
import threading

import httpx
import pytest
import torch
from vllm_toys import REAL_TOKENS, TOLERANCE, UPDATES, prompts, scorer

from onpol_cli.core.config import LearnerConfig, RolloutConfig, SamplingConfig
from onpol_cli.core.errors import OnpolError
from onpol_cli.learner.scorer import LocalScorer
from onpol_cli.learner.weights import merged_weights
from onpol_cli.rollout.health import mismatch, score_rollouts
from onpol_cli.rollout.teacher import ServerScorer

ENGINES = ["hf_record", "inprocess_record", "server_record"]


@pytest.fixture(params=ENGINES)
def record(request):
    return request.getfixturevalue(request.param)


def test_rollouts_come_in_order_and_repeat(record):
    assert record["order"] == [[name, sample] for name in "abc" for sample in range(3)]
    assert record["first"] == record["again"]
    assert len({tuple(ids) for ids in record["first"]}) == 9, "a hostile top_k=1 would make a group's samples equal"
    assert record["texts_match"]


def test_sampler_logprobs_are_the_learners_before_and_after_updates(record):
    assert record["version_at_start"] == 0 and record["version"] == UPDATES
    assert record["gap_before"] < TOLERANCE
    assert record["gap_after_updates"] < TOLERANCE
    assert record["canary"] < TOLERANCE


def test_more_prompts_than_one_step_computes(record):
    # a prompt cut over two steps would end the CPU build of vLLM: a seeded draw cannot be taken back
    assert record["flood_gap"] < TOLERANCE


def test_padded_rows_are_never_sampled(record):
    assert record["largest_id"] < REAL_TOKENS


def test_greedy_decoding_takes_the_likeliest_token(record):
    assert record["greedy_gap"] < TOLERANCE


def test_greedy_decoding_is_the_same_in_all_engines(hf_record, inprocess_record, server_record):
    assert hf_record["greedy"] == inprocess_record["greedy"] == server_record["greedy"]


def test_the_trained_model_is_sampled_like_the_learner(hf_tiny_record, inprocess_record):
    records = [hf_tiny_record, inprocess_record["tiny"]]
    assert all(record["gap_before"] < TOLERANCE and record["gap_after_updates"] < TOLERANCE for record in records)
    assert records[0]["greedy"] == records[1]["greedy"]


def test_a_length_limit_or_the_tokenizers_eos_ends_a_rollout(record):
    # the hostile generation_config.json names 45 other tokens as ends
    assert all(finish == "stop" or length == 10 for finish, length, _ in record["finishes"])


def test_a_stale_sampler_is_caught(record):
    assert "Canary after weight sync 20" in record["stale"] and "a sync did not arrive in full" in record["stale"]


def test_a_half_stale_sampler_is_caught(record):
    assert "lm_head.weight" in record["half_stale"]
    assert record["gap_after_recovery"] < TOLERANCE


def test_a_cut_distribution_is_caught(record):
    assert "cuts its distribution" in record["cut"]


def test_a_token_of_another_tokenizer_is_caught(record):
    assert "different tokenizers" in record["foreign_token"]


def test_a_sync_wakes_a_sleeper(inprocess_record):
    assert inprocess_record["gap_after_sleep"] < TOLERANCE


def test_bfloat16_layers_keep_float32_logits(inprocess_record):
    kl = inprocess_record["halves"]
    assert 0 < kl["float32 logits"] < 0.85 * kl["as by default"]


def test_vllm_in_process_leaves_the_process_as_it_was(inprocess_record):
    assert inprocess_record["environment_kept"] and inprocess_record["threads_kept"]
    assert inprocess_record["closed"] and inprocess_record["log"]
    assert inprocess_record["stdout"] == "", "results go to stdout and nothing else"


def test_an_adapter_is_sampled_like_merged_weights(inprocess_record):
    record = inprocess_record["adapters"]
    assert "Canary after weight sync 0" in record["none_sent"], "the engine must hold the base alone"
    assert max(record["gaps"]) < TOLERANCE and record["version"] == UPDATES
    assert record["greedy"] == record["greedy_merged"]


def test_an_adapter_that_was_not_sent_is_caught(inprocess_record):
    record = inprocess_record["adapters"]
    assert "Canary after weight sync 20" in record["stale"]
    assert "needs vLLM" in record["refused"] and record["folder_gone"]


def urls(engine):
    return [endpoint.url for endpoint in engine.pool.endpoints if endpoint.alive]


def test_teacher_logprobs_agree_between_server_and_learner(two_servers, server_record):
    engine, model, tokenizer = two_servers
    sequences = [((5, 6, 7), (8, 9)), (tuple(range(20, 60)), (3,)), ((1,), tuple(range(100, 130)))]
    engine.sync_weights(merged_weights(model))
    with ServerScorer(RolloutConfig(teacher_servers=urls(engine)), "", tokenizer) as teacher:
        served = teacher.logprobs(sequences)
        with pytest.raises(OnpolError, match=r"method\.scorer=learner"):
            teacher.hidden(sequences)
    local = LocalScorer(model, len(tokenizer), LearnerConfig(), torch.device("cpu")).logprobs(sequences)
    plain = scorer(model, len(tokenizer))(sequences)
    for one, two, three in zip(served, local, plain, strict=True):
        assert torch.allclose(one, two, atol=TOLERANCE) and torch.allclose(one, three, atol=TOLERANCE)


def test_weights_changed_by_somebody_else_are_put_right(two_servers, server_record):
    engine, model, tokenizer = two_servers
    engine.pool.alive()[0].call("POST", "/update_weight_version", {"new_version": "another run"})
    rollouts = engine.generate(prompts(), SamplingConfig(max_new_tokens=4))
    assert mismatch(rollouts, score_rollouts(rollouts, scorer(model, len(tokenizer)))).largest < TOLERANCE
    assert {endpoint.weight_version() for endpoint in engine.pool.alive()} == {engine.label}


def test_one_server_killed_under_way_and_the_run_goes_on(two_servers, server_record):
    engine, model, tokenizer = two_servers
    victim = engine.started[0]
    killer = threading.Timer(0.3, os.killpg, (victim.pid, signal.SIGKILL))
    killer.start()
    sampling = SamplingConfig(max_new_tokens=24)
    rollouts = engine.generate(prompts(samples=16), sampling)
    killer.join()
    again = engine.generate(prompts(samples=2), sampling)
    assert (len(rollouts), len(again)) == (48, 6), "nothing is lost"
    assert [endpoint.alive for endpoint in engine.pool.endpoints] == [False, True]
    score = scorer(model, len(tokenizer))
    assert mismatch(rollouts, score_rollouts(rollouts, score)).largest < TOLERANCE
    engine.sync_weights(merged_weights(model))
    assert urls(engine) == [engine.started[1].url]


def test_servers_listen_on_loopback_only(two_servers):
    engine, *_ = two_servers
    assert all(url.startswith("http://127.0.0.1:") for url in urls(engine))
    assert httpx.get(f"{urls(engine)[-1]}/health", trust_env=False, timeout=30).status_code == 200
