"""Teacher scoring by vLLM servers: prompt log-probs of given token ids.

Owns the request and the reading of its answer. vLLM computes prompt log-probs at temperature 1 whatever a
request says, so that nothing else is accepted here; every position must be there, for a missing
log-prob taken as 0 would say that the teacher was certain. The scorer of the learner's own engine is
`learner.scorer`, the default on one device; both have the same `logprobs`.
"""

from __future__ import annotations

import atexit
import math
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from onpol_cli.core.config import Engine, LoraSync, RolloutConfig, WeightTransfer
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.placement import teachers_turn
from onpol_cli.learner.parallel import ALONE, World
from onpol_cli.learner.weights import merged_weights
from onpol_cli.rollout.engine import real_vocabulary, reserved_context
from onpol_cli.rollout.exchange import make_folder, remove_folder, write_model
from onpol_cli.rollout.server_client import Endpoint, Pool
from onpol_cli.rollout.server_process import LocalServer, start_servers
from onpol_cli.rollout.transfer import chosen, local_gpus

Pair = tuple[Sequence[int], Sequence[int]]


def request_body(model: str, pair: Pair) -> dict[str, Any]:
    """A request for the log-probs of prompt and completion; the one sampled token is thrown away."""
    prompt, completion = pair
    return {
        "model": model, "prompt": [*prompt, *completion], "prompt_logprobs": 0, "max_tokens": 1, "temperature": 1.0,
        "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 0, "n": 1,
        "add_special_tokens": False,
    }


def read_logprobs(entries: Sequence[Any] | None, pair: Pair, source: str) -> Tensor:
    """Log-probs [T] of the completion's tokens, nats.

    Args:
        entries: one a position of prompt plus completion: None (the first), or token id -> its log-prob.
        pair: prompt and completion ids.
        source: names the server in messages.

    Raises:
        OnpolError: a position, or its token, is missing.
    """
    prompt, completion = pair
    total = len(prompt) + len(completion)
    if not entries or len(entries) != total:
        raise OnpolError(
            f"Teacher {source} returned log-probs for {len(entries or [])} of {total} tokens. Every position is "
            "required; the server must allow prompt_logprobs. Or use method.scorer=learner."
        )
    values = []
    for position, token in enumerate(completion, start=len(prompt)):
        entry = (entries[position] or {}).get(str(token)) or {}
        value = entry.get("logprob")
        if value is None or not math.isfinite(value):
            raise OnpolError(
                f"Teacher {source} gave no log-prob for token {token} at position {position} of {total}. A missing one "
                "is never taken as 0. Does it share the policy's tokenizer? Or use method.scorer=learner."
            )
        values.append(float(value))
    return torch.tensor(values, dtype=torch.float32)


class ServerScorer:
    """A teacher behind vLLM servers, given by URL or started here on loopback.

    Args:
        config: `teacher_servers`, replicas of this one teacher, or the settings of one to start; concurrency,
            retries, time limit.
        model_path: the teacher's folder or hub name, read only if a server is started.
        tokenizer: shared by policy and teacher.
        temperature: must be 1.
        world: the learner's processes, which make the scorer together and all ask the same servers.
        number: of this teacher among those with a server started here, which places it on a GPU and names its log.

    Raises:
        OnpolError: another temperature, or a server that returns no prompt log-probs (probed at once).
    """

    def __init__(
        self, config: RolloutConfig, model_path: str, tokenizer: Any, temperature: float = 1.0, world: World = ALONE,
        number: int = 0,
    ) -> None:
        if temperature != 1.0:
            raise OnpolError(
                f"method.teacher_temperature is {temperature}, but vLLM's prompt log-probs are always at temperature "
                "1. Set it to 1, or use method.scorer=learner."
            )
        self.started: list[LocalServer] = []
        self.pool = Pool([], config.concurrency, config.retries)
        atexit.register(self.close)
        try:
            urls = config.teacher_servers or world.agreed(lambda: self._start(config, model_path, tokenizer, number))
            self.pool.endpoints = [Endpoint(url, config.timeout_s) for url in urls]
            self.models = {endpoint.url: endpoint.model_name() for endpoint in self.pool.endpoints}
            self.logprobs([((0,), (1, 2))])
        except BaseException:
            self.close()
            raise

    def _start(self, config: RolloutConfig, model_path: str, tokenizer: Any, number: int) -> list[str]:
        """Start one server of the teacher, its vocabulary cut to the real one."""
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(model_path, dtype=config.dtype.value)
        vocabulary = real_vocabulary(tokenizer, model.get_output_embeddings().weight.shape[0])
        positions = model.config.max_position_embeddings
        context = min(reserved_context(config, positions) + 1, positions)
        folder = make_folder(config.exchange)
        try:
            write_model(folder, merged_weights(model), model.config, vocabulary, tokenizer)
            # a teacher's weights never change
            fixed = replace(config, lora_sync=LoraSync.merged, weight_transfer=WeightTransfer.reload)
            samplers = config.local_servers if config.engine is Engine.vllm_server and not config.servers else 0
            first = teachers_turn(chosen(config), samplers) if samplers else 0
            gpus = [local_gpus(fixed.weight_transfer, first + number, config.tensor_parallel)]
            self.started = start_servers(folder, fixed, context, 0, [f"vllm-teacher-{number}"], gpus)
        finally:
            remove_folder(folder)  # the server has read it
        return [server.url for server in self.started]

    def logprobs(self, sequences: Sequence[Pair]) -> list[Tensor]:
        """Log-probs `[T]` of each completion's tokens, nats, in order."""

        def ask(endpoint: Endpoint, pair: Pair) -> Tensor:
            answer = endpoint.call("POST", "/v1/completions", request_body(self.models[endpoint.url], pair))
            return read_logprobs(answer["choices"][0].get("prompt_logprobs"), pair, endpoint.url)

        return self.pool.map(ask, sequences, range(len(sequences)))

    def hidden(self, sequences: Sequence[Pair]) -> list[Tensor]:
        """Not available from a server.

        Raises:
            OnpolError: always.
        """
        raise OnpolError(
            f"method.scorer=vllm_server gives log-probs of tokens only ({len(sequences)} sequences asked for hidden "
            "states). Exact divergences need method.scorer=learner, or use method.signal=sampled."
        )

    @property
    def output_matrix(self) -> Tensor:
        """Not available from a server; see `hidden`."""
        self.hidden([])
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Stop what was started here; safe to call twice."""
        atexit.unregister(self.close)
        self.pool.close()
        for server in self.started:
            server.stop()
        self.started = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
