"""LiveCodeBench records: official encodings in, lazily decoded tests out, one clear line for bad ones."""

import base64
import gzip
import json
import pickle
import zlib

import pytest

from onpol_cli.core.errors import OnpolError
from onpol_cli.tasks.livecodebench import data
from onpol_cli.tasks.livecodebench.data import load

STDIN = [{"input": "1\n", "output": "2\n", "testtype": "stdin"}]
CALL = [{"input": "[1, 2]\n3", "output": "4", "testtype": "functional"}]


def encode(tests) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def record(question_id="abc1_a", private=STDIN, **changes):
    base = {
        "question_title": "Add one",
        "question_content": "Add one.",
        "platform": "atcoder",
        "question_id": question_id,
        "contest_id": "abc1",
        "contest_date": "2024-01-06T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps(STDIN),
        "private_test_cases": encode(private),
        "metadata": "{}",
    }
    return {**base, **changes}


def write(path, *records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return [path]


def test_public_then_private_tests(tmp_path):
    private = [{"input": "5\n", "output": "6\n", "testtype": "stdin"}]
    (problem,) = load(write(tmp_path / "t.jsonl", record(private=private)))
    assert problem.tests.cases() == [("1\n", "2\n"), ("5\n", "6\n")]
    assert problem.tests.size == 8
    assert problem.entry_point is None
    assert problem.problem_id == "abc1_a"
    assert problem.meta["difficulty"] == "easy" and problem.meta["erratum"] is None


@pytest.mark.parametrize("private", [json.dumps(STDIN), STDIN])
def test_private_tests_as_json_text_or_list(tmp_path, private):
    (problem,) = load(write(tmp_path / "t.jsonl", record(private_test_cases=private)))
    assert problem.tests.cases() == [("1\n", "2\n")] * 2


def test_functional_problems_name_their_method(tmp_path):
    row = record(public_test_cases="[]", private=CALL, metadata='{"func_name": "add"}')
    (problem,) = load(write(tmp_path / "t.jsonl", row))
    assert problem.entry_point == "add"
    assert data.arguments("[1, 2]\n3") == ([1, 2], 3)


def test_large_tests_stay_in_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_KEEP_BYTES", 10)
    problems = load(write(tmp_path / "t.jsonl", record("a"), record("b", private=CALL)))
    assert all(problem.tests.private is None for problem in problems)
    assert problems[1].tests.cases()[1] == ("[1, 2]\n3", "4")


def test_gz_and_plain_give_the_same_problems(tmp_path):
    plain = write(tmp_path / "t.jsonl", record("a"), record("b"))[0]
    packed = tmp_path / "u.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert [p.tests.cases() for p in load([plain])] == [p.tests.cases() for p in load([packed])]


def test_errata_by_id_and_by_title(tmp_path):
    rows = record("abc343_e"), record("3194", question_title="Find Words Containing Character")
    problems = load(write(tmp_path / "t.jsonl", *rows))
    assert [p.meta["erratum"] for p in problems] == ["several right answers"] * 2


class Evil:
    def __reduce__(self):
        return print, ("poison",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"private_test_cases": None}, "cannot be used"),
        ({"private_test_cases": base64.b64encode(zlib.compress(pickle.dumps(Evil()))).decode()}, "not plain data"),
        ({"private_test_cases": base64.b64encode(b"no zlib").decode()}, "damaged zlib"),
        ({"private_test_cases": "]["}, "neither JSON nor base64"),
        ({"public_test_cases": "[]", "private_test_cases": "[]"}, "no tests"),
        ({"public_test_cases": '[{"input": "1"}]'}, "without the texts input and output"),
        ({"metadata": "{"}, "metadata is not JSON"),
        ({"metadata": '{"func_name": "os.system"}'}, "not a function name"),
        ({"metadata": '{"func_name": "f"}', "public_test_cases": '[{"input": "x", "output": "1"}]'}, "is not JSON"),
        ({"contest_date": "yesterday"}, "not an ISO date"),
        ({"question_content": 5}, "question_content must be text"),
    ],
)
def test_bad_records_name_file_record_and_field(tmp_path, capsys, change, said):
    paths = write(tmp_path / "t.jsonl", record("ok"), {**record("bad"), **change})
    with pytest.raises(OnpolError, match=said) as caught:
        load(paths)
    assert "t.jsonl, record 2 (bad)" in str(caught.value)
    assert "poison" not in capsys.readouterr().out


def test_a_missing_field_is_named(tmp_path):
    row = record()
    del row["private_test_cases"], row["metadata"]
    with pytest.raises(OnpolError, match="record 1: no field private_test_cases, metadata"):
        load(write(tmp_path / "t.jsonl", row))


def test_repeated_ids_are_refused(tmp_path):
    with pytest.raises(OnpolError, match="record 2: question_id 'a' occurs twice"):
        load(write(tmp_path / "t.jsonl", record("a"), record("a")))


def test_a_truncated_file_is_refused(tmp_path):
    (path,) = write(tmp_path / "t.jsonl", record("a"), record("b"))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(OnpolError, match=r"record 2: not JSON.*truncated"):
        load([path])


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(OnpolError, match=r"none\.jsonl does not exist"):
        load([tmp_path / "none.jsonl"])
