"""`tiny-edit`: Minimal Code Edit on the procedural world, and its two benches.

A description and a function with one corruption go in, the fixed function comes out. Corruptions, metrics
and reward are those of the real bench (`minimal_edit`). Answers are bare code (fewest tokens); fenced code
is accepted as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onpol_cli.core.config import TaskConfig
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.types import Completion, Grade, Message, Problem
from onpol_cli.sandbox.jobs import Verdict
from onpol_cli.tasks.minimal_edit.families import select_families
from onpol_cli.tasks.minimal_edit.grading import edit_grade
from onpol_cli.tasks.programs import Item, OnGrade, Runner, grade_programs
from onpol_cli.tasks.world import prompts
from onpol_cli.tasks.world.problems import call_job, edit_problems, set_size

BENCH_FAMILIES = {"tiny-edit-ood": "in-domain", "tiny-edit-id": "out-of-domain"}
"""Families of the benches. As in the paper, what is trained on is the *out-of-domain* set, so that the
in-domain set, which the evaluation uses, is out of the training's domain."""


class TinyEdit:
    """Minimal Code Edit on the procedural world. Implements `protocol.Task`.

    Args:
        config: corruption families, seed of the world, sizes of the training and validation sets.
        sandbox: where answers run.
        name: word used in tables.

    Raises:
        OnpolError: unknown families, or prompt settings that this task does not have.
    """

    def __init__(self, config: TaskConfig, sandbox: Runner, name: str = "tiny-edit") -> None:
        if config.prompt != "generic" or config.shots or config.templates:
            raise OnpolError(
                f"{name} has one fixed prompt: got task.prompt={config.prompt}, task.shots={config.shots}, "
                f"{len(config.templates)} templates. Leave them at generic, 0 and none."
            )
        self.name = name
        self._config = config
        self._families = select_families(config.families)
        self._sandbox = sandbox

    def problems(self, split: str) -> list[Problem]:
        """The problems of `split`, in a fixed order; a smaller set is a prefix of a larger one."""
        count = set_size(split, self._config.problems, self._config.validation_problems)
        return list(edit_problems(self._config.world_seed, split, self._families, count))

    def messages(self, problem: Problem) -> list[Message]:
        """Description and broken function."""
        assert problem.corrupted is not None
        return prompts.repair(problem.statement, problem.corrupted)

    def reference(self, problem: Problem) -> str:
        """The exact reversal of the corruption."""
        assert problem.original is not None
        return problem.original

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        """Verdicts in the order of `items`, with the paper's reward."""
        return self.grade_each(items)

    def grade_each(self, items: Sequence[Item], on_grade: OnGrade | None = None) -> list[Grade]:
        """As `grade`, reporting each grade when it is known."""
        return grade_programs(self._sandbox, items, call_job, _grade, on_grade)


def _grade(problem: Problem, completion: Completion, verdict: Verdict | None) -> Grade:
    return edit_grade(problem, completion, verdict)


def build_bench(name: str, config: TaskConfig, sandbox: Runner) -> TinyEdit:
    """The bench `tiny-edit-ood` or `tiny-edit-id`: fixed families, everything else from `config`."""
    return TinyEdit(replace(config, families=BENCH_FAMILIES[name]), sandbox, name)
