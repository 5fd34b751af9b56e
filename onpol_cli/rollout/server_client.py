"""Talking to one vLLM server, and to several at once: retries, back-off, going on without the dead.

Owns HTTP, what counts as a dead endpoint, and weight updates through the server's RL endpoints. Does not
know rollouts (`vllm_server.py`) or teachers (`teacher.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeVar

import httpx

from onpol_cli.core.console import LOGGER
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.rollout.vllm_env import SERVERS_SINCE

T = TypeVar("T")
R = TypeVar("R")
BACKOFF_S = 0.2
"""Wait before the first retry; doubles with each."""


class EndpointDown(Exception):
    """The endpoint did not answer, or answered that it cannot (5xx)."""


class Endpoint:
    """One server.

    Args:
        url: base URL, with or without `/v1`.
        timeout_s: bound on every answer.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.alive = True
        # trust_env: a proxy of the environment must not see loopback traffic
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self.http = httpx.Client(base_url=self.url, timeout=timeout_s, limits=limits, trust_env=False)

    def call(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        """One request; the decoded JSON answer, the text of another answer, None if it has no body.

        Raises:
            EndpointDown: no answer in time, connection lost, or a server error.
            OnpolError: the server refuses the request (4xx).
        """
        try:
            answer = self.http.request(method, path, json=body, params=params or None)
        except httpx.TransportError as error:
            raise EndpointDown(f"{self.url}: {type(error).__name__} {error}".strip()) from error
        if answer.status_code >= 500:
            raise EndpointDown(f"{self.url}{path}: HTTP {answer.status_code} {answer.text[:300]}")
        if answer.status_code >= 400:
            hint = _hint(path) if answer.status_code == 404 else ""
            raise OnpolError(f"{self.url}{path} refused: HTTP {answer.status_code} {answer.text[:300]}.{hint}")
        if not answer.headers.get("content-type", "").startswith("application/json"):
            return answer.text or None  # /v1/load_lora_adapter answers with a sentence
        return answer.json() if answer.content else None

    def model_name(self) -> str:
        """Name under which the server's first model is asked for."""
        return str(self.call("GET", "/v1/models")["data"][0]["id"])

    def weight_version(self) -> str:
        """The label set by the last weight update."""
        return str(self.call("GET", "/weight_info")["weight_version"])

    def load(self, folder: str | None, version: str) -> None:
        """Replace the weights by those in `folder` (None: they are already right) and label them `version`."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
        self.update(version, lambda: folder and self.call("POST", "/collective_rpc", body))

    def load_adapter(self, folder: str, version: str) -> None:
        """Serve the LoRA adapter in `folder` as the model `version`, and no earlier one."""

        def swap() -> None:
            held = {str(model["id"]) for model in self.call("GET", "/v1/models")["data"] if model.get("parent")}
            if version not in held:
                self.call("POST", "/v1/load_lora_adapter", {"lora_name": version, "lora_path": folder})
            for name in held - {version}:
                self.call("POST", "/v1/unload_lora_adapter", {"lora_name": name})

        self.update(version, swap)

    def update(self, version: str, act: Callable[[], object]) -> None:
        """`act` changes the weights while nothing runs; afterwards they are labelled `version`, which is checked.

        Running requests finish first; the prefix cache is dropped.
        """
        with self.replacing(version):
            act()

    @contextmanager
    def replacing(self, version: str) -> Iterator[None]:
        """While it lasts nothing runs and weights may change; see `update`."""
        self.call("POST", "/pause", mode="wait")
        try:
            yield
            if not self.call("POST", "/reset_prefix_cache")["success"]:
                raise EndpointDown(f"{self.url} kept its prefix cache")
            self.call("POST", "/update_weight_version", {"new_version": version})
        finally:
            self.call("POST", "/resume")
        found = self.weight_version()
        if found != version:
            raise EndpointDown(f"{self.url} serves weights {found!r} instead of {version!r}")


def _hint(path: str) -> str:
    """What a server lacks that does not know `path`."""
    if "lora_adapter" in path:
        return " Start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."
    if path in ("/weight_info", "/update_weight_version"):
        return f" It must be vLLM {SERVERS_SINCE} or newer, started with VLLM_SERVER_DEV_MODE=1."
    return "" if path.startswith("/v1/") else " Start the server with VLLM_SERVER_DEV_MODE=1."


class Pool:
    """Several endpoints used as one. Endpoints that fail are left out; the last one's failure ends the run.

    Args:
        endpoints: at least one.
        concurrency: most requests in flight.
        retries: attempts after the first, per request, over all endpoints.
    """

    def __init__(self, endpoints: Sequence[Endpoint], concurrency: int, retries: int) -> None:
        self.endpoints, self.concurrency, self.retries = list(endpoints), concurrency, retries
        self.lock = Lock()

    def alive(self) -> list[Endpoint]:
        """Endpoints in use.

        Raises:
            RunFailed: none is left.
        """
        found = [endpoint for endpoint in self.endpoints if endpoint.alive]
        if not found:
            raise RunFailed(
                f"No vLLM server is left of {', '.join(e.url for e in self.endpoints)}. Look into their logs "
                "(vllm-server-*.log in the run directory); the last checkpoint is kept, continue with --resume."
            )
        return found

    def drop(self, endpoint: Endpoint, reason: object) -> None:
        """Use `endpoint` no more."""
        with self.lock:
            if endpoint.alive:
                endpoint.alive = False
                left = sum(other.alive for other in self.endpoints)
                LOGGER.warning("vLLM server left out: %s; going on with %d", reason, left)

    def _attempt(self, ask: Callable[[Endpoint, T], R], item: T, preferred: int) -> R:
        """`ask` with retries: twice at one endpoint, which is then left out, then at the next."""
        failures: dict[str, int] = {}
        for attempt in range(self.retries + 1):
            alive = self.alive()
            endpoint = alive[preferred % len(alive)]
            try:
                return ask(endpoint, item)
            except EndpointDown as error:
                failures[endpoint.url] = failures.get(endpoint.url, 0) + 1
                last = error
                if failures[endpoint.url] >= 2:
                    self.drop(endpoint, error)
                else:
                    time.sleep(BACKOFF_S * 2**attempt)
        raise RunFailed(
            f"A vLLM request failed {self.retries + 1} times (rollout.retries), last: {last}. "
            "The last checkpoint is kept; continue with --resume."
        )

    def map(self, ask: Callable[[Endpoint, T], R], items: Sequence[T], keys: Sequence[int]) -> list[R]:
        """`ask(endpoint, item)` for every item, in order; equal `keys` go to the same endpoint while it lives."""
        with ThreadPoolExecutor(max_workers=max(1, min(self.concurrency, len(items)))) as threads:
            futures = [threads.submit(self._attempt, ask, item, key) for item, key in zip(items, keys, strict=True)]
            try:
                return [future.result() for future in futures]
            except BaseException:
                for future in futures:
                    future.cancel()
                raise

    def each(self, act: Callable[[Endpoint], object]) -> None:
        """`act` on every living endpoint at once; those that fail are left out."""

        def guarded(endpoint: Endpoint) -> None:
            try:
                act(endpoint)
            except EndpointDown as error:
                self.drop(endpoint, error)

        alive = self.alive()
        with ThreadPoolExecutor(max_workers=len(alive)) as threads:
            list(threads.map(guarded, alive))
        self.alive()

    def close(self) -> None:
        """Close all connections."""
        for endpoint in self.endpoints:
            endpoint.http.close()
