"""What the sampler is asked before and between steps, and at which temperature a policy teaches itself."""

from types import SimpleNamespace

import pytest
import torch

from onpol_cli.core.compose import compose
from onpol_cli.stages import build, validation
from onpol_cli.stages.syncing import canary_sampling, validation_of
from onpol_cli.stages.train import method_context
from onpol_cli.training.ahead import AheadSource

CUT = ["rollout.sampling.top_p=0.8", "rollout.sampling.top_k=20", "rollout.sampling.temperature=0.7"]


@pytest.mark.parametrize(("method", "cut"), [("sft", False), ("rsft", False), ("dpo", False), ("rl", True)])
def test_the_canary_cuts_only_where_a_cut_is_wrong(method, cut):
    sampling = canary_sampling(compose([f"method={method}", *CUT]))
    assert (sampling.top_p < 1, sampling.top_k > 0, sampling.temperature) == (cut, cut, 0.7)


class Ahead(AheadSource):
    """Tells when it is waited for."""

    def __init__(self, told):
        self.told = told

    def settle(self):
        self.told.append("settled")


@pytest.mark.parametrize("synced", [True, False])
def test_a_validation_sends_weights_only_where_no_step_has(monkeypatch, synced):
    told = []
    monkeypatch.setattr(validation, "validator", lambda *_: lambda done: told.append(f"validated {done}") or {})
    bench = SimpleNamespace(task=None, chat=None, sample=None, learner=SimpleNamespace(world=None))
    source = Ahead(told)
    sync = None if synced else lambda: told.append("synced")
    validation_of(bench, None, sync, source)(3)
    assert told == [*([] if synced else ["synced"]), "settled", "validated 3"]


def test_a_policy_teaches_itself_at_the_teachers_temperature():
    config = compose(["method=opsd", "method.teacher_temperature=0.7"])
    engine = SimpleNamespace(at=lambda temperature: ("policy", temperature))
    learner = SimpleNamespace(engine=engine)
    bench = SimpleNamespace(
        config=config, learner=learner, reference=None, task=None, teachers={}, chat=SimpleNamespace(prompt_ids=None)
    )
    assert method_context(bench).policy == ("policy", 0.7)


def test_a_teacher_on_the_cpu_is_float32_although_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    words = ["learner.autocast=bfloat16", "model.device="]
    assert build.teacher_dtype(compose([words[0], words[1] + "cpu"])) is torch.float32
    assert build.teacher_dtype(compose([words[0], words[1] + "auto"])) is torch.bfloat16
