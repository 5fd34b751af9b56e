"""Which way weights go, on which GPUs servers run, and that a transfer that hangs ends the run."""

import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from onpol_cli.core.config import LoraSync, RolloutConfig, WeightTransfer
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.core.placement import server_gpus
from onpol_cli.rollout import transfer, vllm_env
from onpol_cli.rollout.transfer import (
    Transfer,
    WeightStream,
    chosen,
    local_gpus,
    server_options,
    server_variables,
)

IPC, NCCL, RELOAD = WeightTransfer.ipc, WeightTransfer.nccl, WeightTransfer.reload


@pytest.mark.parametrize("kind", [IPC, NCCL])
def test_without_a_gpu_weights_go_through_a_folder(kind, monkeypatch):
    monkeypatch.setattr(transfer, "on_gpu", lambda: False)
    assert chosen(RolloutConfig()) is RELOAD
    with pytest.raises(OnpolError, match=r"here is no GPU\. Use rollout\.weight_transfer=reload"):
        chosen(RolloutConfig(weight_transfer=kind))


def test_on_a_gpu_own_servers_share_its_memory(monkeypatch):
    monkeypatch.setattr(transfer, "on_gpu", lambda: True)
    assert chosen(RolloutConfig()) is IPC
    assert chosen(RolloutConfig(local_servers=2)) is RELOAD, "each would release the same export of memory"
    with pytest.raises(OnpolError, match=r"there are 2\. Use rollout\.weight_transfer=nccl or reload"):
        chosen(RolloutConfig(weight_transfer=IPC, local_servers=2))
    assert chosen(RolloutConfig(servers=["http://far:1"])) is RELOAD, "started by others, for all one knows without it"
    assert chosen(RolloutConfig(lora_sync=LoraSync.adapter)) is RELOAD, "whole weights never move"
    assert chosen(RolloutConfig(tensor_parallel=2)) is RELOAD
    assert chosen(RolloutConfig(weight_transfer=NCCL, tensor_parallel=2)) is NCCL
    with pytest.raises(OnpolError, match=r"Use rollout\.weight_transfer=nccl"):
        chosen(RolloutConfig(weight_transfer=IPC, tensor_parallel=2))


def test_a_server_takes_a_free_gpu_rather_than_the_learners(monkeypatch):
    monkeypatch.setattr(transfer, "on_gpu", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    assert chosen(RolloutConfig()) is RELOAD
    assert chosen(RolloutConfig(weight_transfer=IPC)) is IPC
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert chosen(RolloutConfig()) is IPC


@pytest.mark.parametrize("urls", [["http://127.0.0.1:8000", "http://far:8000"], ["http://far:8000"]])
def test_workers_of_all_machines_are_told_an_address_that_they_reach(urls, monkeypatch):
    told = []
    monkeypatch.setattr(transfer, "address_towards", lambda url: ("10.0.0.7" if "far" in url else "127.0.0.1", 1234))
    monkeypatch.setattr(transfer, "trainer_info", lambda kind, largest, address, *rest: told.append(address))
    factory = SimpleNamespace(trainer_init=lambda *arguments, **named: None)
    weight_transfer = SimpleNamespace(WeightTransferTrainerFactory=factory)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.distributed", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer", weight_transfer)
    stream = WeightStream([("a", (2, 3), torch.bfloat16)], torch.device("cpu"))
    Transfer(NCCL, stream, 1, 1.0)._connect([SimpleNamespace(url=url) for url in urls])
    assert told == ["10.0.0.7"]


def test_a_vllm_before_the_trainers_side_of_transfer_goes_through_a_folder(monkeypatch):
    monkeypatch.setattr(transfer, "on_gpu", lambda: True)
    monkeypatch.setattr(vllm_env, "installed_version", lambda *names: "0.29.0")
    assert chosen(RolloutConfig()) is RELOAD
    assert chosen(RolloutConfig(weight_transfer=RELOAD)) is RELOAD
    with pytest.raises(OnpolError, match=r"0\.30 or newer is needed, 0\.29\.0 is installed"):
        chosen(RolloutConfig(weight_transfer=NCCL))
    monkeypatch.setattr(vllm_env, "installed_version", lambda *names: "0.30.0")
    assert chosen(RolloutConfig()) is IPC


def test_what_servers_are_started_with():
    assert server_options(RELOAD) == [] and server_variables(NCCL) == {}
    assert server_options(IPC) == ["--weight-transfer-config", '{"backend": "ipc"}']
    assert server_variables(IPC) == {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}


def test_servers_of_an_nccl_group_have_gpus_of_their_own():
    visible = ["4", "5", "6", "7"]
    assert [server_gpus(NCCL, number, 1, visible, [1]) for number in (0, 1, 2)] == [["4"], ["6"], ["7"]]
    assert server_gpus(IPC, 0, 1, visible, [1]) == server_gpus(IPC, 1, 1, visible, [1]) == ["5"]
    with pytest.raises(OnpolError, match="4 are visible"):
        server_gpus(NCCL, 1, 2, visible, [1])


def test_servers_that_read_a_folder_take_free_gpus_first():
    visible = ["4", "5", "6", "7"]
    assert [server_gpus(RELOAD, number, 1, visible, [0, 1]) for number in range(5)] == [[n] for n in "67456"]
    assert [server_gpus(RELOAD, number, 2, visible, [0, 1]) for number in range(2)] == [["6", "7"], ["4", "5"]]
    assert server_gpus(RELOAD, 3, 1, ["4"], [0]) == ["4"], "one GPU serves everybody"
    with pytest.raises(OnpolError, match=r"4 are visible\. Set rollout\.tensor_parallel=4"):
        server_gpus(RELOAD, 0, 8, visible, [0])


def test_gpus_of_local_servers_are_those_of_the_environment(monkeypatch):
    assert local_gpus(RELOAD, 0, 1) == [], "no GPU here"
    monkeypatch.setattr(transfer, "on_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [local_gpus(RELOAD, number, 1) for number in range(3)] == [["0"], ["2"], ["1"]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    assert local_gpus(IPC, 0, 1) == ["6"]
    monkeypatch.setattr(transfer, "several_processes", lambda: True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert [local_gpus(RELOAD, number, 1) for number in range(3)] == [["7"], ["5"], ["6"]]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert local_gpus(RELOAD, 0, 1) == ["5"], "Slurm shows each task its own"


class Slow(Transfer):
    def _send(self, endpoints, weights):
        weights.wait(10)
        raise RuntimeError("peer is gone")


def test_a_transfer_ends_in_time_and_says_how_to_go_on():
    stream = WeightStream([("a", (2, 3), torch.bfloat16)], torch.device("cpu"))
    assert stream.largest == 12
    release = threading.Event()
    with pytest.raises(RunFailed, match=r"not done in 0 s .*rollout\.weight_transfer=reload and --resume"):
        Slow(NCCL, stream, 1, 0.05).send([], release)
    release.set()
    with pytest.raises(RunFailed, match="peer is gone"):
        Slow(NCCL, stream, 1, 30).send([], release)
