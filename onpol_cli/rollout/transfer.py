"""Weights from the learner's GPU into those of vLLM servers, through vLLM's own weight-transfer engine.

Owns the choice of a backend (`rollout.weight_transfer`), what servers must be started with for it, the control
plane over HTTP, and the stream that vLLM's trainer side reads. `ipc`: learner and server share one GPU and
handles of memory travel; `nccl`: the server has GPUs of its own and weights are broadcast. Written to
`vllm.distributed.weight_transfer` of vLLM 0.30 to 0.32, tested against its classes and HTTP routes; not yet run
on a GPU. Without one, weights go through a folder (`server_client.Endpoint.load`), and an engine in this
process is handed the tensors themselves (`vllm.py`), so that neither comes here.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

from onpol_cli.core.config import RolloutConfig, WeightTransfer
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.core.placement import automatic_transfer, server_gpus
from onpol_cli.rollout.server_client import Endpoint
from onpol_cli.rollout.vllm_env import TRANSFER_SINCE, on_gpu, several_processes, too_old

BUFFER_BYTES = 2**28
"""Size of a packed piece; one tensor that is larger makes it as large as itself."""


def chosen(config: RolloutConfig) -> WeightTransfer:
    """What `rollout.weight_transfer` means here; for `auto` see `automatic_transfer`.

    Raises:
        OnpolError: `ipc` or `nccl` without a GPU, with several learner processes, or with too old a vLLM; `ipc` to
            several GPUs or servers.
    """
    asked, alone = config.weight_transfer, not several_processes()
    old = too_old(TRANSFER_SINCE)
    if asked is WeightTransfer.auto:
        return automatic_transfer(config, alone, len(visible_gpus())) if on_gpu() and not old else WeightTransfer.reload
    if asked is not WeightTransfer.reload and not (on_gpu() and alone):
        raise OnpolError(
            f"rollout.weight_transfer={asked.value} moves weights between GPUs for one learner process; here is "
            f"{'no GPU' if alone else 'more than one process'}. Use rollout.weight_transfer=reload."
        )
    if asked is not WeightTransfer.reload and old:
        setting = f"rollout.weight_transfer={asked.value}"
        raise OnpolError(f"{setting} needs another vLLM: {old}. Use rollout.weight_transfer=reload.")
    if asked is WeightTransfer.ipc and config.tensor_parallel > 1:
        raise OnpolError(
            f"rollout.weight_transfer=ipc reaches the learner's own GPU only, and rollout.tensor_parallel is "
            f"{config.tensor_parallel}. Use rollout.weight_transfer=nccl."
        )
    servers = len(config.servers) or config.local_servers
    if asked is WeightTransfer.ipc and servers > 1:
        raise OnpolError(
            f"rollout.weight_transfer=ipc is for one server on the learner's own GPU, and there are {servers}. "
            "Use rollout.weight_transfer=nccl or reload."
        )
    return asked


def visible_gpus() -> list[str]:
    """GPUs that this process may use, by their names in CUDA_VISIBLE_DEVICES."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names.split(",") if names else [str(number) for number in range(torch.cuda.device_count())]


def server_options(kind: WeightTransfer) -> list[str]:
    """Command-line options of a server that takes part."""
    return [] if kind is WeightTransfer.reload else ["--weight-transfer-config", json.dumps({"backend": kind.value})]


def server_variables(kind: WeightTransfer) -> dict[str, str]:
    """Environment of a server that takes part: memory handles travel pickled, over loopback only."""
    return {"VLLM_ALLOW_INSECURE_SERIALIZATION": "1"} if kind is WeightTransfer.ipc else {}


