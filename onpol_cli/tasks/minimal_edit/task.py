"""Minimal Code Edit on real data: the published evaluation file, or what `onpol data prepare` wrote.

Owns the splits and ties file, prompts, tests and grade together. Problems made from the same
source never lie on both sides of a split. How an answer is graded is in `grading`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from onpol_cli.core.config import TaskConfig
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.types import Completion, Grade, Message, Problem
from onpol_cli.sandbox.jobs import Job
from onpol_cli.tasks.minimal_edit.data import read_problems
from onpol_cli.tasks.minimal_edit.families import select_families
from onpol_cli.tasks.minimal_edit.grading import edit_grade
from onpol_cli.tasks.minimal_edit.originals import run_originals
from onpol_cli.tasks.minimal_edit.prompts import EditPrompts, edit_prompts, fenced
from onpol_cli.tasks.programs import OnGrade, Runner, grade_programs

NAME = "minimal-edit"

PRELOAD = (
    "numpy",
    "pandas",
    "matplotlib",
    "matplotlib.pyplot",
    "scipy.stats",
    "sklearn",
    "sklearn.linear_model",
    "sklearn.cluster",
    "sklearn.ensemble",
    "sklearn.model_selection",
    "sklearn.preprocessing",
    "sklearn.decomposition",
    "sklearn.metrics",
    "seaborn",
    "unittest.mock",
    "Crypto.Cipher.AES",
)
"""Modules that BigCodeBench programs import most; loaded once per sandbox worker where installed.
The last one reaches into the interpreter's C API when imported, which programs may not."""

VALIDATION_SHARE = 10
"""One source in this many is for validation."""


class MinimalEdit:
    """Broken functions with their statement, tests and exact reversal."""

    def __init__(self, data: Path, sandbox: Runner, prompts: EditPrompts, families: str = "all") -> None:
        """
        Args:
            data: the file of problems.
            sandbox: where answers run.
            prompts: how they are put to a model.
            families: which problems may be trained on (`select_families`): those all of whose
                corruptions are among these. Does not affect the test split.

        Raises:
            OnpolError: the file is not usable, or a family is unknown.
        """
        self.name = NAME
        self._data = data
        self._problems = read_problems(data)
        self._sandbox = sandbox
        self._prompts = prompts
        self._trainable = self._problems
        if families != "all":
            allowed = set(select_families(families))
            self._trainable = [problem for problem in self._problems if allowed.issuperset(problem.families)]

    def unknown_originals(self, problems: Sequence[Problem]) -> list[Problem]:
        """Those of `problems` of which nobody has tried yet whether the original passes in this environment."""
        return [problem for problem in problems if "original_passes" not in problem.meta]

    def run_originals(self, problems: Sequence[Problem], progress: Callable[[int, int], None] | None = None) -> None:
        """Try them; from then on `problems` gives problems with `meta["original_passes"]`."""
        run_originals(self._data, problems, self._sandbox, progress)
        self._problems = read_problems(self._data)

    def problems(self, split: str) -> list[Problem]:
        """`test` is the whole file, in file order; `train` and `validation` divide it by source.

        Raises:
            OnpolError: an unknown split, or one without problems.
        """
        if split == "test":
            return list(self._problems)
        if split not in ("train", "validation"):
            raise OnpolError(f"{self.name} has no split {split!r}. Allowed: train, validation, test.")
        chosen = [problem for problem in self._trainable if _for_validation(problem) == (split == "validation")]
        if not chosen:
            names = sorted({name for problem in self._problems for name in problem.families})
            raise OnpolError(
                f"{self.name} has no problems for {split} with the families asked for (task.families). "
                f"The file has {len(self._problems)} problems with: {', '.join(names)}. Use task.families=all."
            )
        return chosen

    def messages(self, problem: Problem) -> list[Message]:
        """The chat that asks for the repair."""
        return self._prompts.messages(problem.statement, problem.corrupted or "")

    def reference(self, problem: Problem) -> str:
        """The exact reversal of the corruption, as a model would answer."""
        return fenced(problem.original or "")

    def grade(self, items: Sequence[tuple[Problem, Completion]]) -> list[Grade]:
        """Verdicts in the order of `items`."""
        return self.grade_each(items)

    def grade_each(self, items: Sequence[tuple[Problem, Completion]], on_grade: OnGrade | None = None) -> list[Grade]:
        """As `grade`, reporting each grade when it is known."""
        return grade_programs(self._sandbox, items, make_job, edit_grade, on_grade)


def make_job(problem: Problem, code: str) -> Job:
    """The job that tests `code` as an answer to `problem`."""
    job: Job = problem.tests.job(code)
    return job


def _for_validation(problem: Problem) -> bool:
    source = str(problem.meta.get("source_id", problem.problem_id))
    return hashlib.sha256(source.encode()).digest()[0] % VALIDATION_SHARE == 0


def minimal_edit(config: TaskConfig, sandbox: Runner) -> MinimalEdit:
    """The task of a configuration.

    Raises:
        OnpolError: no data file is named, or it or the prompts are not usable.
    """
    if not config.data:
        raise OnpolError(
            "minimal-edit needs a data file: task.data=FILE (evaluation: --data FILE). The published evaluation set is "
            "corrupted_solutions_manual_easy_400.jsonl of github.com/nreHieW/over-editing; training data are made by "
            "`onpol data prepare minimal-edit --source leetcode`."
        )
    prompts = edit_prompts(config.prompt, config.shots, config.templates)
    return MinimalEdit(Path(config.data), sandbox, prompts, config.families)
