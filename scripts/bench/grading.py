#!/usr/bin/env python
"""Speed and agreement of the graders; side by side with LiveCodeBench's own evaluator.

    git clone https://github.com/LiveCodeBench/LiveCodeBench ../lcb_official
    python scripts/bench/grading.py --official ../lcb_official [--data ../shared/data] [--out results/bench]
    python scripts/bench/grading.py --only asserts,edit400

Parts (`--only`):
  lcb      O1-Mini's published answers to the v1 and v5 samples; ours and the official evaluator on the same
           answers, 2 processes each, one after the other; agreement of both with the published grades;
  trivial  1,000 trivial stdin solutions of a problem with one test, ours and official;
  asserts  1,000 small pure-Python programs with 5 asserts each, programs a second, and some of them in a fresh
           interpreter each, one by one;
  edit400  the 400-task file of Minimal Code Edit, originals and corrupted.
With --out each part replaces its own entry of grading.json, with the command and load that it was made under.
Wall seconds and CPU seconds (all processes) are shown: on a loaded machine compare the latter. Ends with one JSON
object: its ratios are official / ours, shares of equal grades and of passes, sandbox / one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from facts import ALONE, cpu_of_children, one_by_one, tell

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = {"v1": ("lcb_v1_240.jsonl.gz", 240), "v5": ("lcb_v5_111.jsonl.gz", 111)}
PUBLISHED = "o1_mini_eval_all.json.gz"
TRIVIAL, ASSERTS = 1000, 1000

OFFICIAL = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
sys.stdout, out = sys.stderr, sys.stdout
from lcb_runner.evaluation import codegen_metrics
samples, generations = json.load(open(sys.argv[2]))
start = time.perf_counter()
metrics, results, metadata = codegen_metrics(samples, generations, k_list=[1], num_process_evaluate=int(sys.argv[3]))
wall = time.perf_counter() - start
passed = [all(grade > 0 for grade in results[index][0]) for index in range(len(samples))]
json.dump({"wall_s": wall, "passed": passed}, out)
"""
"""Runs in a process of its own: the official module patches the interpreter that imports it."""


