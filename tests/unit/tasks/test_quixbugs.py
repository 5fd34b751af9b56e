"""QuixBugs records: descriptions cut off the code, pytest files turned into scripts."""

import json

import pytest

from onpol_cli.core.errors import OnpolError
from onpol_cli.tasks.quixbugs import NODE_CLASS, load, make_job

HEAD = (
    "import pytest\nfrom load_testdata import load_json_testcases\n\n"
    "if pytest.use_correct:\n    from correct_python_programs.f import f\nelse:\n"
    "    from python_programs.f import f\n\n"
)
CASES = HEAD + (
    "testdata = load_json_testcases(f.__name__)\n\n\n"
    '@pytest.mark.parametrize("input_data,expected", testdata)\n'
    "def test_f(input_data, expected):\n"
    "    if input_data == [99]:\n        pytest.skip('slow')\n"
    "    assert f(*input_data) == pytest.approx(expected, abs=0.5)\n"
)
NODES = (
    "import pytest\nfrom node import Node\n\n"
    "def test1():\n    node = Node(1, Node(2))\n    assert f(node) is node.successor\n"
)
RECORD = {
    "task_id": "QuixBugs/f",
    "entry_point": "f",
    "buggy": '\ndef f(x):\n    return x\n\n"""\nTwice.\n"""\n',
    "correct": '\ndef f(x):\n    return 2 * x\n"""\ndef f(x):\n    return x + x\n"""\n',
    "json_testcases": [[[1], 2], [[5], 10.4], [[99], 0]],
    "python_test": CASES,
}


def problem(tmp_path, **changes):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({**RECORD, **changes}) + "\n")
    return load(path)[0]


def run(item, source):
    """The script against `source`, in this process."""
    namespace = {}
    exec(NODE_CLASS + source, namespace)
    exec(item.tests.source, namespace)


def test_strings_around_the_code_are_description(tmp_path):
    item = problem(tmp_path)
    assert item.original == "def f(x):\n    return 2 * x\n"
    assert item.corrupted == "def f(x):\n    return x\n"
    assert item.statement == "Twice."


def test_the_script_runs_every_case_but_the_skipped(tmp_path):
    item = problem(tmp_path)
    run(item, item.original)
    with pytest.raises(AssertionError):
        run(item, item.corrupted)
    with pytest.raises(AssertionError):
        run(item, "def f(x):\n    return 2 * x if x < 5 else 11.5")


def test_tests_on_nodes_run_in_the_programs_process(tmp_path):
    item = problem(tmp_path, python_test=NODES, json_testcases=None)
    assert make_job(item, "x").in_process and not make_job(problem(tmp_path), "x").in_process
    run(item, "def f(node):\n    return node.successor")
    with pytest.raises(AssertionError):
        run(item, "def f(node):\n    return Node(2)")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"python_test": "import pytest\n"}, "defines no test function"),
        ({"python_test": ""}, "field 'python_test' is empty"),
        ({"correct": "def f(:"}, "is not Python"),
        ({"buggy": None}, "field 'buggy' is missing"),
    ],
)
def test_bad_records_are_named(tmp_path, changes, said):
    with pytest.raises(OnpolError, match=said) as caught:
        problem(tmp_path, **changes)
    assert "q.jsonl, record 1" in str(caught.value)


def test_a_checkout_gives_the_same_problems_as_a_file(tmp_path):
    files = {
        "python_programs/f.py": RECORD["buggy"],
        "correct_python_programs/f.py": RECORD["correct"],
        "python_testcases/test_f.py": RECORD["python_test"],
        "python_testcases/test_without_program.py": "def test(): pass",
        "json_testcases/f.json": "\n".join(json.dumps(case) for case in RECORD["json_testcases"]),
    }
    for name, text in files.items():
        path = tmp_path / "QuixBugs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert load(tmp_path / "QuixBugs") == [problem(tmp_path)]


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(OnpolError, match="no checkout of QuixBugs"):
        load(tmp_path)
