"""HumanEval records, the two forms of answers, and jobs."""

import json

import pytest

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.types import Completion
from onpol_cli.tasks.humaneval import find_code, load, make_job, messages

PROMPT = 'import math\n\n\ndef helper(x):\n    return x + 1\n\n\ndef area(r: float) -> float:\n    """Area."""\n'
RECORD = {
    "task_id": "HumanEval/0",
    "prompt": PROMPT,
    "entry_point": "area",
    "canonical_solution": "    return math.pi * r * r\n",
    "test": "def check(candidate):\n    assert candidate(1) > helper(2)\n",
}


def problem(tmp_path, **changes):
    path = tmp_path / "h.jsonl"
    path.write_text(json.dumps({**RECORD, **changes}) + "\n")
    return load(path)[0]


def test_helpers_are_what_stands_above_the_function(tmp_path):
    job = make_job(problem(tmp_path), "def area(r):\n    return 4")
    assert job.preamble == "import math\ndef helper(x):\n    return x + 1"
    assert job.entry_point == "area" and job.source.startswith("def area")


@pytest.mark.parametrize("body", ["    return math.pi * r * r\n", "    pi = 3.14\n    return pi * r * r"])
def test_a_bare_body_continues_the_prompt(tmp_path, body):
    item = problem(tmp_path)
    code = find_code(item, Completion(body))
    assert code == body
    assert make_job(item, code).source == PROMPT + body


def test_a_fenced_function_is_taken_as_it_is(tmp_path):
    item = problem(tmp_path)
    code = find_code(item, Completion("Sure.\n```python\ndef area(r):\n    return 4\n```"))
    assert make_job(item, code).source.strip() == "def area(r):\n    return 4"


def test_a_function_bound_by_name_is_whole(tmp_path):
    code = "area = lambda r: 4"
    assert make_job(problem(tmp_path), code).source == code


def test_talk_is_no_code(tmp_path):
    assert find_code(problem(tmp_path), Completion("I cannot do that.")) is None


def test_the_prompt_shows_the_signature(tmp_path):
    assert "def area(r: float)" in messages(problem(tmp_path))[-1]["content"]


@pytest.mark.parametrize("field", sorted(RECORD))
def test_missing_and_empty_fields_are_named(tmp_path, field):
    with pytest.raises(OnpolError, match=f"record 1: field '{field}' is empty"):
        problem(tmp_path, **{field: ""})
    with pytest.raises(OnpolError, match=f"record 1: field '{field}' is missing"):
        problem(tmp_path, **{field: None})


def test_repeated_ids_are_refused(tmp_path):
    path = tmp_path / "h.jsonl"
    path.write_text((json.dumps(RECORD) + "\n") * 2)
    with pytest.raises(OnpolError, match=r"record 2: task_id 'HumanEval/0' was already given"):
        load(path)
