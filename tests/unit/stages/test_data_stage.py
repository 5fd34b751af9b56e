"""`onpol data`: the list, a data set made from a small pool, and its verification."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from edit_pool import POOL

from onpol_cli.core.errors import OnpolError
from onpol_cli.stages.data import PrepareRequest, describe, list_data, local_file, prepare_data, progress, verify_data
from onpol_cli.tasks.catalog import BENCHES


def test_the_list_names_every_bench_with_its_origin(capsys: pytest.CaptureFixture[str]) -> None:
    list_data(as_json=True)
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["benches"]}
    assert set(rows) == set(BENCHES)
    assert rows["tiny-codegen"]["generated"] and rows["humaneval"]["licence"] == "MIT"
    list_data(as_json=False)
    assert "tiny-edit-ood" in capsys.readouterr().out


def test_data_are_found_in_the_environments_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONPOL_DATA", str(tmp_path))
    assert local_file("mbpp") is None and describe("mbpp")["get"]
    file = tmp_path / "mbpp" / "sanitized-mbpp.json"
    file.parent.mkdir()
    file.write_text("[]")
    assert local_file("mbpp") == file and describe("mbpp")["get"] is None


def test_only_minimal_edit_is_prepared(tmp_path: Path) -> None:
    with pytest.raises(OnpolError, match="Nothing to prepare for 'humaneval'"):
        prepare_data(PrepareRequest("humaneval", "mbpp", tmp_path / "out.jsonl"))


def test_a_missing_source_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OnpolError, match=r"--data /nowhere\.json: no such file"):
        prepare_data(PrepareRequest("minimal-edit", "mbpp", tmp_path / "out.jsonl", data="/nowhere.json"))
    with pytest.raises(OnpolError, match=r"FILE /nowhere\.jsonl: no such file"):
        verify_data(Path("/nowhere.jsonl"), as_json=True)


def test_prepared_data_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool, out = tmp_path / "pool.json", tmp_path / "edits.jsonl"
    pool.write_text(json.dumps(POOL))
    prepare_data(PrepareRequest("minimal-edit", "mbpp", out, data=str(pool), families="all", as_json=True))
    made = json.loads(capsys.readouterr().out)
    assert made["sources"] == 4 and made["items"] == len(out.read_text().splitlines()) > 0
    verify_data(out, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["originals_passed"] == found["corrupted_failed"] == made["items"]
    assert Path(found["usable_file"]).is_file()


def test_several_programs_of_one_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pool, out = tmp_path / "pool.json", tmp_path / "edits.jsonl"
    pool.write_text(json.dumps(POOL[:1]))
    request = PrepareRequest(
        "minimal-edit", "mbpp", out, data=str(pool), families="all", max_corruptions=1, per_problem=2, as_json=True
    )
    prepare_data(request)
    assert json.loads(capsys.readouterr().out)["items"] == 2
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["problem_id"] for row in rows] == ["mbpp/1#0", "mbpp/1#1"]
    assert len({row["corrupted"] for row in rows}) == 2


def test_an_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    pool, out = tmp_path / "pool.json", tmp_path / "edits.jsonl"
    pool.write_text(json.dumps(POOL))
    out.write_text("mine")
    with pytest.raises(OnpolError, match="exists"):
        prepare_data(PrepareRequest("minimal-edit", "mbpp", out, data=str(pool)))
    assert out.read_text() == "mine"


def test_progress_without_a_terminal_tells_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("work") as tell:
        tell(1, 2)
        tell(2, 2)
    assert capsys.readouterr().err == "work: 2/2\n"
