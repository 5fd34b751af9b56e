"""MBPP records and tests."""

import json

import pytest

from onpol_cli.core.errors import OnpolError
from onpol_cli.sandbox.jobs import AssertJob, CallJob
from onpol_cli.tasks.mbpp import load, make_job, messages

RECORD = {
    "task_id": 2,
    "prompt": "Add.",
    "code": "import sys\ndef helper(a):\n    return a\ndef add(a, b):\n    return helper(a) + b",
    "test_imports": [],
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
}


def problem(tmp_path, **changes):
    path = tmp_path / "m.json"
    path.write_text(json.dumps([{**RECORD, **changes}]))
    return load(path)[0]


def test_ids_are_texts_and_the_tested_function_is_found(tmp_path):
    item = problem(tmp_path)
    assert item.problem_id == "2" and item.entry_point == "add"
    assert "assert add(1, 2) == 3" in messages(item)[-1]["content"]


def test_literal_asserts_become_calls(tmp_path):
    job = make_job(problem(tmp_path), "def add(a, b): return a + b")
    assert isinstance(job, CallJob)
    assert (job.calls, job.expected) == (((1, 2), (0, 0)), (3, 0))


def test_imports_come_along_where_the_asserts_use_them(tmp_path):
    job = make_job(problem(tmp_path, test_list=["assert add(1, 2) < sys.maxsize"]), "x")
    assert isinstance(job, AssertJob)
    assert job.test_source == "import sys\nassert add(1, 2) < sys.maxsize"
    given = make_job(
        problem(tmp_path, test_imports=["import math"], test_list=["assert math.isclose(add(1, 2), 3)"]), "x"
    )
    assert given.test_source.startswith("import math\n")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test_list": []}, "field 'test_list' is empty"),
        ({"test_list": ["assert other(1) == 1"]}, "calls no function"),
        ({"test_list": ["assert ("]}, "not Python"),
        ({"test_list": [3]}, "must hold texts"),
        ({"code": "def ("}, "not Python"),
        ({"task_id": None}, "field 'task_id' is missing"),
    ],
)
def test_bad_records_are_named(tmp_path, changes, said):
    with pytest.raises(OnpolError, match=said) as caught:
        problem(tmp_path, **changes)
    assert "m.json, record 1" in str(caught.value)