def local_gpus(kind: WeightTransfer, number: int, workers: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of local server `number`, as `server_gpus` has it; empty on a machine without a GPU."""
    if not on_gpu():
        return []
    if several_processes():  # torchrun: process i of this machine computes on GPU i
        learners = range(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    else:
        learners = range(torch.cuda.current_device(), torch.cuda.current_device() + 1)
    return server_gpus(kind, number, workers, visible_gpus(), learners)


class ServersClient:
    """vLLM's `VLLMWeightSyncClient`, for several servers that receive at once.

    Args:
        endpoints: the servers.
        workers: processes of each, which count as ranks 1 + place * workers, ... of an NCCL group.
    """

    def __init__(self, endpoints: Sequence[Endpoint], workers: int) -> None:
        self.endpoints, self.workers = list(endpoints), workers

    def _all(self, path: str, body: Callable[[int], Any]) -> None:
        """One request to every server at the same time: NCCL makes them wait for each other."""

        def ask(place: int) -> None:
            self.endpoints[place].call("POST", path, body(place))

        with ThreadPoolExecutor(max_workers=len(self.endpoints)) as threads:
            list(threads.map(ask, range(len(self.endpoints))))

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Handshake. vLLM's trainer knows of one server, so that each one's first rank is filled in here."""

        def placed(place: int) -> dict[str, Any]:
            ranks = {"rank_offset": 1 + place * self.workers} if "rank_offset" in init_info else {}
            return {"init_info": init_info | ranks}

        self._all("/init_weight_transfer_engine", placed)

    def start_weight_update(self) -> None:
        """Make ready to receive."""
        self._all("/start_weight_update", lambda place: None)

    def update_weights(self, update_info: Any) -> None:
        """Receive one piece; returns when all have it."""
        body = {"update_info": json_ready(update_info)}
        self._all("/update_weights", lambda place: body)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """All pieces are there."""
        body = None if weight_version is None else {"weight_version": weight_version}
        self._all("/finish_weight_update", lambda place: body)


def json_ready(update_info: dict[str, Any]) -> dict[str, Any]:
    """`update_info` with CUDA IPC handles, which are not JSON, in the pickled field that vLLM reads."""
    handles = update_info.get("ipc_handles")
    if handles is None:
        return update_info
    rest = {name: value for name, value in update_info.items() if name != "ipc_handles"}
    return rest | {"ipc_handles_pickled": base64.b64encode(pickle.dumps(handles)).decode("ascii")}


class WeightStream:
    """vLLM's `WeightSource` over one pass of weights a sync.

    Args:
        shapes: name, shape and number format on the wire of every weight, in the order in which they come.
        device: where they must lie.
    """

    def __init__(self, shapes: Sequence[tuple[str, tuple[int, ...], torch.dtype]], device: torch.device) -> None:
        self.shapes, self.device = list(shapes), device
        self.current: Iterable[tuple[str, Tensor]] | None = None

    def metadata(self) -> list[Any]:
        """What a pass will yield."""
        from vllm.distributed.weight_transfer import ParamMeta

        return [ParamMeta(name, dtype, shape) for name, shape, dtype in self.shapes]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        assert self.current is not None, "one pass a sync"
        weights, self.current = self.current, None
        formats = {name: dtype for name, _, dtype in self.shapes}
        for name, tensor in weights:
            yield name, tensor.detach().to(self.device, formats.get(name))

    @property
    def largest(self) -> int:
        """Bytes of the largest weight."""
        return max(torch.Size(shape).numel() * dtype.itemsize for _, shape, dtype in self.shapes)


def wire_shapes(
    weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype
) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    """What `WeightStream` announces for `weights`: floating-point ones travel as `dtype`."""
    return [(n, tuple(t.shape), dtype if t.is_floating_point() else t.dtype) for n, t in weights]


def trainer_info(kind: WeightTransfer, largest: int, address: str, port: int, ranks: int) -> Any:
    """vLLM's description of the sending side.

    Args:
        largest: bytes of the largest weight, which must fit one packed piece of `ipc`.
        address: of this machine, as the servers see it (nccl).
        port: free port there (nccl).
        ranks: this process and all workers of all servers (nccl).
    """
    size = max(BUFFER_BYTES, largest)
    if kind is WeightTransfer.nccl:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        return NCCLTrainerInitInfo(address, port, ranks, packed=True, packed_buffer_size_bytes=size, rank=0)
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

    return IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=size, rank=0)


def address_towards(url: str) -> tuple[str, int]:
    """This machine's address on the way to `url`, and a free port there."""
    parts = urlsplit(url)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # connecting a datagram socket sends nothing
        probe.connect((parts.hostname or "127.0.0.1", parts.port or 80))
        address = str(probe.getsockname()[0])
    with socket.socket() as free:
        free.bind((address, 0))
        return address, int(free.getsockname()[1])


class Transfer:
    """The sending side of one run.

    Args:
        kind: ipc or nccl.
        stream: describes the weights.
        workers: processes of each server.
        timeout_s: bound on the handshake and on every transfer.
    """

    def __init__(self, kind: WeightTransfer, stream: WeightStream, workers: int, timeout_s: float) -> None:
        self.kind, self.stream, self.workers, self.timeout_s = kind, stream, workers, timeout_s
        self.trainer: Any = None
        self.urls: list[str] = []

    def send(self, endpoints: Sequence[Endpoint], weights: Iterable[tuple[str, Tensor]]) -> None:
        """All of `weights` into every server, which must be paused.

        Raises:
            RunFailed: it did not work, not in time, or a server of an NCCL group is gone.
        """
        self._bounded(lambda: self._send(endpoints, weights))

    def _send(self, endpoints: Sequence[Endpoint], weights: Iterable[tuple[str, Tensor]]) -> None:
        torch.cuda.set_device(self.stream.device)
        torch.cuda.synchronize()  # vLLM packs on streams of its own, which do not wait for the optimiser's
        urls = [endpoint.url for endpoint in endpoints]
        if self.trainer is None or (urls != self.urls and self.kind is WeightTransfer.ipc):
            self._connect(endpoints)
        if urls != self.urls:
            raise RunFailed("a server of the NCCL group is gone, and the group cannot go on without it")
        self.stream.current = weights
        self.trainer.send_weights()

    def _connect(self, endpoints: Sequence[Endpoint]) -> None:
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory

        self.urls = [endpoint.url for endpoint in endpoints]
        ways = [address_towards(url) for url in self.urls]
        # All workers meet at one address: loopback is none for a server on another machine.
        address, port = next((way for way in ways if not ip_address(way[0]).is_loopback), ways[0])
        info = trainer_info(self.kind, self.stream.largest, address, port, 1 + len(self.urls) * self.workers)
        client = ServersClient(endpoints, self.workers)
        source: Any = self.stream
        self.trainer = WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)

    def _bounded(self, act: Callable[[], None]) -> None:
        """`act` in a thread that is left behind when it takes too long: nothing ends a collective whose peer died."""
        failures: list[BaseException] = []

        def run() -> None:
            try:
                act()
            except BaseException as error:  # handed over to the caller
                failures.append(error)

        thread = threading.Thread(target=run, name="onpol-weights", daemon=True)
        thread.start()
        thread.join(self.timeout_s)
        reason = f"not done in {self.timeout_s:.0f} s (rollout.timeout_s)" if thread.is_alive() else None
        if failures and isinstance(failures[0], OnpolError) and not isinstance(failures[0], RunFailed):
            raise failures[0]
        if reason or failures:
            raise RunFailed(
                f"Weight transfer ({self.kind.value}) failed: {reason or failures[0]}. The last checkpoint is kept; go "
                "on with rollout.weight_transfer=reload and --resume."
            ) from (failures[0] if failures else None)

    def close(self) -> None:
        """Leave the group."""
        if self.trainer is not None:
            self.trainer.shutdown()
            self.trainer = None
