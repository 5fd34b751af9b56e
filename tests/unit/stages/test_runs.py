"""`onpol runs`: what the list says, the ledger, and what prune may delete."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from onpol_cli.core.errors import OnpolError
from onpol_cli.runs.lookup import find_run, list_runs
from onpol_cli.runs.rundir import METRICS, RunDir
from onpol_cli.stages.runs import (
    age,
    budget,
    describe,
    headline,
    list_all,
    prunable,
    prune_runs,
    row_of,
    show_run,
    watch_run,
)


def make(root: Path, name: str, status: str, rows: list[dict[str, Any]] | None = None, **facts: Any) -> Path:
    """A closed run directory."""
    with RunDir.open(root / name, resume=False) as run:
        run.update_manifest(run=name, status=status, seed=0, started="2026-01-01T00:00:00+00:00", **facts)
        for row in rows or []:
            run.log(row)
    return root / name


def test_a_run_that_says_running_without_a_process_has_died(tmp_path: Path) -> None:
    make(tmp_path, "gone", "running")
    assert find_run("gone", tmp_path).state == "died"


def test_a_run_that_a_process_writes_is_running(tmp_path: Path) -> None:
    with RunDir.open(tmp_path / "live", resume=False) as run:
        run.update_manifest(run="live", status="running")
        assert find_run("live", tmp_path).state == "running"
    assert find_run("live", tmp_path).state == "died"


def test_looking_at_a_run_does_not_keep_a_writer_out(tmp_path: Path) -> None:
    make(tmp_path, "one", "done")
    assert find_run("one", tmp_path).state == "done"
    with RunDir.open(tmp_path / "one", resume=True), pytest.raises(OnpolError, match="being written by process"):
        RunDir.open(tmp_path / "one", resume=True)


def test_list_row_has_steps_reward_and_loss_of_the_last_line(tmp_path: Path) -> None:
    rows = [{"step": 0, "reward/mean": 0.1, "loss/total": 2.0}, {"step": 1, "reward/mean": 0.4, "loss/total": 1.5}]
    make(tmp_path, "rl", "done", rows, label="RL", method_choice="rl")
    row = row_of(find_run("rl", tmp_path))
    assert (row["steps"], row["reward"], row["loss"]) == (2, 0.4, 1.5)
    assert (row["label"], row["method"], row["status"]) == ("RL", "rl", "done")


def test_list_json_holds_every_run_even_a_damaged_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "good", "done")
    (make(tmp_path, "bad", "done") / "manifest.json").write_text("{", encoding="utf-8")
    list_all(tmp_path, as_json=True)
    found = {row["run"]: row["status"] for row in json.loads(capsys.readouterr().out)["runs"]}
    assert found == {"good": "done", "bad": "damaged"}


def test_a_damaged_run_is_an_error_only_when_it_is_asked_for(tmp_path: Path) -> None:
    make(tmp_path, "good", "done")
    (make(tmp_path, "bad", "done") / "manifest.json").write_text("{", encoding="utf-8")
    assert find_run("good", tmp_path).name == "good"
    with pytest.raises(OnpolError, match="is not JSON"):
        find_run("bad", tmp_path)


def test_an_empty_folder_says_how_to_make_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list_all(tmp_path, as_json=False)
    assert "onpol reproduce tiny --quick" in capsys.readouterr().err


def test_the_table_names_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "distill-opd-sft-s0", "interrupted", [{"step": 4}], label="OPD from SFT")
    list_all(tmp_path, as_json=False)
    line = next(line for line in capsys.readouterr().out.splitlines() if "distill-opd-sft-s0" in line)
    assert "OPD from SFT" in line and "interrupted" in line and " 5 " in line


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (59, "59s"), (60, "1m"), (7300, "2h"), (200000, "2d")])
def test_age_takes_the_largest_unit(seconds: int, text: str) -> None:
    now = datetime.datetime(2026, 1, 10, tzinfo=datetime.UTC)
    assert age((now - datetime.timedelta(seconds=seconds)).isoformat(), now) == text


def test_age_of_an_unstarted_run_is_a_dash() -> None:
    assert age(None) == "-"


def test_budget_sums_costs_and_takes_the_peak_of_memory() -> None:
    rows = [
        {"step": -1, "tokens/generated": 5.0, "time/generate": 1.0},
        {
            "step": 0,
            "tokens/generated": 10.0,
            "time/generate": 2.0,
            "memory/peak_mb": 70.0,
            "tokens/padding_share": 0.5,
        },
        {"step": 1, "tokens/generated": 20.0, "time/train": 0.5, "memory/peak_mb": 60.0, "loss/total": 9.0},
    ]
    expected = {"steps": 2.0, "tokens/generated": 35.0, "time/generate": 3.0, "time/train": 0.5, "memory/peak_mb": 70.0}
    assert budget(rows) == expected


def test_show_prints_provenance_budget_and_benches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make(
        tmp_path, "eval-a", "done", [{"step": 0, "tokens/generated": 7.0}], command=["onpol", "eval"], git_commit="abc1"
    )
    metric = {"pass@1": {"value": 0.5, "low": 0.4, "high": 0.6}}
    (path / "summary.json").write_text(
        json.dumps({"humaneval": {"n": 10, "metrics": metric, "outcomes": {"passed": 5}}})
    )
    show_run("eval-a", tmp_path, as_json=False)
    text = capsys.readouterr().out
    assert "onpol eval" in text and "abc1" in text and "tokens/generated" in text and "0.500 [0.400, 0.600]" in text


def test_describe_is_what_json_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "one", "done", [{"step": 0, "loss/total": 1.0}])
    show_run("one", tmp_path, as_json=True)
    assert json.loads(capsys.readouterr().out) == describe(find_run("one", tmp_path))


def test_watch_once_prints_the_present_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "rl", "done", [{"step": 3, "reward/mean": 0.25}], planned_steps=4)
    watch_run("rl", tmp_path, once=True)
    assert capsys.readouterr().out == "rl: done  step 4/4  reward 0.250\n"


def test_watching_a_finished_run_prints_it_once_and_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, "rl", "failed", [{"step": 3}])
    watch_run("rl", tmp_path, once=False)
    assert capsys.readouterr().out == "rl: failed  step 4/?\n"


def test_headline_of_a_living_run_has_an_eta(tmp_path: Path) -> None:
    with RunDir.open(tmp_path / "rl", resume=False) as run:
        run.update_manifest(run="rl", status="running", planned_steps=10)
        run.log({"step": 3, "time/step": 2.0})
        assert headline(find_run("rl", tmp_path)) == "rl: running  step 4/10  ETA about 12 s"


def test_a_torn_last_line_is_not_shown(tmp_path: Path) -> None:
    path = make(tmp_path, "rl", "done", [{"step": 0}])
    with (path / METRICS).open("a", encoding="utf-8") as file:
        file.write('{"step": 1, "rew')
    assert row_of(find_run("rl", tmp_path))["steps"] == 1


def test_prune_without_yes_deletes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make(tmp_path, "bad", "failed")
    prune_runs(tmp_path, states_only=False, really=False)
    assert path.is_dir() and f"would delete {path}" in capsys.readouterr().out


def test_prune_deletes_unfinished_runs_and_nothing_else(tmp_path: Path) -> None:
    for status in ("failed", "interrupted", "running", "done"):
        make(tmp_path, status, status)
    with RunDir.open(tmp_path / "busy", resume=False) as run:
        run.update_manifest(run="busy", status="running")
        prune_runs(tmp_path, states_only=False, really=True)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["busy", "done"]


def test_prune_states_keeps_the_run_and_its_checkpoint(tmp_path: Path) -> None:
    path = make(tmp_path, "done", "done")
    other = make(tmp_path, "failed", "failed")
    for folder in (path / "state", path / "checkpoint", other / "state"):
        folder.mkdir()
    prune_runs(tmp_path, states_only=True, really=True)
    assert not (path / "state").exists() and (path / "checkpoint").is_dir() and (other / "state").is_dir()


def test_a_failed_run_that_holds_another_run_is_kept(tmp_path: Path) -> None:
    make(make(tmp_path, "outer", "failed"), "inner", "done")
    assert prunable(tmp_path, False) == []


def test_prune_json_says_whether_it_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make(tmp_path, "bad", "failed")
    prune_runs(tmp_path, states_only=False, really=False, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["deleted"] is False and [row["path"] for row in shown["paths"]] == [str(path)]
    assert len(list_runs(tmp_path)) == 1
