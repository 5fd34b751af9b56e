"""Child process of the tests: our side of a weight transfer against vLLM's own classes and HTTP routes.

    python transfer_worker.py OUT.json

No GPU is needed: the routes, the trainer engine, the payloads and the option parser are vLLM's; only the NCCL
communicator is replaced by one that notes what it is given.
"""

import contextlib
import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import uvicorn
from fastapi import FastAPI
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferInitInfo, IPCWeightTransferUpdateInfo
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, worker_init_payload
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerWeightTransferEngine, NCCLWeightTransferUpdateInfo
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from onpol_cli.core.config import LoraSync, RolloutConfig, WeightTransfer
from onpol_cli.rollout.server_client import Endpoint
from onpol_cli.rollout.server_process import free_port, server_arguments
from onpol_cli.rollout.transfer import ServersClient, WeightStream, server_options, trainer_info, wire_shapes

ROUTERS = ("vllm.entrypoints.rl.online.api_router", "vllm.entrypoints.serve.dev.rlhf.api_router")
"""Where vLLM keeps these routes: since 0.32, and before."""


class Receiver:
    """Stands behind vLLM's routes in place of an engine: notes every call in order."""

    def __init__(self):
        self.calls = []

    async def init_weight_transfer_engine(self, request):
        self.calls.append(["init", request.init_info])

    async def start_weight_update(self):
        self.calls.append(["start", None])

    async def update_weights(self, request):
        self.calls.append(["update", request.update_info])

    async def finish_weight_update(self, weight_version=None):
        self.calls.append(["finish", weight_version])


def routes():
    """vLLM's own router of weight updates."""
    for name in ROUTERS:
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(name).router
    raise ImportError(f"vLLM has none of {ROUTERS}")


def serve(receiver):
    """vLLM's router for `receiver` on loopback; its URL."""
    app, port = FastAPI(), free_port()
    app.include_router(routes())
    app.state.engine_client = receiver
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return f"http://127.0.0.1:{port}"


def weights(number):
    """Two floating-point matrices, one that is a view, and an integer buffer."""
    values = torch.arange(12.0).reshape(3, 4) + number
    return [("a", values), ("b", values.double().t()), ("steps", torch.tensor([number]))]


def nccl(client, receivers):
    """Two rounds of vLLM's own NCCL trainer with our client and our stream."""
    stream = WeightStream(wire_shapes(weights(0), torch.bfloat16), torch.device("cpu"))
    engine = NCCLTrainerWeightTransferEngine(client=client, source=stream, packed=False)
    sent = []
    engine.model_update_group = SimpleNamespace(broadcast=lambda tensor, src, stream: sent.append(tensor.clone()))
    torch.cuda.current_stream = lambda: None
    client.init_weight_transfer_engine(worker_init_payload(NCCLWeightTransferInitInfo(
        master_address="10.0.0.1", master_port=5, rank_offset=1, world_size=5, packed=True
    )))  # fmt: skip
    for number in (0, 1):
        stream.current = iter(weights(number))
        engine.send_weights()
    expected = [t.to(torch.bfloat16) if t.is_floating_point() else t for n in (0, 1) for _, t in weights(n)]
    stream.current = iter(weights(2)[:-1])
    try:
        engine.send_weights()
        incomplete = ""
    except ValueError as error:
        incomplete = str(error)
    infos = [NCCLWeightTransferInitInfo(**receiver.calls[0][1]) for receiver in receivers]
    update = NCCLWeightTransferUpdateInfo(**receivers[1].calls[2][1])
    return {
        "order": [name for name, _ in receivers[0].calls][:7],
        "rank_offsets": [info.rank_offset for info in infos],
        "update": [update.names, update.dtype_names, update.shapes],
        "sent_as_announced": all(a.dtype == b.dtype and a.equal(b) for a, b in zip(sent[:6], expected, strict=True)),
        "sent": len(sent),
        "incomplete": incomplete,
    }


def ipc(client, receivers):
    """A piece with memory handles, through JSON and back into vLLM's class."""
    client.init_weight_transfer_engine({"packed": True})
    handle = {"GPU-uuid": (torch.float32, (1, 2), b"handle", 7)}
    piece = {"names": ["a"], "dtype_names": ["float32"], "shapes": [[3, 4]], "ipc_handles": handle}
    client.update_weights(piece | {"ipc_handles_pickled": None, "tensor_sizes": [48]})
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    updates = [body for name, body in receivers[0].calls if name == "update" and "ipc_handles_pickled" in body]
    info = IPCWeightTransferUpdateInfo(**updates[0])
    inits = [[body for name, body in receiver.calls if name == "init"][-1] for receiver in receivers]
    return {
        "packed": [IPCWeightTransferInitInfo(**init).packed for init in inits],
        "handle_arrived": info.ipc_handles == handle and info.tensor_sizes == [48],
    }


def parsed(config, extra=()):
    """Our server's options through vLLM's parser."""
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    for name, kind in (("--host", str), ("--port", int)):
        parser.add_argument(name, type=kind)
    return AsyncEngineArgs.from_cli_args(parser.parse_args([*server_arguments(config, 256, 1, 0), *extra]))


def main(out):
    receivers = [Receiver(), Receiver()]
    client = ServersClient([Endpoint(serve(receiver), 60) for receiver in receivers], workers=2)
    record = {"nccl": nccl(client, receivers), "ipc": ipc(client, receivers)}
    kinds = (WeightTransfer.nccl, WeightTransfer.ipc)
    infos = [trainer_info(kind, 2**30, "10.0.0.1", 5, 5) for kind in kinds]
    record["backends"] = [info.backend for info in infos]
    record["known"] = [info.backend in WeightTransferTrainerFactory._registry for info in infos]
    record["sends"] = [info.is_sender and info.packed_buffer_size_bytes >= 2**30 for info in infos]
    record["options"] = [parsed(RolloutConfig(), server_options(kind)).weight_transfer_config.backend for kind in kinds]
    adapters = parsed(RolloutConfig(lora_sync=LoraSync.adapter, max_lora_rank=5))
    record["adapter_options"] = [adapters.enable_lora, adapters.max_lora_rank, adapters.enable_chunked_prefill]
    record["plain"] = parsed(RolloutConfig()).weight_transfer_config is None
    Path(out).write_text(json.dumps(record))


if __name__ == "__main__":
    main(sys.argv[1])
