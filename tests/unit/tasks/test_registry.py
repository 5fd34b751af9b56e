"""From names to tasks."""

import json
import subprocess
import sys

import pytest

from onpol_cli.core.config import TaskConfig
from onpol_cli.core.errors import OnpolError
from onpol_cli.tasks.catalog import BENCHES
from onpol_cli.tasks.livecodebench.releases import Filters
from onpol_cli.tasks.registry import TASK_NAMES, build_task, check_name, preload_for


class NoSandbox:
    """Nothing is graded here."""

    def run(self, jobs, on_verdict=None):
        raise AssertionError


def test_unknown_names_list_the_nearest():
    with pytest.raises(OnpolError, match=r"Unknown task or bench 'humanevalfx'\. Did you mean humanevalfix"):
        check_name("humanevalfx")
    with pytest.raises(OnpolError, match="Allowed: tiny-edit, tiny-edit-ood"):
        build_task(TaskConfig(name="zzz"), NoSandbox())


@pytest.mark.parametrize("name", ["tiny-edit", "tiny-edit-ood", "tiny-edit-id", "tiny-codegen"])
def test_generated_tasks_need_no_data(name):
    task = build_task(TaskConfig(name=name, problems=3, validation_problems=3), NoSandbox())
    assert task.name == name
    assert task.problems("train")[0].problem_id


def test_every_other_name_is_built_from_its_file(tmp_path):
    data = {
        "humaneval": {
            "task_id": "a",
            "prompt": "def f():\n",
            "entry_point": "f",
            "canonical_solution": "    pass",
            "test": "x",
        },
        "mbpp": {"task_id": 1, "prompt": "p", "code": "def f(): pass", "test_list": ["assert f() is None"]},
    }
    for name, record in data.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(record) + "\n")
        task = build_task(TaskConfig(name=name, data=str(path)), NoSandbox())
        assert task.name == name and len(task.problems("test")) == 1
        with pytest.raises(OnpolError, match="for evaluation only"):
            task.problems("train")


def test_filters_belong_to_livecodebench():
    with pytest.raises(OnpolError, match="belong to livecodebench, not to mbpp"):
        build_task(TaskConfig(name="mbpp"), NoSandbox(), Filters(difficulty="easy"))
    build_task(TaskConfig(name="tiny-codegen"), NoSandbox(), Filters())


def lcb_record(name, date):
    tests = json.dumps([{"input": "1", "output": "1", "testtype": "stdin"}])
    return {
        "question_id": name, "question_title": name, "question_content": "q", "platform": "atcoder", "contest_id": "c",
        "contest_date": date, "starter_code": "", "difficulty": "easy", "public_test_cases": tests,
        "private_test_cases": "[]", "metadata": "{}",
    }  # fmt: skip


def test_livecodebench_takes_a_file_whole_unless_filtered(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [lcb_record("old", "2024-01-01T00:00:00"), lcb_record("new", "2025-02-01T00:00:00")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TaskConfig(name="livecodebench", data=str(path))

    def ids(filters):
        task = build_task(config, NoSandbox(), filters)
        return [p.problem_id for p in task.problems("test")], sorted(task.left_out)

    assert ids(None) == (["old", "new"], [])
    assert ids(Filters(start_date="2025-01-01")) == (["new"], ["old"])
    assert ids(Filters(release="v6")) == (["new"], ["old"])
    assert ids(Filters(release="release_v5")) == (["old"], ["new"])


def test_livecodebench_takes_the_files_of_a_release_from_a_folder(tmp_path):
    for number, name in ((1, "test.jsonl"), (2, "test2.jsonl"), (6, "test6.jsonl")):
        (tmp_path / name).write_text(json.dumps(lcb_record(f"p{number}", "2024-01-01T00:00:00")) + "\n")
    config = TaskConfig(name="livecodebench", data=str(tmp_path))
    found = [
        [p.problem_id for p in build_task(config, NoSandbox(), filters).problems("test")]
        for filters in (None, Filters(release="v6"), Filters(release="release_v2"))
    ]
    assert found == [["p6"], ["p6"], ["p1", "p2"]]


def test_preloads_follow_the_benches():
    assert preload_for(["tiny-edit", "mbpp"]) == []
    assert "numpy" in preload_for(["livecodebench"]) and "pandas" in preload_for(["minimal-edit", "livecodebench"])


def test_every_bench_has_a_name_here():
    assert set(BENCHES) < set(TASK_NAMES)


def test_importing_the_registry_is_light():
    heavy = "torch transformers pandas pyarrow huggingface_hub scipy"
    code = f"import sys, onpol_cli.tasks.registry; print([m for m in '{heavy}'.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
