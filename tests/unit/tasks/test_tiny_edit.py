"""The repair task of the tiny experiment and its benches."""

import subprocess
import sys
from dataclasses import replace

import pytest

from onpol_cli.core.config import SandboxConfig, TaskConfig
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.types import Completion, Outcome, Problem
from onpol_cli.sandbox import Sandbox
from onpol_cli.tasks.minimal_edit.families import select_families
from onpol_cli.tasks.tiny_codegen import TinyCodegen
from onpol_cli.tasks.tiny_edit import TinyEdit, build_bench
from onpol_cli.tasks.world.problems import TEST_PROBLEMS

CONFIG = TaskConfig(problems=150, validation_problems=60)


class NoSandbox:
    """For tests that grade nothing."""

    def run(self, jobs, on_verdict=None):
        raise AssertionError("nothing is graded here")


def edit(**changes: object) -> TinyEdit:
    return TinyEdit(replace(CONFIG, **changes), NoSandbox())


def test_sets_have_the_sizes_asked_for_and_distinct_ids() -> None:
    sizes = {"train": 150, "validation": 60, "test": TEST_PROBLEMS}
    for split, size in sizes.items():
        problems = edit().problems(split)
        assert len(problems) == len({p.problem_id for p in problems}) == size
    assert TEST_PROBLEMS >= 500


def test_splits_share_no_program_even_with_other_constants() -> None:
    skeletons = {s: {p.meta["skeleton"] for p in edit().problems(s)} for s in ("train", "validation", "test")}
    assert not skeletons["train"] & skeletons["test"]
    assert not skeletons["train"] & skeletons["validation"]
    assert not skeletons["validation"] & skeletons["test"]


def test_other_seeds_of_the_world_keep_the_split() -> None:
    test = {p.meta["skeleton"] for p in edit().problems("test")}
    train = {p.meta["skeleton"] for p in edit(world_seed=7).problems("train")}
    assert not test & train


def test_smaller_set_is_a_prefix() -> None:
    assert edit(problems=40).problems("train") == edit(problems=150).problems("train")[:40]


@pytest.mark.parametrize(("name", "families"), [("tiny-edit-ood", "in-domain"), ("tiny-edit-id", "out-of-domain")])
def test_benches_have_their_families_whatever_is_trained_on(name: str, families: str) -> None:
    for trained in ("in-domain", "out-of-domain"):
        problems = build_bench(name, replace(CONFIG, families=trained), NoSandbox()).problems("test")
        used = {family for problem in problems for family in problem.families}
        assert used <= set(select_families(families))
        assert len(used) >= 14


def test_benches_ask_about_the_same_programs() -> None:
    ood, within = (build_bench(n, CONFIG, NoSandbox()).problems("test") for n in ("tiny-edit-ood", "tiny-edit-id"))
    written = TinyCodegen(CONFIG, NoSandbox()).problems("test")
    ids = [{p.problem_id for p in problems} for problems in (ood, within, written)]
    assert len(ids[0] & ids[2]) > 900
    assert len(ids[0] & ids[1]) > 700


def test_prompt_holds_description_and_broken_code_but_not_the_original() -> None:
    task = edit()
    for problem in task.problems("train"):
        content = task.messages(problem)[-1]["content"]
        assert problem.statement in content and problem.corrupted in content
        assert problem.original not in content
        assert problem.original != problem.corrupted


def test_settings_that_do_not_exist_are_refused() -> None:
    with pytest.raises(OnpolError, match="one fixed prompt"):
        edit(prompt="explicit")
    with pytest.raises(OnpolError, match="Allowed: train, validation, test"):
        edit().problems("dev")
    with pytest.raises(OnpolError, match="Unknown corruption family"):
        edit(families="nonsense")


def test_tasks_import_without_torch() -> None:
    code = "import sys, onpol_cli.tasks.tiny_edit, onpol_cli.tasks.tiny_codegen, onpol_cli.tasks.world.base;"
    code += "assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def grades(task: TinyEdit, answers: list[tuple[Problem, str]]) -> list:
    return task.grade([(problem, Completion(text)) for problem, text in answers])


def test_grades_through_the_sandbox() -> None:
    with Sandbox(SandboxConfig(workers=1)) as sandbox:
        task = TinyEdit(CONFIG, sandbox)
        problems = task.problems("validation")[:25]
        right = grades(task, [(p, task.reference(p)) for p in problems])
        broken = grades(task, [(p, p.corrupted or "") for p in problems])
        empty = grades(task, [(problems[0], "I cannot do that.")])
        fenced = grades(task, [(problems[0], f"```python\n{problems[0].original}\n```")])
        codegen = TinyCodegen(CONFIG, sandbox)
        written = codegen.problems("validation")[:25]
        generated = codegen.grade([(p, Completion(codegen.reference(p))) for p in written])
    assert all(g.passed and g.excess_levenshtein == 0 and g.reward == pytest.approx(0.1) for g in right)
    assert all(not g.passed and g.reward == pytest.approx(-0.2) for g in broken)
    assert empty[0].outcome is Outcome.NO_ANSWER
    assert fenced[0].passed
    assert all(g.passed and g.reward == 1.0 for g in generated)
