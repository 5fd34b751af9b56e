"""Summaries of graded lines, hand-worked."""

import pytest

from onpol_cli.core.intervals import wilson
from onpol_cli.core.types import Problem
from onpol_cli.evaluation.summary import summarise


def problem(name, families=(), **meta):
    return Problem(name, "", None, corrupted="x" if families else None, families=families, meta=meta)


def line(problem_id, outcome, sample=0, **extra):
    return {"bench": "b", "problem_id": problem_id, "sample": sample, "outcome": outcome, "reward": 0.0, **extra}


def edit(problem_id, outcome, excess, cc, sample=0):
    return line(problem_id, outcome, sample, excess_levenshtein=excess, added_cc=cc)


def test_pass_at_1_with_wilson():
    problems = [problem(str(i)) for i in range(4)]
    rows = [line("0", "passed"), line("1", "failed"), line("2", "passed"), line("3", "timeout")]
    found = summarise(problems, rows)
    assert found["n"] == 4 and found["answers"] == 4
    low, high = wilson(2, 4)
    assert found["metrics"] == {"pass@1": {"value": 0.5, "low": low, "high": high}}
    assert found["outcomes"] == {
        "passed": 2, "failed": 1, "timeout": 1, "no_answer": 0, "truncated": 0, "error": 0,
    }  # fmt: skip


def test_missing_answers_count_as_no_answer_with_n_unchanged():
    found = summarise([problem("0"), problem("1")], [line("0", "passed")])
    assert found["n"] == 2 and found["answers"] == 1
    assert found["metrics"]["pass@1"]["value"] == 0.5
    assert found["outcomes"]["no_answer"] == 1


def test_edit_metrics_average_over_passing_answers():
    problems = [problem(str(i), families=("f",)) for i in range(4)]
    rows = [
        edit("0", "passed", 0.1, 1),
        edit("1", "passed", 0.3, None),
        edit("2", "failed", 9.0, 9),
        edit("3", "passed", 0.2, 3),
    ]
    metrics = summarise(problems, rows)["metrics"]
    assert metrics["excess_levenshtein"]["value"] == pytest.approx(0.2)
    assert metrics["added_cc"]["value"] == 2.0
    assert metrics["excess_levenshtein"]["low"] <= 0.2 <= metrics["excess_levenshtein"]["high"]


def test_edit_metrics_without_a_passing_answer_are_null():
    found = summarise([problem("0", families=("f",))], [edit("0", "failed", 0.5, 1)])
    assert found["metrics"]["excess_levenshtein"] == {"value": None, "low": None, "high": None}


def test_several_samples_give_pass_at_k():
    problems = [problem("0"), problem("1")]
    rows = [line("0", "passed", 0), line("0", "failed", 1), line("1", "failed", 0), line("1", "failed", 1)]
    metrics = summarise(problems, rows)["metrics"]
    assert metrics["pass@1"]["value"] == 0.25
    assert metrics["pass@2"]["value"] == 0.5
    assert metrics["avg@2"]["value"] == 0.25
    assert list(metrics) == ["pass@1", "pass@2", "avg@2"]


def test_groups_by_family_difficulty_platform_erratum():
    problems = [
        problem("0", difficulty="easy", platform="leetcode", erratum=None),
        problem("1", difficulty="hard", platform="leetcode", erratum="interactive"),
    ]
    groups = summarise(problems, [line("0", "passed"), line("1", "failed")])["groups"]
    assert {name: part["metrics"]["pass@1"]["value"] for name, part in groups["difficulty"].items()} == {
        "easy": 1,
        "hard": 0,
    }
    assert groups["platform"]["leetcode"]["n"] == 2
    assert set(groups["erratum"]) == {"interactive", "not listed"}
    two = [problem("0", families=("a", "b")), problem("1", families=("b",))]
    families = summarise(two, [edit("0", "passed", 0, 0), edit("1", "failed", 0, 0)])["groups"]["family"]
    assert {name: (part["n"], part["metrics"]["pass@1"]["value"]) for name, part in families.items()} == {
        "a": (1, 1.0),
        "b": (2, 0.5),
    }


def test_usable_problems_are_scored_apart():
    rows = [line("0", "passed"), line("1", "failed")]
    problems = [problem("0", original_passes=True), problem("1", original_passes=False)]
    groups = summarise(problems, rows)["groups"]["usable"]
    assert groups["original passes here"]["metrics"]["pass@1"]["value"] == 1.0
    assert groups["original fails here"]["n"] == 1
    assert "usable" not in summarise([problem("0"), problem("1")], rows)["groups"]


def test_the_same_lines_give_the_same_intervals():
    problems = [problem(str(i), families=("f",)) for i in range(9)]
    rows = [edit(str(i), "passed", i / 10, i) for i in range(9)]
    assert summarise(problems, rows) == summarise(problems, rows)
