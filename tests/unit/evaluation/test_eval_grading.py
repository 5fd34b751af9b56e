"""Grading writes in order, resumes where it was interrupted, and keeps the contract of a line."""

import json

import pytest

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.types import Completion, Grade, Outcome, Problem
from onpol_cli.evaluation.grading import CHUNK, Streaming, grade_answers
from onpol_cli.evaluation.records import read_done, sample_row
from onpol_cli.tasks.answers import Answer


def graded(problem, completion):
    return Grade(Outcome.PASSED if completion.text == "right" else Outcome.FAILED, 1.0, code=completion.text)


class Chunked:
    """A task that grades whole batches; `calls` counts the graded answers."""

    name = "bench"

    def __init__(self):
        self.calls = 0

    def grade(self, items):
        self.calls += len(items)
        return [graded(*item) for item in items]


class Backwards(Chunked):
    """A task that reports its grades last first, and stops where it is told to."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.stop_after = stop_after

    def grade_each(self, items, on_grade):
        grades = [graded(*item) for item in items]
        half = len(items) // 2
        order = [*range(half)][::-1] + [*range(half, len(items))][::-1]
        for count, index in enumerate(order):
            if count == self.stop_after:
                raise KeyboardInterrupt
            self.calls += 1
            on_grade(index, grades[index])
        return grades


def answers(count):
    texts = ["right" if i % 3 else "wrong" for i in range(count)]
    return [Answer(Problem(str(i // 2), "", None), i % 2, Completion(text)) for i, text in enumerate(texts)]


class File:
    """samples.jsonl as the run directory writes it."""

    def __init__(self, path):
        self.path = path

    def write(self, rows):
        with self.path.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("task", [Chunked(), Backwards()])
def test_lines_are_written_in_order_of_the_answers(tmp_path, task):
    file, count = File(tmp_path / "s.jsonl"), CHUNK + 9
    rows = grade_answers(task, answers(count), file.write)
    written = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert written == rows
    assert [(row["problem_id"], row["sample"]) for row in rows] == [(str(i // 2), i % 2) for i in range(count)]


def test_streaming_is_recognised():
    assert isinstance(Backwards(), Streaming) and not isinstance(Chunked(), Streaming)


def test_interruption_keeps_what_is_graded_and_the_rest_follows(tmp_path):
    whole, cut = File(tmp_path / "whole.jsonl"), File(tmp_path / "cut.jsonl")
    grade_answers(Backwards(), answers(20), whole.write)
    with pytest.raises(KeyboardInterrupt):
        grade_answers(Backwards(stop_after=13), answers(20), cut.write)
    kept = len(cut.path.read_text().splitlines())
    assert kept == 13  # the last three of them wait for lines before theirs
    again = Backwards()
    grade_answers(again, answers(20), cut.write, done=read_done(cut.path))
    assert again.calls == 20 - kept
    assert sorted(cut.path.read_text().splitlines()) == sorted(whole.path.read_text().splitlines())


def test_a_torn_last_line_is_cut_and_graded_again(tmp_path):
    whole, torn = File(tmp_path / "whole.jsonl"), File(tmp_path / "torn.jsonl")
    grade_answers(Chunked(), answers(6), whole.write)
    torn.path.write_bytes(whole.path.read_bytes()[:-25])
    task = Chunked()
    grade_answers(task, answers(6), torn.write, done=read_done(torn.path))
    assert task.calls == 1
    assert torn.path.read_text() == whole.path.read_text()


def test_grades_of_other_answers_are_not_reused(tmp_path):
    file = File(tmp_path / "s.jsonl")
    grade_answers(Chunked(), answers(2), file.write)
    other = [Answer(Problem("0", "", None), 0, Completion("something else"))]
    with pytest.raises(OnpolError, match="another answer to bench problem '0', sample 0"):
        grade_answers(Chunked(), other, file.write, done=read_done(file.path))


def test_progress_counts_up_to_the_total(tmp_path):
    told = []
    grade_answers(
        Backwards(), answers(8), lambda rows: None, on_progress=lambda done, total: told.append((done, total))
    )
    assert told[0] == (0, 8) and told[-1] == (8, 8)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_the_same_answer_at_two_temperatures_is_two_lines():
    heat = [Answer(Problem("0", "", None), 0, Completion("right"), {"temperature": t}) for t in (0.0, 1.0)]
    rows = grade_answers(Chunked(), heat[:1], lambda rows: None)
    done = {("bench", "0", 0, 0.0): rows[0]}
    task = Chunked()
    grade_answers(task, heat, lambda rows: None, done=done)
    assert task.calls == 1


def test_a_line_has_the_contract_of_an_edit_bench():
    problem = Problem("p", "s", None, original="o", corrupted="c", families=("f",), meta={"difficulty": "easy"})
    grade = Grade(
        Outcome.FAILED, -0.2, code="x", excess_levenshtein=0.4, added_cc=None, detail="d", extra={"reward": 9, "n": 1}
    )
    row = sample_row("minimal-edit", Answer(problem, 3, Completion("text"), {"temperature": 1.0}), grade)
    assert row == {
        "bench": "minimal-edit", "problem_id": "p", "sample": 3, "outcome": "failed", "reward": -0.2,
        "completion": "text", "excess_levenshtein": 0.4, "added_cc": None, "families": ["f"], "difficulty": "easy",
        "code": "x", "detail": "d", "wall_timeout": False, "n": 1, "temperature": 1.0,
    }  # fmt: skip


def test_a_line_of_a_generation_bench_has_no_edit_metrics():
    row = sample_row("mbpp", Answer(Problem("2", "s", None), 0, Completion("t")), Grade(Outcome.PASSED, 1.0))
    assert "excess_levenshtein" not in row and "families" not in row


def test_reading_done_lines_of_no_file(tmp_path):
    assert read_done(tmp_path / "none.jsonl") == {}
