"""vLLM in this process, on a GPU or on the CPU build.

Owns the engine's construction, its request loop, weight sync in place and sleep. The padded rows of a
checkpoint's vocabulary never enter the engine: it is built with the tokenizer's size and receives its
weights through one sync, or the first ones from a folder cut to that size. Environment and logs are `vllm_env`'s,
request fields `vllm_params`'.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from onpol_cli.core.config import LoraSync, RolloutConfig, SamplingConfig
from onpol_cli.core.console import LOGGER
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.core.types import Rollout
from onpol_cli.learner.weights import Adapter, merged_weights
from onpol_cli.rollout.engine import EngineStats, Prompt, check_prompts, real_vocabulary, reserved_context
from onpol_cli.rollout.exchange import (
    exchange_folder,
    make_folder,
    model_folder,
    remove_folder,
    write_adapter,
    write_weights,
)
from onpol_cli.rollout.vllm_env import (
    contained,
    defaults,
    kept_group,
    log_path,
    log_tail,
    on_gpu,
    quiet,
    require_vllm,
    route_logs,
    several_processes,
)
from onpol_cli.rollout.vllm_params import (
    CPU_BLOCK,
    CompleteWeights,
    adapter_rank,
    cpu_step_tokens,
    hf_overrides,
    make_rollout,
    real_rows,
    request_fields,
)


class VllmEngine:
    """`rollout.engine=vllm`. See `RolloutEngine` for the contract.

    Args:
        config: memory share, parallelism, number format, sleep.
        model_path: folder or hub name: its configuration, and its weights unless `model` is given.
        tokenizer: gives the real vocabulary, the end of sequence and the text.
        seed: of the engine; rollouts are seeded by their prompts.
        model: transformers causal LM whose weights are handed over.

    Raises:
        OnpolError: vLLM is not installed, or cannot do on this machine what is asked for.
        RunFailed: vLLM cannot start; the message names its log.
    """

    def __init__(
        self, config: RolloutConfig, model_path: str, tokenizer: Any, seed: int = 0, model: Any = None
    ) -> None:
        require_vllm("rollout=vllm")
        if config.tensor_parallel > 1 and several_processes():
            raise OnpolError(
                f"rollout=vllm gives each learner process an engine on its own GPU, and rollout.tensor_parallel is "
                f"{config.tensor_parallel}. Set it to 1, or use rollout=vllm_server."
            )
        from transformers import AutoConfig, AutoModelForCausalLM

        self.config, self.tokenizer, self.log = config, tokenizer, log_path()
        shape = AutoConfig.from_pretrained(model_path)
        self.vocabulary = real_vocabulary(tokenizer, shape.vocab_size)
        self.context = reserved_context(config, shape.max_position_embeddings)
        self.eos: int | None = tokenizer.eos_token_id
        self.weight_version, self.last_stats = -1, EngineStats()
        self.names: set[str] = set()
        self.adapter: Any = None
        self.adapter_folder: Path | None = None
        self.asleep = False
        if model is None:
            model = AutoModelForCausalLM.from_pretrained(model_path, dtype=config.dtype.value)
        start = merged_weights(model, merge=config.lora_sync is LoraSync.merged)
        if self._from_folder:
            with model_folder(config.exchange, start, model.config, self.vocabulary, None) as folder:
                self.llm = self._start(str(folder), seed)
            self.weight_version = 0
        else:
            self.llm = self._start(model_path, seed)
            self.sync_weights(start)  # version 0: the starting weights

    @property
    def _from_folder(self) -> bool:
        """Whether the starting weights come from a folder.

        Workers in other processes read one, and a dummy loader could not reload from one later; vLLM before 0.31 cannot
        reload weights below LoRA layers, which keep the starting weights anyway.
        """
        return self.config.tensor_parallel > 1 or self.config.lora_sync is LoraSync.adapter

    def _start(self, model_path: str, seed: int) -> Any:
        """A vLLM `LLM`, with the weights in `model_path` or uninitialised ones."""
        values = defaults()
        if on_gpu() and several_processes():  # vLLM makes cuda:LOCAL_RANK, where Slurm may show a task one GPU alone
            values["LOCAL_RANK"] = str(torch.cuda.current_device())
        with contained(values), quiet(self.log):
            if "VLLM_CONFIGURE_LOGGING" in values:  # the user has not set it
                route_logs(self.log)
            from vllm import LLM

            try:
                return LLM(**self._arguments(model_path, seed))
            except (RuntimeError, ValueError, AssertionError, OSError) as error:
                raise RunFailed(
                    f"vLLM could not start: {type(error).__name__}: {str(error)[:300]}. Its log: {self.log}. On a GPU "
                    "lower rollout.gpu_memory or rollout.max_context if memory ran out; or use rollout=hf."
                ) from error

    def _arguments(self, model_path: str, seed: int) -> dict[str, Any]:
        """Keyword arguments of `LLM`."""
        config, gpu = self.config, on_gpu()
        arguments: dict[str, Any] = {
            "model": model_path,
            "skip_tokenizer_init": True,
            "load_format": "safetensors" if self._from_folder else "dummy",
            "hf_overrides": {"vocab_size": self.vocabulary, **hf_overrides(config)},
            "dtype": config.dtype.value,
            "seed": seed % 2**31,
            "max_model_len": self.context,
            "max_num_seqs": config.max_batch,
            "enforce_eager": config.enforce_eager or not gpu,
            "tensor_parallel_size": config.tensor_parallel,
            "logprobs_mode": "processed_logprobs",
            "generation_config": "vllm",
            "enable_prefix_caching": True,
            "disable_log_stats": True,
        }
        if gpu:
            arguments |= {"gpu_memory_utilization": config.gpu_memory, "enable_sleep_mode": config.sleep}
        else:
            budget = cpu_step_tokens(config.max_batch, self.context)
            arguments |= {"block_size": CPU_BLOCK, "enable_chunked_prefill": False, "max_num_batched_tokens": budget}
        if config.lora_sync is LoraSync.adapter:
            arguments |= {"enable_lora": True, "max_lora_rank": adapter_rank(config, gpu), "max_loras": 1}
        if several_processes():  # an engine each, on the GPU of LOCAL_RANK: by itself vLLM would take the first for all
            arguments["distributed_executor_backend"] = "external_launcher"
        return arguments

    # ---- sampling

    def generate(self, prompts: Sequence[Prompt], sampling: SamplingConfig) -> list[Rollout]:
        """Rollouts ordered by prompt, then sample.

        Raises:
            RunFailed: vLLM failed, or finished no request for `rollout.timeout_s`.
        """
        check_prompts(prompts, sampling, self.vocabulary, self.context)
        assert not self.asleep, "wake the engine before it samples"
        began = time.perf_counter()
        jobs = [(prompt, sample) for prompt in prompts for sample in range(prompt.samples)]
        outputs = self._answers(jobs, sampling)
        texts = self.tokenizer.batch_decode([out.token_ids for out in outputs], skip_special_tokens=True)
        rollouts = [
            make_rollout(
                prompt, sample, list(out.token_ids), list(out.logprobs.logprobs), text,
                eos=self.eos, vocabulary=self.vocabulary, version=self.weight_version,
            )
            for (prompt, sample), out, text in zip(jobs, outputs, texts, strict=True)
        ]
        tokens = sum(len(rollout.completion_ids) for rollout in rollouts)
        self.last_stats = EngineStats(tokens, time.perf_counter() - began)
        return rollouts

    def _answers(self, jobs: Sequence[tuple[Prompt, int]], sampling: SamplingConfig) -> list[Any]:
        """One vLLM `CompletionOutput` a job, in order."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        engine = self.llm.llm_engine
        found: dict[int, Any] = {}
        limit, last = self.config.timeout_s, time.monotonic()
        try:
            for number, (prompt, sample) in enumerate(jobs):
                params = SamplingParams(
                    **request_fields(prompt, sample, sampling, self.eos),
                    detokenize=False, flat_logprobs=True, output_kind=RequestOutputKind.FINAL_ONLY,
                )
                engine.add_request(
                    str(number), TokensPrompt(prompt_token_ids=list(prompt.ids)), params, lora_request=self.adapter
                )
            while engine.has_unfinished_requests():
                done = {int(out.request_id.split("-")[0]): out.outputs[0] for out in engine.step() if out.finished}
                found |= done
                if done:
                    last = time.monotonic()
                elif time.monotonic() - last > limit:
                    raise RunFailed(
                        f"vLLM finished no request in {limit:.0f} s (rollout.timeout_s), {len(found)} of {len(jobs)} "
                        "before. Raise it, or lower rollout.max_batch; the last checkpoint is kept: --resume."
                    )
        except RuntimeError as error:  # out of memory, a dead engine core, a failed kernel
            raise RunFailed(
                f"vLLM failed while sampling: {str(error)[:300]}. Its log: {self.log} ({log_tail(self.log)}). "
                "The last checkpoint is kept; continue with --resume."
            ) from error
        return [found[number] for number in range(len(jobs))]

    # ---- weights

    def sync_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace all weights in place and drop the prefix cache.

        Raises:
            OnpolError: a weight is missing.
        """
        if self.asleep:
            self.wake()
        stream = CompleteWeights(weights, self.names)
        with quiet(self.log):
            if self.config.tensor_parallel > 1:
                self._reload_from_folder(stream)
            else:
                iterator = real_rows(stream, self.vocabulary)
                self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iterator})
            stream.check()
            if not self.llm.reset_prefix_cache():
                raise RunFailed("vLLM kept its prefix cache after a weight update: requests are still running.")
        self.names = stream.seen
        self.weight_version += 1

    def _reload_from_folder(self, stream: Iterable[tuple[str, Tensor]]) -> None:
        """For workers in other processes: weights go through a file in memory-backed storage."""
        with exchange_folder(self.config.exchange) as folder:
            write_weights(folder, real_rows(stream, self.vocabulary))
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})

    def sync_adapter(self, adapter: Adapter) -> None:
        """Sample with the starting weights and `adapter` from now on (`rollout.lora_sync=adapter`).

        Raises:
            OnpolError: the engine was built for merged weights.
            RunFailed: vLLM refuses the adapter.
        """
        if self.config.lora_sync is not LoraSync.adapter:
            raise OnpolError("This engine takes merged weights; set rollout.lora_sync=adapter to send adapters.")
        from vllm.lora.request import LoRARequest

        self.wake()
        fresh = make_folder(self.config.exchange)
        write_adapter(fresh, adapter)
        version = self.weight_version + 1
        # a new id and name for every version: vLLM caches adapters by id, and cached prefixes by name
        request = LoRARequest(f"policy-{version}", version, str(fresh))
        with quiet(self.log):
            try:
                self.llm.llm_engine.add_lora(request)
            except (RuntimeError, ValueError) as error:
                remove_folder(fresh)
                raise RunFailed(
                    f"vLLM did not take the LoRA adapter: {str(error)[:300]}. Raise rollout.max_lora_rank if its rank "
                    f"({adapter.rank}) is too large, or use rollout.lora_sync=merged. Its log: {self.log}."
                ) from error
            if not self.llm.reset_prefix_cache():
                raise RunFailed("vLLM kept its prefix cache after a weight update: requests are still running.")
        if self.adapter_folder is not None:
            remove_folder(self.adapter_folder)
        self.adapter, self.adapter_folder, self.weight_version = request, fresh, version

    # ---- life

    def sleep(self) -> None:
        """On a GPU: offload weights, drop the cache (level 1). Nothing on the CPU."""
        if on_gpu() and self.config.sleep and not self.asleep:
            self.llm.sleep(level=1)
            self.asleep = True

    def wake(self) -> None:
        """Bring weights and cache back.

        Raises:
            RunFailed: others have taken the memory.
        """
        if not self.asleep:
            return
        gc.collect()
        torch.cuda.empty_cache()  # what the learner has freed; vLLM before 0.27 does not ask for it
        try:
            self.llm.wake_up()
        except RuntimeError as error:
            raise RunFailed(
                f"vLLM could not take its GPU memory back: {str(error)[:300]}. Lower rollout.gpu_memory or "
                "learner.micro_tokens; the last checkpoint is kept: --resume."
            ) from error
        self.asleep = False

    def close(self) -> None:
        """Shut the engine down and free its memory."""
        if self.llm is None:
            return
        if self.adapter_folder is not None:
            remove_folder(self.adapter_folder)
        try:
            self.wake()  # freeing memory that sleeps unmaps it a second time, which CUDA takes ill for good
        except RunFailed as error:
            LOGGER.warning("%s", error)
        several = several_processes()  # the process group is the learner's
        with quiet(self.log), kept_group() if several else nullcontext():
            self.llm.llm_engine.engine_core.shutdown()
            self.llm = None
            gc.collect()  # ends what was not ended above
            from vllm.distributed import cleanup_dist_env_and_memory, destroy_model_parallel

            if several:
                destroy_model_parallel()
            else:
                cleanup_dist_env_and_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
