"""What may differ when a run is resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from onpol_cli.core.compose import compose, to_yaml
from onpol_cli.core.errors import OnpolError
from onpol_cli.runs.lookup import RunInfo
from onpol_cli.runs.rundir import CONFIG, RunDir
from onpol_cli.stages.session import check_same_settings, differing, run_folder

START = ("rollout=vllm_server", "rollout.local_servers=2")


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ((), []),
        (("rollout.servers=[http://127.0.0.1:1]", "rollout.timeout_s=9", "rollout.weight_transfer=reload"), []),
        (("rollout.local_servers=1", "run.name=other", "paths.runs=elsewhere"), []),
        (("rollout.lora_sync=adapter",), ["rollout.lora_sync"]),
        (("rollout.sampling.temperature=0.5", "rollout.retries=9"), ["rollout.sampling.temperature"]),
        (("seed=5",), ["seed"]),
    ],
)
def test_servers_may_be_new_ones_but_nothing_that_changes_numbers(
    tmp_path: Path, words: tuple[str, ...], changed: list[str]
) -> None:
    (tmp_path / CONFIG).write_text(to_yaml(compose([*START])), encoding="utf-8")
    assert list(differing(RunInfo(tmp_path, {}), compose([*START, *words]))) == changed


def test_what_a_message_advises_may_differ_and_is_told(tmp_path: Path) -> None:
    """Advice for a run that ran out of memory, of a monitor that stopped, of a loss that is not finite, of a canary."""
    cost = ("learner.micro_tokens=64", "rollout.max_batch=2", "rollout.gpu_memory=0.2", "sandbox.workers=1")
    cost += ("learner.gradient_checkpointing=true", "learner.threads=1", "model.device=cpu")
    cost += ("rollout.max_context=512",)
    remedies = ("optim.lr=1e-9", "monitor.action=off", "rollout.canary_tolerance=0.5")
    started = compose(["optim.lr=1e-3", "rollout.canary_tolerance=0.1"])
    with RunDir.open(tmp_path / "run", resume=False) as run:
        (run.path / CONFIG).write_text(to_yaml(started), encoding="utf-8")
        assert check_same_settings(run, compose(["optim.lr=1e-3", "rollout.canary_tolerance=0.1", *cost])) == []
        assert check_same_settings(run, compose([*cost, *remedies])) == [
            f"monitor.action: {started.monitor.action.value} -> off",
            "optim.lr: 0.001 -> 1e-09",
            "rollout.canary_tolerance: 0.1 -> 0.5",
        ]
        with pytest.raises(OnpolError, match=r"other settings: optim\.clip, seed\. "):
            check_same_settings(run, compose([*remedies, "optim.clip=2", "seed=5"]))


def test_a_run_without_a_name_is_found_by_all_that_changes_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A sweep over learning rates must not go on with another one's run; one that does not exist is started aloud."""
    here, name = f"paths.runs={tmp_path}", "train-sft-s0-20260101-000000"
    with RunDir.open(tmp_path / name, resume=False) as run:
        (run.path / CONFIG).write_text(to_yaml(compose(["optim.lr=1e-3", here])), encoding="utf-8")
        run.update_manifest(run=name, status="interrupted")
    new = "train-sft-s0-20260102-000000"
    found = run_folder(compose(["optim.lr=1e-3", "learner.threads=1", here]), new, resume=True)
    assert found == tmp_path / name
    with pytest.raises(OnpolError, match=r"No unfinished run train-sft-s0\*"):
        run_folder(compose(["optim.lr=1e-4", here]), new, resume=True)
    assert run_folder(compose(["optim.lr=1e-3", here]), new, resume=False) == tmp_path / new
    with caplog.at_level("WARNING", logger="onpol"):
        assert run_folder(compose([here, "run.name=typo"]), new, resume=True) == tmp_path / "typo"
    assert "there is no run typo to resume" in caplog.text