def parent_mb() -> float:
    """Resident memory of this process, MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def run_ours(task: Any, answers: Sequence[Any], workers: int, names: Sequence[str]) -> dict[str, Any]:
    """Grade answers with a fresh sandbox; its start is part of the time."""
    from onpol_cli.core.config import SandboxConfig
    from onpol_cli.sandbox import Sandbox
    from onpol_cli.tasks.registry import preload_for

    before, memory, start = cpu_of_children(), parent_mb(), time.perf_counter()
    with Sandbox(SandboxConfig(workers=workers), preload_for(names)) as sandbox:
        task._sandbox = sandbox
        grades = task.grade_each([(answer.problem, answer.completion) for answer in answers])
        wall, level = time.perf_counter() - start, sandbox.isolation
    return {
        "wall_s": wall,
        "cpu_s": cpu_of_children() - before,
        "passed": [grade.passed for grade in grades],
        "outcomes": dict(Counter(grade.outcome.value for grade in grades)),
        "wall_timeouts": sum(grade.wall_timeout for grade in grades),
        "parent_mb": [round(memory, 1), round(parent_mb(), 1)],
        "isolation": level,
    }


def run_official(folder: Path, answers: Sequence[Any], workers: int) -> dict[str, Any]:
    """Grade the same answers with the official evaluator in `folder`."""
    samples = []
    for answer in answers:
        cases = answer.problem.tests.cases()
        content = {"inputs": [i for i, _ in cases], "outputs": [o for _, o in cases]}
        content["fn_name"] = answer.problem.tests.function
        samples.append({"input_output": json.dumps(content)})
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([samples, [[answer.completion.text] for answer in answers]], file)
        file.flush()
        before = cpu_of_children()
        command = [sys.executable, "-c", OFFICIAL, str(folder), file.name, str(workers)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {**json.loads(done.stdout), "cpu_s": cpu_of_children() - before}


def side_by_side(name: str, task: Any, answers: Sequence[Any], options: argparse.Namespace) -> dict[str, Any]:
    """Both evaluators on the same answers, ours first."""
    found = {"ours": run_ours(task, answers, options.processes, ["livecodebench"])}
    if options.official:
        found["official"] = run_official(options.official, answers, options.processes)
        for unit in ("wall_s", "cpu_s"):
            found[f"ratio_{unit}"] = found["official"][unit] / found["ours"][unit]
    report(name, len(answers), found)
    return found


def report(name: str, count: int, found: dict[str, Any]) -> None:
    """Two or three lines for people."""
    for who in ("ours", "official"):
        if who in found:
            part = found[who]
            print(
                f"{name:8} {who:9} {count} answers  wall {part['wall_s']:.1f} s  cpu {part['cpu_s']:.1f} s", flush=True
            )
    if "official" in found:
        print(f"{name:8} ratio     wall {found['ratio_wall_s']:.2f}  cpu {found['ratio_cpu_s']:.2f}", flush=True)


def lcb(options: argparse.Namespace) -> dict[str, Any]:
    """O1-Mini's answers: time and agreement."""
    from onpol_cli.core.config import TaskConfig
    from onpol_cli.tasks.answers import match_answers, read_answers
    from onpol_cli.tasks.livecodebench.official import read_grades
    from onpol_cli.tasks.registry import build_task

    folder = options.data / "livecodebench"
    published, raws = read_grades(folder / PUBLISHED), read_answers(folder / PUBLISHED)
    found = {}
    for name, (file, _) in SAMPLES.items():
        task: Any = build_task(TaskConfig(name="livecodebench", data=str(folder / file)), None)  # type: ignore[arg-type]
        problems = task.problems("test")
        known = {problem.problem_id for problem in problems}
        raw = [item for item in raws if item.problem_id in known]
        answers = match_answers(raw, {"livecodebench": problems})["livecodebench"]
        found[name] = side_by_side(name, task, answers, options) | {"answers": len(answers)}
        for who in ("ours", "official"):
            if who in found[name]:
                ids = [answer.problem.problem_id for answer in answers]
                pairs = zip(ids, found[name][who].pop("passed"), strict=True)
                differ = [problem_id for problem_id, passed in pairs if passed != published[problem_id][0]]
                found[name][who]["differs_from_published"] = differ
                print(
                    f"{name:8} {who:9} equal to the published grade: {len(ids) - len(differ)} of {len(ids)}  {differ}"
                )
    return found


def trivial(options: argparse.Namespace) -> dict[str, Any]:
    """Solutions that take no time: what is left is the evaluator's own cost."""
    from onpol_cli.core.types import Completion, Problem
    from onpol_cli.tasks.answers import Answer
    from onpol_cli.tasks.livecodebench.data import LcbTests
    from onpol_cli.tasks.livecodebench.task import LiveCodeBench

    public = json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}])
    problem = Problem("t", "", LcbTests(public, "[]", None, None), meta={"starter_code": ""})
    code = "a, b = map(int, input().split())\nprint(a + b)  # {}\n"
    answers = [Answer(problem, n, Completion(code.format(n), is_code=True)) for n in range(TRIVIAL)]
    task: Any = LiveCodeBench([problem], None)  # type: ignore[arg-type]
    found = side_by_side("trivial", task, answers, options)
    for who in ("ours", "official"):
        if who in found:
            passed = found[who].pop("passed")
            assert all(passed), f"{who}: {passed.count(False)} trivial solutions failed"
    return found


def asserts(options: argparse.Namespace) -> dict[str, Any]:
    """Small programs with five asserts, as RL grades them."""
    from onpol_cli.core.config import SandboxConfig
    from onpol_cli.sandbox import Sandbox
    from onpol_cli.tasks.minimal_edit.testing import EditTests

    lines = "\n".join(f"assert f({n}) == {n * n + 1}" for n in range(5))
    tests = EditTests(kind="assert", source=lines, entry_point="f", parameters=("x",))
    sources = [f"def f(x):\n    y = x * x  # {n}\n    return y + 1\n" for n in range(ASSERTS)]
    jobs = [tests.job(source) for source in sources]
    with Sandbox(SandboxConfig(workers=options.workers)) as sandbox:
        sandbox.run(jobs[:8])
        start = time.perf_counter()
        verdicts = sandbox.run(jobs)
        wall = time.perf_counter() - start
    assert all(verdict.passed for verdict in verdicts)
    print(f"asserts  {ASSERTS} programs  wall {wall:.2f} s  {ASSERTS / wall:.0f} a second")
    return {
        "wall_s": wall,
        "per_s": ASSERTS / wall,
        "one_by_one": one_by_one([(source + lines, "") for source in sources[:ALONE]]),
    }


