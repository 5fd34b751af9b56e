"""Weights from GPU to GPU: everything but the GPUs, against the installed vLLM's own classes and routes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("transfer_worker.py")


@pytest.fixture(scope="module")
def record(vllm_here, clean_environment, tmp_path_factory):
    """Made in a process of its own: importing vLLM changes the one that does it."""
    out = tmp_path_factory.mktemp("transfer") / "record.json"
    command = [sys.executable, str(WORKER), str(out)]
    done = subprocess.run(command, env=clean_environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def test_vllms_nccl_trainer_drives_all_servers_through_its_own_routes(record):
    found = record["nccl"]
    assert found["order"] == ["init", "start", "update", "finish", "start", "update", "finish"]
    assert found["rank_offsets"] == [1, 3], "every server's first rank, two workers each"
    assert found["update"] == [["a", "b", "steps"], ["bfloat16", "bfloat16", "int64"], [[3, 4], [4, 3], [1]]]


def test_the_stream_sends_what_it_announced_and_once_a_sync(record):
    found = record["nccl"]
    assert found["sent_as_announced"] and found["sent"] == 6 + 2
    assert "yielded 2 parameters but metadata() declared 3" in found["incomplete"]


def test_memory_handles_arrive_through_json(record):
    assert record["ipc"] == {"packed": [True, True], "handle_arrived": True}


def test_vllm_knows_the_backends_and_the_options_of_our_servers(record):
    assert record["backends"] == record["options"] == ["nccl", "ipc"]
    assert record["known"] == record["sends"] == [True, True] and record["plain"]
    assert record["adapter_options"] == [True, 8, False]
