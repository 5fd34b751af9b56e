"""Answers files: formats, numbering, and what is refused before anything is graded."""

import gzip
import json

import pytest

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.types import Problem
from onpol_cli.tasks.answers import match_answers, read_answers

PROBLEMS = [Problem(name, "", None) for name in ("a", "b", "c")]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_completion_lines_are_text_and_samples_are_counted(tmp_path):
    path = write(
        tmp_path / "x.jsonl",
        [
            {"problem_id": "a", "completion": "1", "model": "ignored"},
            {"problem_id": "b", "completion": "2"},
            {"problem_id": "a", "completion": "3", "truncated": True},
        ],
    )
    answers = read_answers(path)
    assert [(r.problem_id, r.sample, r.completion.text) for r in answers] == [
        ("a", 0, "1"),
        ("b", 0, "2"),
        ("a", 1, "3"),
    ]
    assert not answers[0].completion.is_code
    assert [r.completion.truncated for r in answers] == [False, False, True]


def test_given_sample_numbers_are_kept(tmp_path):
    rows = [{"problem_id": "a", "completion": "x", "sample": n} for n in (7, 3)]
    assert [r.sample for r in read_answers(write(tmp_path / "x.jsonl", rows))] == [7, 3]


def test_solution_and_code_list_are_code_as_it_stands(tmp_path):
    path = write(
        tmp_path / "x.jsonl",
        [
            {"task_id": "a", "solution": "x = 1"},
            {"question_id": "b", "output_list": ["text"], "code_list": ["y = 1", "y = 2"]},
            {"question_id": "c", "output_list": ["only text"]},
        ],
    )
    found = [(r.problem_id, r.sample, r.completion.text, r.completion.is_code) for r in read_answers(path)]
    assert found == [
        ("a", 0, "x = 1", True),
        ("b", 0, "y = 1", True),
        ("b", 1, "y = 2", True),
        ("c", 0, "only text", False),
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz", ".parquet.gz"])
def test_every_format_gives_the_same_answers(tmp_path, suffix):
    rows = [{"problem_id": "a", "completion": "é\n1"}, {"problem_id": "b", "completion": "2", "sample": 4}]
    path = tmp_path / f"x{suffix}"
    if ".parquet" in suffix:
        import pandas as pd

        pd.DataFrame(rows).to_parquet(tmp_path / "x.parquet")
        data = (tmp_path / "x.parquet").read_bytes()
    else:
        data = (json.dumps(rows) if ".json." in suffix + "." else "\n".join(map(json.dumps, rows))).encode()
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    assert [(r.problem_id, r.sample, r.completion.text) for r in read_answers(path)] == [
        ("a", 0, "é\n1"),
        ("b", 4, "2"),
    ]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"completion": "x"}, "no problem id"),
        ({"problem_id": "a"}, "no answer"),
        ({"problem_id": "a", "completion": 3}, "must be text"),
        ({"problem_id": "a", "completion": "x", "sample": -1}, "whole number"),
        ({"problem_id": "a", "completion": "x", "sample": "0"}, "whole number"),
        ({"problem_id": "a", "completion": "x", "sample": True}, "whole number"),
    ],
)
def test_bad_records_are_named(tmp_path, record, said):
    path = write(tmp_path / "x.jsonl", [{"problem_id": "b", "completion": "ok"}, record])
    with pytest.raises(OnpolError, match=f"record 2.*{said}") as caught:
        read_answers(path)
    assert "\n" not in str(caught.value)


def test_the_same_sample_twice_is_refused(tmp_path):
    rows = [{"problem_id": "a", "completion": "x", "sample": 0}] * 2
    with pytest.raises(OnpolError, match=r"record 2: problem 'a', sample 0 was already given in .*record 1"):
        read_answers(write(tmp_path / "x.jsonl", rows))


def raws(tmp_path, *ids, **extra):
    return read_answers(write(tmp_path / "x.jsonl", [{"problem_id": i, "completion": "x", **extra} for i in ids]))


def test_matching_keeps_file_order(tmp_path):
    matched = match_answers(raws(tmp_path, "c", "a", "b", "a"), {"bench": PROBLEMS})
    assert [(a.problem.problem_id, a.sample) for a in matched["bench"]] == [("c", 0), ("a", 0), ("b", 0), ("a", 1)]


def test_unknown_problem_is_refused_with_near_names(tmp_path):
    problems = [Problem("HumanEval/12", "", None), Problem("HumanEval/2", "", None)]
    with pytest.raises(OnpolError, match=r"record 1.*'HumanEva/12' is not in bench.*HumanEval/12"):
        match_answers(raws(tmp_path, "HumanEva/12"), {"bench": problems}, partial=True)


def test_missing_answers_are_refused_unless_partial(tmp_path):
    with pytest.raises(OnpolError, match=r"2 of 3 problems have no answer \(a, c\).*--partial"):
        match_answers(raws(tmp_path, "b"), {"bench": PROBLEMS})
    assert len(match_answers(raws(tmp_path, "b"), {"bench": PROBLEMS}, partial=True)["bench"]) == 1


def test_answers_to_filtered_problems_are_skipped(tmp_path):
    matched = match_answers(raws(tmp_path, "a", "z"), {"bench": PROBLEMS[:1]}, left_out={"z"})
    assert [a.problem.problem_id for a in matched["bench"]] == ["a"]


def test_one_file_for_two_benches(tmp_path):
    benches = {"one": [Problem("a", "", None)], "two": [Problem("b", "", None)]}
    matched = match_answers(raws(tmp_path, "b", "a"), benches)
    assert {name: [a.problem.problem_id for a in answers] for name, answers in matched.items()} == {
        "one": ["a"],
        "two": ["b"],
    }


def test_an_id_in_two_benches_needs_the_bench_field(tmp_path):
    benches = {"one": [Problem("a", "", None)], "two": [Problem("a", "", None)]}
    with pytest.raises(OnpolError, match="one and two"):
        match_answers(raws(tmp_path, "a"), benches)
    matched = match_answers(raws(tmp_path, "a", bench="two"), benches, partial=True)
    assert [len(matched["one"]), len(matched["two"])] == [0, 1]


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n")
    with pytest.raises(OnpolError, match=r"x\.jsonl"):
        read_answers(tmp_path / "x.jsonl")


def test_lone_surrogates_of_an_answer_can_be_written(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"problem_id": "a", "solution": "x = \\"\\ud800\\""}\n')
    (answer,) = read_answers(path)
    assert answer.completion.text == 'x = "?"'
