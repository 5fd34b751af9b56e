"""vLLM in process where only a GPU goes: sleep and its end, several learner processes. vLLM itself is a recorder."""

import os
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from onpol_cli.core.config import RolloutConfig, SamplingConfig
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.rollout import vllm
from onpol_cli.rollout.engine import Prompt, reserved_context
from onpol_cli.rollout.vllm import VllmEngine


class Recorder:
    """Stands for `LLM` and its engine core; notes what is asked of it."""

    def __init__(self, calls, wakes=True):
        self.calls, self.wakes = calls, wakes
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=lambda: calls.append("shutdown")))

    def sleep(self, level):
        self.calls.append("sleep")

    def wake_up(self):
        self.calls.append("wake")
        if not self.wakes:
            raise RuntimeError("cuMemCreate: out of memory")


@pytest.fixture
def calls(monkeypatch):
    """Calls in their order, those to `vllm.distributed` among them; on what says that it is a GPU."""
    found = []
    distributed = SimpleNamespace(
        cleanup_dist_env_and_memory=lambda: found.append("cleanup"),
        destroy_model_parallel=lambda: found.append("model parallel"),
    )
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(distributed=distributed))
    monkeypatch.setitem(sys.modules, "vllm.distributed", distributed)
    monkeypatch.setattr(vllm, "on_gpu", lambda: True)
    return found


def engine_on(llm, tmp_path):
    engine = object.__new__(VllmEngine)
    engine.config, engine.llm, engine.log = RolloutConfig(), llm, tmp_path / "vllm.log"
    engine.adapter_folder, engine.asleep = None, False
    return engine


def test_an_engine_that_sleeps_wakes_before_it_closes(calls, tmp_path):
    engine = engine_on(Recorder(calls), tmp_path)
    engine.sleep()
    engine.close()
    assert calls == ["sleep", "wake", "shutdown", "cleanup"] and engine.llm is None
    engine.close()
    assert len(calls) == 4


def test_an_engine_that_is_awake_just_closes(calls, tmp_path):
    engine_on(Recorder(calls), tmp_path).close()
    assert calls == ["shutdown", "cleanup"]


def test_memory_that_others_took_ends_the_run_with_a_remedy_and_does_not_keep_it_from_closing(calls, tmp_path):
    engine = engine_on(Recorder(calls, wakes=False), tmp_path)
    engine.sleep()
    with pytest.raises(RunFailed, match=r"out of memory.*rollout\.gpu_memory or learner\.micro_tokens.*--resume"):
        engine.wake()
    engine.close()
    assert calls == ["sleep", "wake", "wake", "shutdown", "cleanup"]


def test_the_process_group_of_several_learners_outlives_the_engine(calls, tmp_path, monkeypatch):
    def shutdown():
        """As vLLM's: it ends with `cleanup_dist_env_and_memory`."""
        calls.append("shutdown")
        torch.distributed.destroy_process_group()

    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: calls.append("group destroyed"))
    llm = Recorder(calls)
    llm.llm_engine.engine_core.shutdown = shutdown
    engine_on(llm, tmp_path).close()
    assert calls == ["shutdown", "group destroyed", "cleanup"], "of one process it is vLLM's own"
    calls.clear()
    monkeypatch.setattr(vllm, "several_processes", lambda: True)
    engine_on(llm, tmp_path).close()
    assert calls == ["shutdown", "model parallel"]
    torch.distributed.destroy_process_group()
    assert calls.pop() == "group destroyed", "only while the engine ends"


def test_several_learners_have_an_engine_each_on_a_gpu_of_their_own(calls, tmp_path, monkeypatch):
    engine = engine_on(None, tmp_path)
    engine.vocabulary, engine.context = 10, 64
    assert "distributed_executor_backend" not in engine._arguments("folder", 0)
    monkeypatch.setattr(vllm, "several_processes", lambda: True)
    assert engine._arguments("folder", 0)["distributed_executor_backend"] == "external_launcher"
    monkeypatch.setattr(vllm, "require_vllm", lambda setting: None)
    with pytest.raises(OnpolError, match=r"tensor_parallel is 2\. Set it to 1, or use rollout=vllm_server"):
        VllmEngine(RolloutConfig(tensor_parallel=2), "folder", None)


@pytest.mark.parametrize(("several", "there"), [(True, "0"), (False, "3")])
def test_an_engine_starts_on_the_gpu_of_its_process_whatever_its_rank(calls, tmp_path, monkeypatch, several, there):
    """As under `srun --gpus-per-task=1`: the fourth task of a node sees one GPU, which is its number 0."""
    started = []
    sys.modules["vllm"].LLM = lambda **arguments: started.append(os.environ["LOCAL_RANK"])
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv("VLLM_CONFIGURE_LOGGING", "1")
    monkeypatch.setattr(vllm, "several_processes", lambda: several)
    monkeypatch.setattr(vllm.torch.cuda, "current_device", lambda: 0)
    engine = engine_on(None, tmp_path)
    engine.vocabulary, engine.context = 10, 64
    engine._start("folder", 0)
    assert started == [there] and os.environ["LOCAL_RANK"] == "3"


class Clockwork:
    """Stands for vLLM's engine: a request ends with every `pace`-th step, up to `ends`; a step takes 100 s."""

    def __init__(self, pace, ends):
        self.pace, self.ends, self.now, self.waiting = pace, ends, 0, []

    def add_request(self, name, prompt, params, lora_request):
        self.waiting.append(name)

    def has_unfinished_requests(self):
        return bool(self.waiting)

    def step(self):
        self.now += 100
        due = self.now % (100 * self.pace) == 0 and self.ends > 0
        self.ends -= due
        outputs = [f"answer {self.waiting[0]}"] if due else [None]
        name = self.waiting.pop(0) if due else self.waiting[0]
        return [SimpleNamespace(request_id=f"{name}-x", finished=due, outputs=outputs)]


@pytest.fixture
def answers(calls, tmp_path, monkeypatch):
    """A call: the answers of an engine of some pace to ten requests, with the default `timeout_s` of 600."""
    names = {"vllm": "SamplingParams", "vllm.inputs": "TokensPrompt", "vllm.sampling_params": "RequestOutputKind"}
    for module, name in names.items():
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: MagicMock()}))

    def ask(pace, ends=10):
        work = Clockwork(pace, ends)
        monkeypatch.setattr(vllm, "time", SimpleNamespace(monotonic=lambda: work.now))
        engine = engine_on(SimpleNamespace(llm_engine=work), tmp_path)
        engine.adapter = engine.eos = None
        return engine._answers([(Prompt("a", (1,), samples=10), sample) for sample in range(10)], SamplingConfig())

    return ask


def test_the_time_limit_is_between_two_requests_not_on_all_of_them(answers):
    assert answers(pace=4) == [f"answer {number}" for number in range(10)], "4000 s in all"
    with pytest.raises(RunFailed, match=r"no request in 600 s \(rollout\.timeout_s\), 3 of 10 before.*--resume"):
        answers(pace=1, ends=3)
    with pytest.raises(RunFailed, match="0 of 10 before"):
        answers(pace=8)


def test_an_engine_reserves_for_at_most_the_models_positions():
    found = [reserved_context(RolloutConfig(max_context=tokens), 256) for tokens in (0, 100, 4096)]
    assert found == [256, 100, 256]
