"""CUDA vLLM: the course of events that every engine goes through, sleep, and each way of sending weights."""

from importlib.util import find_spec

import pytest
import torch
from needed import missing
from vllm_toys import UPDATES, inprocess, write_toy

GAP = 0.02
"""Nats: `rollout.canary_tolerance`'s default for float32; CUDA's attention kernels are not the learner's."""


@pytest.fixture(scope="session")
def vllm_there(device):
    if find_spec("vllm") is None:
        missing("vllm is not installed: pip install 'onpol[vllm]'")


@pytest.fixture(scope="session")
def record(vllm_there, tmp_path_factory):
    """What vLLM in process did, in a process of its own."""
    toys = [write_toy(tmp_path_factory.mktemp(name), real=name == "real") for name in ("real", "small")]
    return inprocess(*toys, tmp_path_factory.mktemp("record") / "record.json")


def test_the_course_of_events(record):
    assert record["version"] == UPDATES and record["first"] == record["again"] and record["texts_match"]
    names = ("gap_before", "gap_after_updates", "gap_after_recovery", "canary", "flood_gap", "greedy_gap")
    assert max(record[name] for name in names) < GAP
    assert all(record[name] for name in ("stale", "half_stale", "cut", "foreign_token"))
    assert max(record["tiny"]["gap_before"], record["tiny"]["gap_after_updates"]) < GAP


def test_adapters_arrive(record):
    adapted = record["adapters"]
    assert len(adapted["kls"]) == 3 and max(adapted["kls"]) < adapted["kl_none_sent"] / 10
    assert all(adapted[name] for name in ("none_sent", "stale", "refused"))


def test_a_sync_wakes_a_sleeper(record):
    assert record["gap_after_sleep"] < GAP


def test_sleep_gives_memory_back(cuda, record):
    assert record["asleep_free"] > record["awake_free"] + 2**30


STUDENT = ("distill", "student", "tutor=tiny", "method=opd", "method.teacher_temperature=2", "method.steps=4")


def assert_healthy(rows, gap=GAP):
    assert len(rows) == 4 and max(row["canary/max_abs"] for row in rows) < gap
    assert max(row["kl/mismatch"] for row in rows) < 1e-3


def test_a_run_samples_in_process(vllm_there, onpol):
    assert_healthy(onpol("inprocess", *STUDENT, "rollout=vllm", "rollout.dtype=float32"))


def test_a_run_samples_from_adapters_in_process(vllm_there, onpol):
    words = ("model.lora.rank=8", "rollout.lora_sync=adapter", "rollout.dtype=bfloat16", "rollout.canary_tolerance=0.5")
    assert_healthy(onpol("adapters", *STUDENT, "rollout=vllm", *words), gap=0.5)


def test_each_learner_process_samples_on_its_own_gpu(cuda, vllm_there, onpol):
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs, and torch sees {torch.cuda.device_count()}")
    assert_healthy(onpol("two", *STUDENT, "rollout=vllm", "rollout.dtype=float32", "parallel.nproc=2"))


@pytest.mark.parametrize("transfer", ["ipc", "reload"])
def test_a_run_samples_from_a_server_on_its_own_gpu(cuda, vllm_there, onpol, transfer):
    words = ("rollout=vllm_server", "rollout.dtype=float32", "rollout.gpu_memory=0.3")
    assert_healthy(onpol(transfer, *STUDENT, *words, f"rollout.weight_transfer={transfer}"))


def test_a_run_sends_weights_by_nccl_to_another_gpu(cuda, vllm_there, onpol):
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs, and torch sees {torch.cuda.device_count()}")
    words = ("rollout=vllm_server", "rollout.dtype=float32", "rollout.weight_transfer=nccl")
    assert_healthy(onpol("nccl", *STUDENT, *words))
