"""The official `*_eval_all.json` format, both ways."""

import json

import pytest

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.types import Problem
from onpol_cli.tasks.answers import read_answers
from onpol_cli.tasks.livecodebench.official import read_grades, write_eval_all

META = {
    "title": "T",
    "platform": "atcoder",
    "contest_id": "c",
    "contest_date": "2024-01-06T00:00:00",
    "starter_code": "",
    "difficulty": "easy",
}


def row(problem_id, sample, outcome):
    text = f"answer {sample}"
    return {
        "problem_id": problem_id, "sample": sample, "outcome": outcome, "completion": text,
        "code": None if outcome == "no_answer" else f"code {sample}", "detail": "d",
    }  # fmt: skip


def test_what_is_written_can_be_read_and_graded_again(tmp_path):
    problems = [Problem(name, "statement", None, meta=META) for name in ("b", "a", "unanswered")]
    rows = [row("b", 1, "failed"), row("b", 0, "passed"), row("a", 0, "timeout"), row("a", 1, "no_answer")]
    path = tmp_path / "x.json"
    write_eval_all(path, problems, rows)
    assert read_grades(path) == {"a": [False, False], "b": [True, False]}
    written = json.loads(path.read_text())
    assert [entry["question_id"] for entry in written] == ["a", "b"]
    assert written[1]["pass@1"] == 0.5
    assert [json.loads(m).get("error_code") for m in written[0]["metadata"] + written[1]["metadata"]] == [
        -3,
        -4,
        None,
        -2,
    ]
    assert set(written[0]) == {
        "question_title", "question_content", "platform", "question_id", "contest_id", "contest_date", "starter_code",
        "difficulty", "output_list", "code_list", "graded_list", "pass@1", "metadata",
    }  # fmt: skip
    answers = [(a.problem_id, a.sample, a.completion.text) for a in read_answers(path)]
    assert answers == [("a", 0, "code 0"), ("a", 1, ""), ("b", 0, "code 0"), ("b", 1, "code 1")]


def test_a_file_without_grades_is_refused(tmp_path):
    (tmp_path / "x.json").write_text('[{"question_id": "a"}]')
    with pytest.raises(OnpolError, match="record 1: no question_id or no graded_list"):
        read_grades(tmp_path / "x.json")
