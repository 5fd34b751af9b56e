"""Which problems of an edit data set can be trusted in this environment.

Owns running every original and every corrupted program, the report, and the small file beside the
data that lists the result: `FILE.usable.json`. A problem is usable if its original passes and its
corrupted program does not. Which originals pass is remembered for evaluations (`originals`).
"""

from __future__ import annotations

import platform
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from onpol_cli.core.files import sha256_file, write_json
from onpol_cli.core.types import Problem
from onpol_cli.sandbox.jobs import Status, Verdict
from onpol_cli.tasks.minimal_edit.data import read_problems, usable_file
from onpol_cli.tasks.minimal_edit.originals import remember
from onpol_cli.tasks.programs import Runner

_MISSING = re.compile(r"No module named '([\w.]+)'")


@dataclass
class VerifyReport:
    """What was found.

    Attributes:
        problems: in the file.
        originals_passed: originals that pass here.
        corrupted_failed: corrupted programs that do not pass here.
        usable: ids of problems of which both hold, in file order.
        reasons: by id of the others, why.
        missing: problems that want a module that is not installed, by its name.
        corrupted_outcomes: how the corrupted programs ended, by status.
    """

    problems: int = 0
    originals_passed: int = 0
    corrupted_failed: int = 0
    usable: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    corrupted_outcomes: dict[str, int] = field(default_factory=dict)


def verify(path: Path, sandbox: Runner, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Run originals and corrupted programs of a data file; write and return the report.

    Args:
        path: the data file.
        sandbox: where programs run; give it `task.PRELOAD` for BigCodeBench.
        progress: told (programs done, all programs).

    Raises:
        OnpolError: the file is not usable at all.
    """
    problems = read_problems(path)
    programs = [problem.original or "" for problem in problems] + [problem.corrupted or "" for problem in problems]
    jobs = [problem.tests.job(code) for problem, code in zip(problems * 2, programs, strict=True)]
    done = 0

    def tell(index: int, verdict: Verdict) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, len(jobs))

    verdicts = sandbox.run(jobs, on_verdict=tell)
    report = summarise(problems, verdicts[: len(problems)], verdicts[len(problems) :])
    remember(path, {problem.problem_id: right.passed for problem, right in zip(problems, verdicts, strict=False)})
    write_json(usable_file(path), {"sha256": sha256_file(path), "python": platform.python_version(), **asdict(report)})
    return report


def summarise(problems: Sequence[Problem], originals: Sequence[Verdict], corrupted: Sequence[Verdict]) -> VerifyReport:
    """The report of verdicts that lie in the order of `problems`."""
    report = VerifyReport(problems=len(problems))
    missing: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    for problem, right, wrong in zip(problems, originals, corrupted, strict=True):
        outcomes[wrong.status.value] += 1
        report.originals_passed += right.passed
        report.corrupted_failed += not wrong.passed
        missing.update(set(_MISSING.findall(right.detail)))
        if right.passed and not wrong.passed:
            report.usable.append(problem.problem_id)
        else:
            report.reasons[problem.problem_id] = _reason(right)
    report.missing = dict(missing)
    report.corrupted_outcomes = dict(outcomes)
    return report


def _reason(right: Verdict) -> str:
    if right.passed:
        return "the corrupted program passes the tests"
    timed_out = " (out of time)" if right.status is Status.TIMEOUT else ""
    return f"the original does not pass here{timed_out}: {right.detail}"
