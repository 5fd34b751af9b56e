"""What may differ when a run is resumed."""

from __future__ import annotations

from pathlib import Path

import pytest

from onpol_cli.core.compose import compose, to_yaml
from onpol_cli.runs.lookup import RunInfo
from onpol_cli.runs.rundir import CONFIG
from onpol_cli.stages.session import differences

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
    assert differences(RunInfo(tmp_path, {}), compose([*START, *words])) == changed
