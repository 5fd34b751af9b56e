"""`tiny-codegen`: write a small function from its description. The forgetting bench of the tiny experiment.

Answers are bare code (fewest tokens); fenced code is accepted as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from onpol_cli.core.config import TaskConfig
from onpol_cli.core.types import Grade, Message, Problem
from onpol_cli.tasks.programs import Item, OnGrade, Runner, grade_programs
from onpol_cli.tasks.world import prompts
from onpol_cli.tasks.world.problems import call_job, generation_problems, set_size


class TinyCodegen:
    """Code generation on the procedural world. Implements `protocol.Task`.

    Args:
        config: seed of the world and sizes of the training and validation sets.
        sandbox: where answers run.
    """

    name = "tiny-codegen"

    def __init__(self, config: TaskConfig, sandbox: Runner) -> None:
        self._config = config
        self._sandbox = sandbox

    def problems(self, split: str) -> list[Problem]:
        """The problems of `split`, in a fixed order; a smaller set is a prefix of a larger one."""
        count = set_size(split, self._config.problems, self._config.validation_problems)
        return list(generation_problems(self._config.world_seed, split, count))

    def messages(self, problem: Problem) -> list[Message]:
        """Description and `def` line."""
        return prompts.generation(problem.statement, problem.meta["signature"])

    def reference(self, problem: Problem) -> str:
        """A correct function."""
        assert problem.original is not None
        return problem.original

    def grade(self, items: Sequence[Item]) -> list[Grade]:
        """Verdicts in the order of `items`; reward 1 for a pass, else 0."""
        return self.grade_each(items)

    def grade_each(self, items: Sequence[Item], on_grade: OnGrade | None = None) -> list[Grade]:
        """As `grade`, reporting each grade when it is known."""
        return grade_programs(self._sandbox, items, call_job, on_grade=on_grade)
