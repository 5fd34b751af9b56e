#!/usr/bin/env python
"""Verdicts of the sandbox against one fresh interpreter a program, on the 400-task file of Minimal Code Edit.

    python scripts/bench/fresh.py [--data ../shared/data] [--out results/bench] [--repeat 5] [--first N] [--last N]

Originals and corrupted programs (800) run once in the sandbox and once as `python module.py` each: imports of
the tests, program, tests, unittest. Where the two differ, the fresh run is repeated; a program whose
fresh runs disagree among themselves is flaky there, too.
It takes ten minutes or more: --first and --last choose a part, and --out collects the parts in one file.
Fresh interpreters run one at a time, under bubblewrap where it is installed (read-only system, no network).
Ends with one JSON object: its ratios are the share of equal verdicts and the seconds one by one over the sandbox's.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from facts import tell

from onpol_cli.core.config import SandboxConfig, TaskConfig
from onpol_cli.core.types import Problem
from onpol_cli.sandbox import Sandbox, UnittestJob
from onpol_cli.sandbox.isolation import ENVIRONMENT
from onpol_cli.tasks.registry import build_task, preload_for

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 240.0
RUN = """
if __name__ == "__main__":
    import sys, unittest
    suite = unittest.TestLoader().loadTestsFromTestCase(TestCases)
    result = unittest.TextTestRunner(stream=sys.stderr, verbosity=0).run(suite)
    print("\\nFRESH", result.testsRun > 0 and result.wasSuccessful())
"""


def command() -> list[str]:
    """What starts a fresh interpreter in the present folder."""
    if not shutil.which("bwrap"):
        return [sys.executable]
    args = ["bwrap", "--die-with-parent", "--unshare-pid", "--unshare-net", "--ro-bind", "/", "/", "--dev", "/dev"]
    args += ["--proc", "/proc", "--tmpfs", "/tmp", "--bind", ".", "/tmp/run", "--chdir", "/tmp/run"]
    return [*args, sys.executable]


def fresh(job: UnittestJob) -> tuple[bool, str]:
    """Whether the tests pass in a fresh interpreter, and the last line it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        module = f"{job.preamble}\n{job.source}\n{job.test_source}\n{RUN}"
        Path(folder, "module.py").write_text(module, "utf-8")
        environment = {**ENVIRONMENT, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                [*command(), "module.py"], cwd=folder, env=environment, capture_output=True, timeout=PATIENCE_S,
                stdin=subprocess.DEVNULL, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False, f"over {PATIENCE_S:g} s"
    lines = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if "Error" in line]
    return b"\nFRESH True" in done.stdout, (lines or [f"exit {done.returncode}"])[-1][:200]


def in_sandbox(jobs: list[UnittestJob], workers: int) -> tuple[list[dict[str, Any]], float]:
    """Verdicts of the sandbox as plain data, and its wall seconds."""
    start = time.perf_counter()
    with Sandbox(SandboxConfig(workers=workers), preload_for(["minimal-edit"])) as sandbox:
        verdicts = sandbox.run(jobs)
    return [asdict(verdict) for verdict in verdicts], time.perf_counter() - start


def compare(name: str, job: UnittestJob, verdict: dict[str, Any], repeat: int) -> dict[str, Any] | None:
    """None where both agree; else what each said, with `repeat` more fresh runs."""
    passed, said = fresh(job)
    ours = verdict["status"] == "passed"
    if passed == ours:
        return None
    more = [fresh(job)[0] for _ in range(repeat)]
    return {
        "program": name, "sandbox": verdict["status"], "sandbox_detail": verdict["detail"][:200], "fresh": passed,
        "fresh_detail": said, "fresh_again": more, "flaky": len({passed, *more}) > 1,
    }  # fmt: skip


def programs(problems: list[Problem]) -> tuple[list[str], list[UnittestJob]]:
    """Names and jobs: originals, then corrupted."""
    names, jobs = [], []
    for which in ("original", "corrupted"):
        names += [f"{problem.problem_id} {which}" for problem in problems]
        jobs += [problem.tests.job(getattr(problem, which)) for problem in problems]
    return names, jobs


def main() -> None:
    """Run both, print the differences, write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("ONPOL_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="first program (0 to 799: originals, then corrupted)")
    parser.add_argument("--last", type=int, default=799, help="last program")
    parser.add_argument("--workers", type=int, default=0, help="of the sandbox")
    parser.add_argument("--out", type=Path, help="folder for fresh.json")
    options = parser.parse_args()
    file = Path(options.data) / "minimal_edit" / "corrupted_solutions_manual_easy_400.jsonl"
    task = build_task(TaskConfig(name="minimal-edit", data=str(file)), None)  # type: ignore[arg-type]
    names, jobs = (part[options.first : options.last + 1] for part in programs(task.problems("test")))
    verdicts, sandbox_s = in_sandbox(jobs, options.workers)
    start, differ = time.perf_counter(), []
    for name, job, verdict in zip(names, jobs, verdicts, strict=True):
        found = compare(name, job, verdict, options.repeat)
        if found:
            differ.append(found)
            print(json.dumps(found), flush=True)
    fresh_s, agree = time.perf_counter() - start, len(jobs) - len(differ)
    result = {
        "bench": "fresh", "command": " ".join(["python", "scripts/bench/fresh.py", *sys.argv[1:]]),
        "first": options.first, "last": options.last, "programs": len(jobs), "load": os.getloadavg()[0],
        "passed_in_sandbox": sum(verdict["status"] == "passed" for verdict in verdicts), "sandbox_s": sandbox_s,
        "fresh_s": fresh_s, "agree": agree, "differ": differ,
        "ratios": {"equal verdicts": agree / len(jobs), "one by one over the sandbox, seconds": fresh_s / sandbox_s},
    }  # fmt: skip
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        file = options.out / "fresh.json"
        parts = json.loads(file.read_text()) if file.is_file() else []
        parts = [part for part in parts if (part["first"], part["last"]) != (options.first, options.last)]
        file.write_text(json.dumps([*parts, result], indent=1) + "\n")
    tell({key: value for key, value in result.items() if key != "differ"}, None)


if __name__ == "__main__":
    main()
