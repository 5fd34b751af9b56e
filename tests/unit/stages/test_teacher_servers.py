"""Each tutor that is scored by a server started here has its own, where the plan says."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from onpol_cli.core.compose import compose
from onpol_cli.core.placement import server_places
from onpol_cli.rollout import teacher, transfer
from onpol_cli.stages.build import Checkpoint
from onpol_cli.stages.train import make_models, make_teacher


@pytest.mark.parametrize(("samplers", "way"), [(0, "reload"), (2, "reload"), (1, "auto"), (1, "ipc"), (1, "nccl")])
def test_every_tutor_has_a_server_a_gpu_and_a_log_of_its_own(
    samplers: int, way: str, policy_folder: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["method=multi_opd", f"method.tutors.one={teacher_folder}", f"method.tutors.two={policy_folder}"]
    words += ["rollout=vllm_server", f"rollout.local_servers={samplers}"] if samplers else []
    words += ["method.scorer=vllm_server", f"rollout.weight_transfer={way}", f"rollout.exchange={tmp_path}"]
    config = compose(["experiment=none", f"model.path={policy_folder}", "model.device=cpu", *words])
    started: list[tuple[str, str]] = []

    def start(folder: Path, rollout: Any, context: int, seed: int, names: Any, gpus: Any) -> list[Any]:
        started.extend((name, *own) for name, own in zip(names, gpus, strict=True))
        return []

    monkeypatch.setattr(teacher, "start_servers", start)
    monkeypatch.setattr(teacher.ServerScorer, "logprobs", lambda self, sequences: [])
    monkeypatch.setattr(transfer, "on_gpu", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5")
    tutors = {name: Checkpoint(spec, None, name) for name, spec in config.method.tutors.items()}
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    with ExitStack() as stack:
        make_models(
            config, tokenizer, 1, tutors,
            lambda tutor, *number: make_teacher(tutor, config, str(policy_folder), stack, *number),
        )  # fmt: skip
    places = server_places(config.rollout, samplers, 2, 1, 6, alone=True)[samplers:]
    assert started == [(f"vllm-teacher-{number}", str(place)) for number, place in enumerate(places)]
    taken = {0} | set(server_places(config.rollout, samplers, 0, 1, 6, alone=True))
    assert len({*places} - taken) == 2, "there are GPUs that nobody else uses"
