"""Loading edit problems, their tests as jobs, and prompts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from needed import missing

from onpol_cli.core.config import TaskConfig
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.records import write_records
from onpol_cli.core.types import Completion, Outcome
from onpol_cli.sandbox.jobs import AssertJob, CallJob, Job, Status, UnittestJob, Verdict
from onpol_cli.tasks.minimal_edit.data import read_problems
from onpol_cli.tasks.minimal_edit.families import FAMILIES
from onpol_cli.tasks.minimal_edit.prompts import edit_prompts
from onpol_cli.tasks.minimal_edit.shots import SHOTS
from onpol_cli.tasks.minimal_edit.task import minimal_edit
from onpol_cli.tasks.minimal_edit.testing import literal_calls, parameters_of

DATA = Path(os.environ.get("ONPOL_DATA", Path(__file__).parents[5] / "shared" / "data"))
PUBLISHED = DATA / "minimal_edit" / "corrupted_solutions_manual_easy_400.jsonl"

RECORD: dict[str, Any] = {
    "problem_id": "add/0",
    "source_id": "add",
    "statement": "Add {a} and b.",
    "original": "def f(a, b):\n    return a + b",
    "corrupted": "def f(a, b):\n    return a - b",
    "families": ["arithmetic_operators"],
    "tests": "assert f(1, b=2) == 3",
    "test_kind": "assert",
    "entry_point": "f",
}


class Recorder:
    """Stands where the sandbox does: keeps the jobs, passes those whose source contains '+'."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def run(self, jobs: Sequence[Job], on_verdict: Callable[[int, Verdict], None] | None = None) -> list[Verdict]:
        self.jobs += jobs
        verdicts = [Verdict(Status.PASSED if "+" in job.source else Status.FAILED) for job in jobs]
        for index, verdict in enumerate(verdicts):
            if on_verdict:
                on_verdict(index, verdict)
        return verdicts


def _file(tmp_path: Path, *changes: dict[str, Any]) -> Path:
    path = tmp_path / "d.jsonl"
    write_records(path, [{**RECORD, **change} for change in changes])
    return path


def test_the_published_file_loads_as_it_is() -> None:
    if not PUBLISHED.exists():
        missing(f"{PUBLISHED} is missing; set ONPOL_DATA")
    problems = read_problems(PUBLISHED)
    assert len(problems) == 400
    assert sum(len(problem.families) == 2 for problem in problems) == 168
    assert {name for problem in problems for name in problem.families} <= set(FAMILIES)
    assert problems[0].problem_id == "BigCodeBench/0"
    job = problems[0].tests.job("x = 1")
    assert isinstance(job, UnittestJob)
    assert (job.entry_point, job.class_name, job.source) == ("task_func", "TestCases", "x = 1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tests": ""}, "'tests' is empty"),
        ({"tests": None}, "'tests' is missing"),
        ({"original": 3}, "'original' is a whole number"),
        ({"test_kind": "magic"}, "'test_kind' is 'magic'; allowed: assert, unittest"),
        ({"corrupted": "def f(:"}, "the corrupted program does not parse"),
        ({"corrupted_solution": "x"}, "'task_id' is missing"),
    ],
)
def test_bad_records_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(OnpolError, match=f"record 2: .*{message}"):
        read_problems(_file(tmp_path, {}, {"problem_id": "other", **change}))


def test_repeated_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OnpolError, match="record 2: problem_id 'add/0' was already given"):
        read_problems(_file(tmp_path, {}, {}))


def test_published_records_need_a_corruption_name(tmp_path: Path) -> None:
    fields = ["task_id", "prompt", "canonical_solution", "corrupted_solution", "test_code"]
    write_records(tmp_path / "d.json", [dict.fromkeys(fields, "x = 1")])
    with pytest.raises(OnpolError, match="neither 'mutation_type' nor"):
        read_problems(tmp_path / "d.json")


def test_literal_tests_become_calls_and_others_stay_scripts(tmp_path: Path) -> None:
    (problem,) = read_problems(_file(tmp_path, {}))
    job = problem.tests.job("code", cpu_s=2.0)
    assert job == CallJob(source="code", entry_point="f", calls=((1, 2),), expected=(3,), cpu_s=2.0)
    (problem,) = read_problems(_file(tmp_path, {"tests": "assert f(1, 2) == 1 + 2", "preamble": "import math"}))
    script = problem.tests.job("code")
    assert script == AssertJob(
        source="code", test_source="assert f(1, 2) == 1 + 2", entry_point="f", preamble="import math"
    )


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("def check(candidate):\n    assert candidate(b=[1], a='x') == None", ((("x", [1]),), (None,))),
        ("assert f(1) == -2\nassert f(a=2) == {}", (((1,), (2,)), (-2, {}))),
        ("assert f(b=1) == 2", None),  # a gap: b cannot be given by position
        ("assert f(1)", None),
        ("assert f(1) != 2", None),
        ("assert g(1) == 2", None),
        ("assert f(x) == 2", None),
        ("assert f(*[1]) == 2", None),
        ("assert f(**{'a': 1}) == 2", None),
        ("x = 1\nassert f(1) == 2", None),
        ("", None),
    ],
)
def test_literal_calls(script: str, expected: Any) -> None:
    assert literal_calls(script, "f", ("a", "b")) == expected


