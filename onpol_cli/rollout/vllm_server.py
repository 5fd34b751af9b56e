"""Sampling from one or many vLLM servers, given by URL or started here.

Owns the spread of requests over servers, the weight version that each must hold before its samples count,
and the exchange folder of the current weights. Processes are `server_process`', HTTP is `server_client`'s.
All learner processes sample from the same servers; the first alone starts them, writes the weights and tells them.
"""

from __future__ import annotations

import atexit
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import Tensor

from onpol_cli.core.config import LoraSync, RolloutConfig, SamplingConfig, WeightTransfer
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.core.types import Rollout
from onpol_cli.learner.parallel import ALONE, World
from onpol_cli.learner.weights import Adapter, merged_weights
from onpol_cli.rollout.engine import EngineStats, Prompt, check_prompts, real_vocabulary, reserved_context
from onpol_cli.rollout.exchange import make_folder, remove_folder, write_adapter, write_model, write_weights
from onpol_cli.rollout.server_client import Endpoint, EndpointDown, Pool
from onpol_cli.rollout.server_process import LocalServer, start_servers
from onpol_cli.rollout.transfer import Transfer, WeightStream, chosen, local_gpus, wire_shapes
from onpol_cli.rollout.vllm_env import SERVERS_SINCE, require_vllm
from onpol_cli.rollout.vllm_params import CompleteWeights, make_rollout, real_rows, request_fields

Job = tuple[Prompt, int]


