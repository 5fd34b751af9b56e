"""Programs per second through the sandbox: `python scripts/bench/sandbox.py [--programs N] [--workers N]`.

Small pure-Python programs with five tests each, as CallJob, AssertJob and StdinJob (one test), and the
start of the pool; beside them the same programs in a fresh interpreter each, one by one, without any protection.
Wall time depends on what else runs; `cpu_ms` (of the workers, per program) does not. Ends with one JSON object
whose ratios are sandbox / one by one.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from facts import ALONE, cpu_of_children, one_by_one, tell

from onpol_cli.core.config import SandboxConfig
from onpol_cli.sandbox import AssertJob, CallJob, Job, Sandbox, StdinJob

SOURCE = """
def f(items):
    total = 0
    for item in items:
        if item % 2 == 0:
            total += item * item
    return total
"""
INPUTS = ([1, 2, 3], [], [4, 4], list(range(20)), [-2, 7])


def expected(items: list[int]) -> int:
    """What `SOURCE` computes."""
    return sum(item * item for item in items if item % 2 == 0)


def kinds() -> dict[str, Job]:
    """One small job of each kind."""
    asserts = "".join(f"    assert candidate({items}) == {expected(items)}\n" for items in INPUTS)
    calls = tuple((items,) for items in INPUTS)
    answers = tuple(map(expected, INPUTS))
    main = f"{SOURCE}print(f([int(word) for word in input().split()]))"
    return {
        "call": CallJob(source=SOURCE, entry_point="f", calls=calls, expected=answers),
        "assert": AssertJob(source=SOURCE, entry_point="f", test_source=f"def check(candidate):\n{asserts}"),
        "stdin": StdinJob(source=main, inputs=("1 2 3 4\n",), expected=("20\n",)),
    }


def alone() -> dict[str, tuple[str, str]]:
    """The same work as a plain program with its standard input."""
    checks = "".join(f"assert f({items}) == {expected(items)}\n" for items in INPUTS)
    main = f"{SOURCE}assert f([int(word) for word in input().split()]) == 20\n"
    return {"call": (SOURCE + checks, ""), "assert": (SOURCE + checks, ""), "stdin": (main, "1 2 3 4\n")}


def measure(job: Job, programs: int, workers: int) -> dict[str, float]:
    """Rate and cost of one kind of job."""
    before = cpu_of_children()
    with Sandbox(SandboxConfig(workers=workers)) as sandbox:
        began = time.perf_counter()
        sandbox.run([job])
        start = time.perf_counter() - began
        sandbox.run([job] * 8)
        began = time.perf_counter()
        verdicts = sandbox.run([job] * programs)
        seconds = time.perf_counter() - began
        assert all(verdict.passed for verdict in verdicts), verdicts[0]
    cpu_ms = 1000 * (cpu_of_children() - before) / programs
    return {"per_second": round(programs / seconds, 1), "cpu_ms": round(cpu_ms, 2), "start_s": round(start, 2)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=0, help="0: the sandbox's default")
    parser.add_argument("--out", type=Path, help="folder for sandbox.json")
    arguments = parser.parse_args()
    with Sandbox(SandboxConfig()) as sandbox:
        isolation = sandbox.isolation
    found = {name: measure(job, arguments.programs, arguments.workers) for name, job in kinds().items()}
    for name, figures in found.items():
        sys.stdout.write(f"{name:8} {figures['per_second']:8.1f} programs/s {figures['cpu_ms']:6.2f} ms CPU\n")
    fresh = {name: one_by_one([program] * ALONE) for name, program in alone().items()}
    ratios = {n: {key: round(found[n][key] / fresh[n][key], 3) for key in ("per_second", "cpu_ms")} for n in found}
    load = round(os.getloadavg()[0], 1)
    command = " ".join(["python", "scripts/bench/sandbox.py", *sys.argv[1:]])
    line = {
        "bench": "sandbox",
        "command": command,
        "cores": len(os.sched_getaffinity(0)),
        "isolation": isolation,
        "workers": arguments.workers,
        "load": load,
        **found,
        "one_by_one": fresh,
        "ratios": ratios,
    }
    tell(line, arguments.out and arguments.out / "sandbox.json")


if __name__ == "__main__":
    main()
