"""Data files in every format, and what is said of broken ones."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.records import check_unique, read_records, require_fields, write_jsonl, write_records

ROWS = [{"task_id": "a", "tests": ["x", "y"], "n": 1}, {"task_id": "b\u2028", "tests": ["z"], "n": 2}]


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.parquet", "d.jsonl.gz", "d.json.gz"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    write_records(tmp_path / "sub" / name, ROWS)
    assert read_records(tmp_path / "sub" / name) == ROWS
    assert [path.name for path in (tmp_path / "sub").iterdir()] == [name]


def test_gzipped_parquet_is_read(tmp_path: Path) -> None:
    write_records(tmp_path / "d.parquet", ROWS)
    (tmp_path / "d.parquet.gz").write_bytes(gzip.compress((tmp_path / "d.parquet").read_bytes()))
    assert read_records(str(tmp_path / "d.parquet.gz")) == ROWS


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.parquet"])
def test_same_rows_same_bytes(tmp_path: Path, name: str) -> None:
    write_records(tmp_path / name, ROWS)
    first = (tmp_path / name).read_bytes()
    write_records(tmp_path / name, ROWS)
    assert (tmp_path / name).read_bytes() == first


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    write_jsonl(path, ROWS)
    with pytest.raises(TypeError):
        write_jsonl(path, [{"a": object()}])
    assert read_records(path) == ROWS
    assert [item.name for item in tmp_path.iterdir()] == ["d.jsonl"]


BROKEN: list[tuple[str, bytes | None, str]] = [
    ("d.jsonl", None, "does not exist"),
    ("d.txt", b"{}", r"Allowed: \.jsonl, \.json, \.parquet"),
    ("d.gz", b"", "cannot tell the format"),
    ("d.jsonl", b"", "holds no records"),
    ("d.json", b"[]", "holds no records"),
    ("d.jsonl", b'{"a": 1}\n{"a": ', r"record 2 \(line 2\).*cut off"),
    ("d.jsonl", b'{"a": 1}\n\nnope\n{"a": 2}\n', r"record 2 \(line 3\): not valid JSON"),
    ("d.jsonl", b"[1]\n", "record 1 .*a list, not an object"),
    ("d.jsonl", b"\xff\xfe", "not UTF-8"),
    ("d.json", b"\xff\xfe", "not UTF-8"),
    ("d.json", b'{"a": 1}', "an object. A JSON array"),
    ("d.json", b'{"a": 1}\n{"a": 2}', r"a line an object"),
    ("d.json", b'[{"a": 1}, 7]', "record 2: a whole number"),
    ("d.json", b"[" * 100_000, "not valid JSON"),
    ("d.parquet", b"PAR1 nonsense", "not a readable Parquet file"),
    ("d.jsonl.gz", b"plain", "not a complete gzip file"),
    ("d.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 1000, mtime=0)[:-20], "not a complete gzip file"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_broken_files_are_named_with_what_to_do(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OnpolError, match=message) as caught:
        read_records(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_data_file(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(OnpolError, match="cannot be read"):
        read_records(tmp_path / "d.jsonl")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"b": 1.0}, "'a' is missing .a text is needed"),
        ({"a": None, "b": 1.0}, "'a' is missing"),
        ({"a": 3, "b": 1.0}, "'a' is a whole number, where a text is needed"),
        ({"a": "", "b": 1.0}, "'a' is empty"),
        ({"a": "x", "b": True}, "'b' is true or false, where a number is needed"),
        ({"a": "x", "b": []}, "'b' is a list, where a number is needed"),
    ],
)
def test_fields_are_checked(record: dict[str, Any], message: str) -> None:
    with pytest.raises(OnpolError, match=f"f.jsonl, record 7: field {message}"):
        require_fields("f.jsonl, record 7", record, {"a": str, "b": float})


def test_good_fields_pass() -> None:
    record = json.loads('{"a": "x", "b": 1, "c": [0], "d": false}')
    require_fields("f", record, {"a": str, "b": float, "c": (list, str)})


def test_repeated_ids_are_refused() -> None:
    check_unique("f.jsonl", ["a", "b"])
    with pytest.raises(OnpolError, match="record 3: question_id 'a' was already given in record 1"):
        check_unique("f.jsonl", ["a", "b", "a"], "question_id")