def edit400(options: argparse.Namespace) -> dict[str, Any]:
    """Originals and corrupted of the 400-task file."""
    from onpol_cli.core.config import TaskConfig
    from onpol_cli.core.types import Completion
    from onpol_cli.tasks.answers import Answer
    from onpol_cli.tasks.registry import build_task

    file = options.data / "minimal_edit" / "corrupted_solutions_manual_easy_400.jsonl"
    task: Any = build_task(TaskConfig(name="minimal-edit", data=str(file)), None)  # type: ignore[arg-type]
    problems = task.problems("test")
    answers = [Answer(p, 0, Completion(p.original, is_code=True)) for p in problems]
    answers += [Answer(p, 1, Completion(p.corrupted, is_code=True)) for p in problems]
    part = run_ours(task, answers, options.workers, ["minimal-edit"])
    passed = part.pop("passed")
    half = len(problems)
    part |= {"problems": half, "originals_pass": sum(passed[:half]), "corrupted_pass": sum(passed[half:])}
    print(
        f"edit400  {len(answers)} programs  wall {part['wall_s']:.1f} s  originals {part['originals_pass']} of {half}, "
        f"corrupted {part['corrupted_pass']}"
    )
    return part


def pair_ratios(pair: dict[str, Any]) -> dict[str, float]:
    """Of two evaluators on the same answers."""
    found = {}
    if "official" in pair:
        found = {f"official over ours, {unit}": pair[f"ratio_{unit}"] for unit in ("wall_s", "cpu_s")}
    for who in ("ours", "official"):
        if "differs_from_published" in pair.get(who, {}):
            found[f"{who} equal to published"] = 1 - len(pair[who]["differs_from_published"]) / pair["answers"]
    return found


def ratios(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Of the parts that were measured: speeds of two ways on the same work, and shares."""
    result = {name: pair_ratios(pair) for name, pair in found.get("lcb", {}).items()}
    if "trivial" in found:
        result["trivial"] = pair_ratios(found["trivial"])
    if part := found.get("asserts"):
        faster = part["per_s"] / part["one_by_one"]["per_second"]
        result["asserts"] = {"sandbox over one by one, programs a second": faster}
    if part := found.get("edit400"):
        kinds = ("originals", "corrupted")
        result["edit400"] = {f"{kind} that pass": part[f"{kind}_pass"] / part["problems"] for kind in kinds}
    return result


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "lcb": lcb,
    "trivial": trivial,
    "asserts": asserts,
    "edit400": edit400,
}


def main() -> None:
    """Run the parts and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--official", type=Path, help="checkout of LiveCodeBench/LiveCodeBench, outside this repository"
    )
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("ONPOL_DATA", ROOT.parent / "shared" / "data"))
    )
    parser.add_argument("--processes", type=int, default=2, help="of both evaluators, side by side")
    parser.add_argument(
        "--workers", type=int, default=0, help="of the sandbox, for asserts and edit400; 0: its default"
    )
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--out", type=Path, help="folder for grading.json")
    options = parser.parse_args()
    found: dict[str, Any] = {
        "bench": "grading",
        "command": " ".join(["python", "scripts/bench/grading.py", *sys.argv[1:]]),
        "cores": len(os.sched_getaffinity(0)),
        "processes": options.processes,
        "workers": options.workers,
        "load": os.getloadavg()[0],
        "python": sys.version.split()[0],
    }
    if options.official:
        git = ["git", "-C", str(options.official), "rev-parse", "HEAD"]
        found["official_commit"] = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
        print(f"official evaluator at {found['official_commit']}")
    print(f"load average before: {found['load']:.1f}")
    for name in options.only.split(","):
        found[name] = PARTS[name](options)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        file = options.out / "grading.json"
        kept = json.loads(file.read_text()) if file.is_file() else {}
        for name in options.only.split(","):
            kept[name] = {**{key: value for key, value in found.items() if key not in PARTS}, **found[name]}
        file.write_text(json.dumps(kept, indent=1) + "\n")
    tell(found | {"ratios": ratios(found)}, None)


if __name__ == "__main__":
    main()