def test_parameters_of_functions_and_methods() -> None:
    source = "def f(x): pass\nclass Solution:\n    def f(self, a, b=1): pass\n"
    assert parameters_of(source, "Solution().f") == ("a", "b")
    assert parameters_of(source, "f") == ("x",)
    assert parameters_of(source, "g") == ()


def test_grading_goes_from_text_to_reward(tmp_path: Path) -> None:
    sandbox = Recorder()
    task = minimal_edit(TaskConfig(data=str(_file(tmp_path, {})), families="all"), sandbox)
    (problem,) = task.problems("test")
    grades = task.grade(
        [(problem, Completion(text)) for text in (task.reference(problem), "no", "```\ndef f(a, b): return a - b\n```")]
    )
    assert [grade.outcome for grade in grades] == [Outcome.PASSED, Outcome.NO_ANSWER, Outcome.FAILED]
    assert [grade.reward for grade in grades] == [0.1, -0.2, -0.2]
    assert len(sandbox.jobs) == 2


def test_splits_never_share_a_source(tmp_path: Path) -> None:
    changes = [{"problem_id": f"p{n}/{k}", "source_id": f"p{n}"} for n in range(60) for k in range(2)]
    task = minimal_edit(TaskConfig(data=str(_file(tmp_path, *changes)), families="in-domain"), Recorder())
    train, validation = task.problems("train"), task.problems("validation")
    assert len(train) + len(validation) == len(task.problems("test")) == 120
    assert validation
    assert not {problem.meta["source_id"] for problem in train} & {problem.meta["source_id"] for problem in validation}


def test_what_cannot_be_trained_on_is_said(tmp_path: Path) -> None:
    task = minimal_edit(TaskConfig(data=str(_file(tmp_path, {})), families="out-of-domain"), Recorder())
    with pytest.raises(OnpolError, match="The file has 1 problems with: arithmetic_operators"):
        task.problems("train")
    with pytest.raises(OnpolError, match="Allowed: train, validation, test"):
        task.problems("dev")
    with pytest.raises(OnpolError, match=r"task\.data=FILE"):
        minimal_edit(TaskConfig(), Recorder())


def test_prompts_hold_statement_and_corrupted_code_whatever_braces_they_have() -> None:
    for condition in ("generic", "explicit"):
        chat = edit_prompts(condition, 0, {}).messages("Do {corrupted} {x}.", "def f():\n    return '{statement}'")
        assert [message["role"] for message in chat] == ["system", "user"]
        assert "Do {corrupted} {x}." in chat[1]["content"]
        assert "return '{statement}'" in chat[1]["content"]
    assert edit_prompts("generic", 0, {}).template != edit_prompts("explicit", 0, {}).template


def test_templates_replace_the_texts() -> None:
    prompts = edit_prompts("explicit", 0, {"explicit": "FIX {corrupted} FOR {statement}", "system": ""})
    assert prompts.messages("s", "c") == [{"role": "user", "content": "FIX c FOR s"}]


def test_worked_examples_come_as_earlier_turns(tmp_path: Path) -> None:
    chat = edit_prompts("explicit", 8, {}).messages("s", "c")
    assert [message["role"] for message in chat] == ["system", *["user", "assistant"] * 8, "user"]
    assert all(shot.original in answer["content"] for shot, answer in zip(SHOTS, chat[2::2], strict=False))
    write_records(tmp_path / "s.jsonl", [{"statement": "s1", "corrupted": "c1", "original": "o1"}])
    own = edit_prompts("generic", 1, {"shots": str(tmp_path / "s.jsonl")}).messages("s", "c")
    assert own[2]["content"] == "```python\no1\n```"


@pytest.mark.parametrize(
    ("condition", "shots", "templates", "message"),
    [
        ("kind", 0, {}, "Allowed: generic, explicit"),
        ("generic", 9, {}, "0 to 8 are possible"),
        ("generic", -1, {}, "0 to 8 are possible"),
        ("generic", 0, {"generic": "Fix it."}, "lacks the placeholder {corrupted}"),
        ("generic", 0, {"genric": "x"}, "unknown name 'genric'"),
    ],
)
def test_unusable_prompts_are_refused(condition: str, shots: int, templates: dict[str, str], message: str) -> None:
    with pytest.raises(OnpolError, match=message):
        edit_prompts(condition, shots, templates)