class ServerEngine:
    """`rollout.engine=vllm_server`. See `RolloutEngine` for the contract.

    Args:
        config: `servers` to use, or how many `local_servers` to start; concurrency, retries, time limit.
        model_path: folder or hub name of the starting weights, read unless `model` is given.
        tokenizer: the policy's.
        seed: of the servers.
        model: transformers causal LM whose weights are handed over.
        world: the learner's processes, which make the engine and sync its weights together.
    """

    def __init__(
        self, config: RolloutConfig, model_path: str, tokenizer: Any, seed: int = 0, model: Any = None,
        world: World = ALONE,
    ) -> None:
        from transformers import AutoModelForCausalLM

        self.config, self.tokenizer, self.world = config, tokenizer, world
        if model is None:
            model = AutoModelForCausalLM.from_pretrained(model_path, dtype=config.dtype.value)
        rows: int = model.get_output_embeddings().weight.shape[0]
        self.vocabulary = real_vocabulary(tokenizer, rows)
        self.context = reserved_context(config, model.config.max_position_embeddings)
        self.eos: int | None = tokenizer.eos_token_id
        self.weight_version, self.last_stats = 0, EngineStats()
        self.token = world.agreed(lambda: uuid.uuid4().hex[:8])
        self.names = {name for name, _ in merged_weights(model)}
        # foreign servers keep the checkpoint's padded rows; there a bias keeps them from being sampled
        self.rows = rows if config.servers else self.vocabulary
        kind = chosen(config)
        self.transfer = None if kind is WeightTransfer.reload else self._transfer(kind, model)
        self.folder = self._new_folder()
        self.adapter_folder: Path | None = None
        self.started: list[LocalServer] = []
        self.pool = Pool([], config.concurrency, config.retries)
        atexit.register(self.close)
        try:
            start = merged_weights(model, merge=config.lora_sync is LoraSync.merged)
            self._by_the_first(lambda: write_model(self.folder, start, model.config, self.rows, tokenizer), start)
            self._connect(seed)
            if self.transfer is not None and config.servers:  # they need not see a folder of this machine
                self._send(self.transfer, real_rows(merged_weights(model), self.rows))
        except BaseException:
            self.close()
            raise

    def _transfer(self, kind: WeightTransfer, model: Any) -> Transfer:
        """The sending side from GPU to GPU; connects with the first weights that it sends."""
        import torch

        shapes = wire_shapes(real_rows(merged_weights(model), self.rows), getattr(torch, self.config.dtype.value))
        stream = WeightStream(shapes, torch.device("cuda", torch.cuda.current_device()))
        return Transfer(kind, stream, self.config.tensor_parallel, self.config.timeout_s)

    @property
    def first(self) -> bool:
        """Whether this is the learner process that the servers take weights from."""
        return self.world.rank == 0

    def _new_folder(self) -> Path:
        """An exchange folder that the first process makes and removes; all know its name, to send a server there."""
        return self.world.agreed(lambda: make_folder(self.config.exchange))

    def _remove(self, folder: Path | None) -> None:
        if self.first and folder is not None:
            remove_folder(folder)

    def _by_the_first(self, write: Callable[[], None], stream: Iterable[tuple[str, Tensor]]) -> None:
        """`write`, which reads `stream`, in the first process; the others read on, since shards are gathered by all."""
        if self.first:
            write()
        else:
            deque(stream, maxlen=0)

    def _everywhere(self, act: Callable[[Endpoint], None]) -> None:
        """`act` on every server by the first process, while nobody samples; the others wait until it is done."""
        self.world.gather(None)
        self.world.agreed(lambda: self.pool.each(act))

    def _connect(self, seed: int) -> None:
        """Servers with version 0 of the weights: those given, or local ones that the first process starts."""
        self.models = self.world.agreed(lambda: self._open(seed))
        if not self.first:
            self.pool.endpoints = [Endpoint(url, self.config.timeout_s) for url in self.models]

    def _open(self, seed: int) -> dict[str, str]:
        """Start local servers if none are given; model names by URL.

        All get version 0, apart from given servers that weights are sent to from GPU to GPU: theirs come that way.
        """
        config = self.config
        if not config.servers:
            require_vllm("rollout=vllm_server", SERVERS_SINCE)
            numbers = range(config.local_servers)
            names = [f"vllm-server-{number}" for number in numbers]
            gpus = [local_gpus(chosen(config), number, config.tensor_parallel) for number in numbers]
            self.started = start_servers(self.folder, config, self.context, seed, names, gpus)
        urls = config.servers or [server.url for server in self.started]
        self.pool.endpoints = [Endpoint(url, config.timeout_s) for url in urls]
        folder = str(self.folder) if config.servers else None
        if folder is None or self.transfer is None:
            self.pool.each(lambda endpoint: endpoint.load(folder, self.label))
        return {endpoint.url: endpoint.model_name() for endpoint in self.pool.alive()}

    @property
    def label(self) -> str:
        """Name of the current weights on the servers; no other run uses it."""
        return f"onpol-{self.token}-{self.weight_version}"

    # ---- sampling

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> list[Rollout]:
        """Rollouts ordered by prompt, then sample.

        Raises:
            RunFailed: no server is left, an answer is unusable, or weights changed under way.
        """
        check_prompts(prompts, sampling, self.vocabulary, self.context)
        began = time.perf_counter()
        self.pool.each(self._ensure_version)
        jobs = [(prompt, sample, number) for number, prompt in enumerate(prompts) for sample in range(prompt.samples)]

        def ask(endpoint: Endpoint, job: Job) -> tuple[list[int], list[float | None], str]:
            return self._complete(endpoint, job, sampling)

        answers = self.pool.map(ask, [(prompt, sample) for prompt, sample, _ in jobs], [key for *_, key in jobs])
        used = {url for *_, url in answers}
        self._check_unchanged(used)
        texts = self.tokenizer.batch_decode([ids for ids, *_ in answers], skip_special_tokens=True)
        rollouts = [
            make_rollout(
                prompt, sample, ids, logprobs, text,
                eos=self.eos, vocabulary=self.vocabulary, version=self.weight_version,
            )
            for (prompt, sample, _), (ids, logprobs, _), text in zip(jobs, answers, texts, strict=True)
        ]
        tokens = sum(len(rollout.completion_ids) for rollout in rollouts)
        self.last_stats = EngineStats(tokens, time.perf_counter() - began)
        return rollouts

    def _ensure_version(self, endpoint: Endpoint) -> None:
        """Bring a server that restarted, or was used by others, to the current weights."""
        if endpoint.weight_version() != self.label:
            if self.transfer is not None and self.weight_version > 0:
                raise EndpointDown(f"{endpoint.url} lost its weights, and there is no folder to read them from")
            endpoint.load(str(self.folder), self.label)
            if self.adapter_folder is not None:
                endpoint.load_adapter(str(self.adapter_folder), self.label)

    def _check_unchanged(self, urls: set[str]) -> None:
        """Refuse samples of servers whose weights were changed by somebody else while they sampled."""
        for endpoint in [endpoint for endpoint in self.pool.endpoints if endpoint.alive and endpoint.url in urls]:
            try:
                found = endpoint.weight_version()
            except EndpointDown as error:  # died after its last sample, which stays good
                self.pool.drop(endpoint, error)
                continue
            if found != self.label:
                raise RunFailed(
                    f"{endpoint.url} changed from weights {self.label!r} to {found!r} while sampling: another run uses "
                    "it. Give each run servers of its own; continue with --resume."
                )

    def _complete(self, endpoint: Endpoint, job: Job, sampling: SamplingConfig) -> tuple[list[int], list[Any], str]:
        """One completion: token ids, their log-probs, and the URL that gave them."""
        prompt, sample = job
        body = request_fields(prompt, sample, sampling, self.eos)
        model = self.label if self.adapter_folder is not None else self.models[endpoint.url]
        body |= {"model": model, "prompt": list(prompt.ids), "return_token_ids": True}
        body |= {"add_special_tokens": False, "skip_special_tokens": False}
        if self.rows > self.vocabulary:
            body["logit_bias"] = {str(token): -100.0 for token in range(self.vocabulary, self.rows)}
        choice = endpoint.call("POST", "/v1/completions", body)["choices"][0]
        ids = choice.get("token_ids")
        if ids is None:
            raise OnpolError(f"{endpoint.url} returned no token ids; it must be a vLLM server, version 0.11 or newer.")
        return ids, (choice.get("logprobs") or {}).get("token_logprobs") or [], endpoint.url

    # ---- weights

    def sync_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Give the weights to every server, and check that it has them.

        Raises:
            OnpolError: a weight is missing.
            RunFailed: no server is left, or a transfer between GPUs failed.
        """
        stream = real_rows(CompleteWeights(weights, self.names), self.rows)
        if self.transfer is not None:
            self.weight_version += 1
            self._send(self.transfer, stream)
        else:
            self._write(stream)

    def _send(self, transfer: Transfer, stream: Iterable[tuple[str, Tensor]]) -> None:
        """From GPU to GPU, into all servers at once, as the current version; those that are gone are left out."""
        try:
            with ExitStack() as stack:
                paused = []
                for endpoint in self.pool.alive():
                    try:
                        stack.enter_context(endpoint.replacing(self.label))
                        paused.append(endpoint)
                    except EndpointDown as error:
                        self.pool.drop(endpoint, error)
                self.pool.alive()
                transfer.send(paused, stream)
        except EndpointDown as error:
            raise RunFailed(
                f"A vLLM server was lost during a weight transfer: {error}. The last checkpoint is kept: --resume."
            ) from error

    def _write(self, stream: Iterable[tuple[str, Tensor]]) -> None:
        """Through a folder, written once and read by every server."""
        fresh = self._new_folder()
        try:
            self._by_the_first(lambda: write_weights(fresh, stream), stream)
        except BaseException:
            self._remove(fresh)
            raise
        self._remove(self.folder)
        self.folder = fresh
        self.weight_version += 1
        self._everywhere(lambda endpoint: endpoint.load(str(fresh), self.label))

    def sync_adapter(self, adapter: Adapter) -> None:
        """Write the adapter once, have every server serve it beside the starting weights, and check that it does.

        Raises:
            OnpolError: the engine was built for merged weights, or a server takes no adapters.
        """
        if self.config.lora_sync is not LoraSync.adapter:
            raise OnpolError("These servers take merged weights; set rollout.lora_sync=adapter to send adapters.")
        fresh, old = self._new_folder(), self.adapter_folder
        if self.first:
            write_adapter(fresh, adapter)
        self.adapter_folder = fresh
        self.weight_version += 1
        self._everywhere(lambda endpoint: endpoint.load_adapter(str(fresh), self.label))
        self._remove(old)

    # ---- life

    def sleep(self) -> None:
        """Nothing to do: servers have memory of their own."""

    def wake(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Stop the servers that were started here, and only those."""
        atexit.unregister(self.close)
        if self.transfer is not None:
            self.transfer.close()
        self.pool.close()
        for server in self.started:
            server.stop()
        self.started = []
        for folder in (self.folder, self.adapter_folder):
            self._remove(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
