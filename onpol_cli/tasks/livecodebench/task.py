"""LiveCodeBench as a bench: contest problems by stdin or by method call, for measuring forgetting.

Owns the prompt and the jobs. Rules of grading, as in the official evaluator: tests in order, the first
failure ends; 6 s of CPU a test; stdout compared line by line after stripping, else as decimals; results
of calls compared as JSON values, an outer tuple as a list. Source: `lcb_runner/evaluation` of
LiveCodeBench/LiveCodeBench, commit 28fef95. Departures: stdin is a real one (reading after `readline()`
gives the rest, not everything again), and the limit counts CPU rather than wall seconds. Kept because
published grades show it: `open(0)` does not give the input (`program`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onpol_cli.core.types import Message, Problem
from onpol_cli.sandbox.jobs import CallJob, Job, StdinJob
from onpol_cli.tasks.livecodebench.data import arguments
from onpol_cli.tasks.livecodebench.official import FILE_NAME, write_eval_all
from onpol_cli.tasks.livecodebench.program import as_function, preamble_for
from onpol_cli.tasks.programs import ProgramTask, Runner

TEST_S = 6.0
"""CPU seconds a test."""
WALL_S = 60.0
"""Wall-clock seconds a test: far above the CPU limit, so that a busy machine changes no verdict; programs
that sleep end here."""
MEMORY_MB = 4096
"""The official evaluator sets no limit; its comment speaks of 4 GB."""
_SYSTEM = "You are an experienced competitive programmer. You answer with one correct, efficient Python program."


class LiveCodeBench(ProgramTask):
    """The problems that the user selected, with their tests."""

    def __init__(self, problems: Sequence[Problem], sandbox: Runner, left_out: frozenset[str] = frozenset()) -> None:
        """
        Args:
            problems: what is graded.
            sandbox: where programs run.
            left_out: ids of known problems that filters removed; answers to them are skipped.
        """
        super().__init__("livecodebench", problems, sandbox, make_job=make_job, messages=messages)
        self.left_out = left_out

    def export(self, folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the graded lines beside samples.jsonl in the official format."""
        write_eval_all(folder / FILE_NAME, self.problems("test"), rows)


def messages(problem: Problem) -> list[Message]:
    """Statement, then how the answer must look."""
    starter = problem.meta["starter_code"]
    if starter:
        form = f"Complete this code. Keep the class and method names.\n\n```python\n{starter}\n```"
    else:
        form = "Write a program that reads the input from stdin and prints the answer to stdout, nothing else."
    text = f"{problem.statement.strip()}\n\n{form}\n\nEnd your answer with the whole program in one ```python block."
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": text}]


def make_job(problem: Problem, code: str) -> Job:
    """The job that tests `code`: calls of a method, or runs with stdin."""
    cases = problem.tests.cases()
    if problem.entry_point is None:
        return StdinJob(
            source=as_function(code),
            inputs=tuple(given for given, _ in cases),
            expected=tuple(expected for _, expected in cases),
            compare="lcb",
            preamble=preamble_for(code),
            per_test_s=TEST_S,
            wall_s=WALL_S,
            memory_mb=MEMORY_MB,
        )
    return CallJob(
        source=code,
        entry_point=problem.entry_point,
        in_class="Solution" if "class Solution" in code else None,
        calls=tuple(arguments(given) for given, _ in cases),
        expected=tuple(json.loads(expected) for _, expected in cases),
        compare="lcb",
        preamble=preamble_for(code),
        per_test_s=TEST_S,
        wall_s=WALL_S * len(cases),
        memory_mb=MEMORY_MB,
    )
