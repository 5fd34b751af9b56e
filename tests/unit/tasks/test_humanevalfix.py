"""HumanEvalFix records."""

import json

import pytest

from onpol_cli.core.errors import OnpolError
from onpol_cli.tasks.humanevalfix import load, make_job

RECORD = {
    "task_id": "Python/0",
    "declaration": "import math\n\ndef area(r):\n",
    "canonical_solution": "    return math.pi * r * r\n",
    "buggy_solution": "    return math.pi * r\n",
    "bug_type": "missing logic",
    "entry_point": "area",
    "docstring": "Area of a circle.",
    "test": "\n\ndef check(area):\n    assert area(0) == 0\n\ncheck(area)\n",
}


def write(tmp_path, *records):
    path = tmp_path / "h.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_original_and_corrupted_share_the_declaration(tmp_path):
    (problem,) = load(write(tmp_path, RECORD))
    assert problem.original == "import math\n\ndef area(r):\n    return math.pi * r * r\n"
    assert problem.corrupted == "import math\n\ndef area(r):\n    return math.pi * r\n"
    assert problem.families == ("missing logic",)
    assert problem.statement == "Area of a circle."


def test_tests_run_once_and_keep_their_imports(tmp_path):
    (problem,) = load(write(tmp_path, RECORD))
    job = make_job(problem, "def area(r): return 0")
    assert job.preamble == "import math"
    assert job.calls == ((0,),) and job.expected == (0,)
    assert "check(area)\n" not in problem.tests.source.partition("assert")[2]


@pytest.mark.parametrize("field", ["task_id", "declaration", "canonical_solution", "buggy_solution", "test"])
def test_missing_fields_are_named(tmp_path, field):
    record = {key: value for key, value in RECORD.items() if key != field}
    with pytest.raises(OnpolError, match=f"record 2: field '{field}' is missing"):
        load(write(tmp_path, RECORD, record))
