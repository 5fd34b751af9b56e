"""LiveCodeBench's own result file, `*_eval_all.json`: one object a problem, with lists over samples.

Owns that format, both ways. Answers in it are read for grading by `tasks.answers` (`code_list`); here its
grades are read for comparison, and ours are written so that the official scripts (`compute_scores`) and
people's tools can go on with them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.files import write_json
from onpol_cli.core.records import read_records
from onpol_cli.core.types import Outcome, Problem

FILE_NAME = "livecodebench_eval_all.json"
ERROR_CODES = {
    Outcome.FAILED.value: (-2, "Wrong Answer"),
    Outcome.TIMEOUT.value: (-3, "Time Limit Exceeded"),
    Outcome.ERROR.value: (-4, "Runtime Error"),
    Outcome.NO_ANSWER.value: (-4, "No code"),
    Outcome.TRUNCATED.value: (-4, "Truncated"),
}
"""The official evaluator's code and words for what did not pass."""


def write_eval_all(path: Path, problems: Sequence[Problem], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write graded lines of samples.jsonl in the official format, sorted by question_id as there.

    Args:
        path: file to replace.
        problems: those of the bench; problems without a line are left out.
        rows: lines of samples.jsonl.
    """
    by_problem: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_problem[row["problem_id"]].append(row)
    graded = [problem for problem in problems if problem.problem_id in by_problem]
    write_json(path, [_entry(p, by_problem[p.problem_id]) for p in sorted(graded, key=lambda p: p.problem_id)])


def _entry(problem: Problem, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = sorted(rows, key=lambda row: int(row["sample"]))
    passed = [row["outcome"] == Outcome.PASSED.value for row in rows]
    return {
        "question_title": problem.meta["title"],
        "question_content": problem.statement,
        "platform": problem.meta["platform"],
        "question_id": problem.problem_id,
        "contest_id": problem.meta["contest_id"],
        "contest_date": problem.meta["contest_date"],
        "starter_code": problem.meta["starter_code"],
        "difficulty": problem.meta["difficulty"],
        "output_list": [row["completion"] for row in rows],
        "code_list": [row["code"] or "" for row in rows],
        "graded_list": passed,
        "pass@1": sum(passed) / len(passed),
        "metadata": [json.dumps(_metadata(row)) for row in rows],
    }


def _metadata(row: Mapping[str, Any]) -> dict[str, Any]:
    if row["outcome"] not in ERROR_CODES:
        return {}
    code, words = ERROR_CODES[row["outcome"]]
    return {"error_code": code, "error_message": words, "error": row["detail"]}


def read_grades(path: Path) -> dict[str, list[bool]]:
    """Published grades by question_id, one per sample.

    Raises:
        OnpolError: a record without `question_id` or `graded_list`.
    """
    grades: dict[str, list[bool]] = {}
    for number, record in enumerate(read_records(path), 1):
        graded = record.get("graded_list")
        if "question_id" not in record or not isinstance(graded, list):
            raise OnpolError(f"{path}, record {number}: no question_id or no graded_list. Give an *_eval_all.json.")
        grades[str(record["question_id"])] = [bool(value) for value in graded]
    return grades
