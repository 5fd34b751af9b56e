"""Batches made ahead, saved and put back."""

import json

import pytest

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.types import Finish, Grade, Outcome, Problem, Rollout
from onpol_cli.learner.parallel import ALONE, World
from onpol_cli.methods.base import Sample
from onpol_cli.training.ahead import AheadSource
from onpol_cli.training.pending import groups_of, plain

PROBLEMS = [Problem(f"p{number}", "statement", None) for number in range(4)]


def sample(problem: Problem, number: int, reward: float) -> Sample:
    rollout = Rollout(problem.problem_id, number, (1, 2), (3, 4), (-0.1, -1 / 3), Finish.LENGTH, "text\\n", 5)
    grade = Grade(Outcome.FAILED, reward, "code", 0.25, None, "why", True, {"pass_below_fail": True})
    return Sample(problem, rollout.prompt_ids, rollout.completion_ids, rollout, grade)


def test_groups_come_back_as_they_were():
    groups = [[sample(PROBLEMS[0], 0, 0.1), sample(PROBLEMS[0], 1, -1e-17)], [Sample(PROBLEMS[1], (7,), (8, 9))]]
    text = json.dumps(plain(groups))
    assert groups_of(json.loads(text), {problem.problem_id: problem for problem in PROBLEMS}) == groups


def test_a_problem_that_is_gone_is_named():
    with pytest.raises(OnpolError, match="problem p0, which the task no longer has"):
        groups_of(plain([[sample(PROBLEMS[0], 0, 0.1)]]), {})


class Made:
    """A source whose batches tell their step and the weights they were made with."""

    version = 0

    def groups(self, step):
        return [[sample(problem, step, float(self.version))] for problem in PROBLEMS], {"reward/mean": self.version}


def ahead(made: Made) -> AheadSource:
    return AheadSource(made, lambda: made.version, 5, 60.0, PROBLEMS)


def saved(source: AheadSource, step: int) -> dict:
    """What a state would hold."""
    return json.loads(json.dumps(source.pending(step, ALONE)))


def test_what_waited_is_trained_on_after_a_resume_with_its_age():
    first = Made()
    source = ahead(first)
    for step in range(2):
        source.groups(step)
        source.settle()
        first.version += 1
    kept = saved(source, 2)
    expected = source.groups(2)
    assert expected[1]["rollout/staleness"] == 1 and saved(source, 2) == kept, "taken or not, it is the same"
    assert source.pending(4, ALONE) is None
    again = Made()
    resumed = ahead(again)
    resumed.put_back(kept, ALONE)
    again.version += 1  # the sync after a resume
    assert saved(resumed, 2) == kept, "and can be saved again before it is taken"
    assert resumed.groups(2) == expected
    assert resumed.groups(3)[1]["rollout/staleness"] == 0, "no update came between"


def test_another_number_of_processes_shares_the_batch_anew():
    first = Made()
    source = ahead(first)
    source.groups(0)
    kept = source.pending(1, ALONE)
    shares = []
    for rank in range(2):
        resumed = ahead(Made())
        resumed.put_back(kept, World(rank, 2))
        groups, metrics = resumed.groups(1)
        assert metrics["tokens/generated"] == 2 * len(groups), "of its own share"
        shares += [group[0].problem.problem_id for group in groups]
    assert sorted(shares) == ["p0", "p1", "p2", "p3"]
