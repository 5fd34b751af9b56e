"""Sampled evaluations that were interrupted, with an engine that draws other answers when it is started again."""

import json

import pytest

from onpol_cli.core.types import Finish, Grade, Outcome, Problem, Rollout
from onpol_cli.evaluation.model_eval import evaluate_bench
from onpol_cli.evaluation.records import read_done

PROBLEMS = [(Problem(str(number), "", None), (number,)) for number in range(4)]


class Bench:
    """Passes everything; Ctrl-C after `last` answers."""

    name = "bench"

    def __init__(self, last=None):
        self.last = last

    def grade_each(self, items, on_grade):
        for index, (_, completion) in enumerate(items):
            if index == self.last:
                raise KeyboardInterrupt
            on_grade(index, Grade(Outcome.PASSED, 1.0, code=completion.text))


class Attempt:
    """One start of the command: an engine whose answers name the attempt."""

    def __init__(self, number, file):
        self.number, self.file, self.asked = number, file, []

    def sample(self, prompts):
        self.asked += [prompt.problem_id for prompt in prompts]
        return [self.rollout(prompt, sample) for prompt in prompts for sample in range(prompt.samples)]

    def rollout(self, prompt, sample):
        text = f"attempt {self.number}: {prompt.problem_id}.{sample}"
        return Rollout(prompt.problem_id, sample, prompt.ids, (1,), (0.0,), Finish.STOP, text)

    def write(self, rows):
        with self.file.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def run(self, task):
        options = {"temperature": 1.0, "samples": 2, "seed": 0, "done": read_done(self.file)}
        return evaluate_bench(task, PROBLEMS, self.sample, self.write, **options)


def test_answers_that_were_graded_stay_although_the_engine_would_draw_others(tmp_path):
    first, second, third = (Attempt(number, tmp_path / "samples.jsonl") for number in (1, 2, 3))
    with pytest.raises(KeyboardInterrupt):
        first.run(Bench(last=3))  # all of problem 0, half of problem 1
    rows = second.run(Bench())
    assert second.asked == ["1", "2", "3"]
    assert [row["completion"].split(": ") for row in rows] == [
        *(["attempt 1", name] for name in ("0.0", "0.1", "1.0")),
        *(["attempt 2", name] for name in ("1.1", "2.0", "2.1", "3.0", "3.1")),
    ]
    assert list(read_done(first.file).values()) == rows
    assert third.run(Bench()) == rows and third.asked == []
