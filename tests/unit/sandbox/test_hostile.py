"""No hostile program forges a pass, escapes, hangs, or leaves anything behind."""

from __future__ import annotations

import dataclasses
import os
import secrets
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hostile_programs import PROGRAMS, SLOW
from hostile_readers import SEARCH

from onpol_cli.core.config import SandboxConfig
from onpol_cli.sandbox import AssertJob, CallJob, Job, Sandbox, Status, StdinJob, UnittestJob, Verdict

ALL = "call script in_process unittest stdin"
FAST = "call unittest stdin"
CPU_S, WALL_S = 0.3, 1.5
CONFIG = SandboxConfig(workers=2, cpu_s=CPU_S, wall_s=WALL_S, memory_mb=300, processes=16, output_kb=64)
UNITTEST = """
import unittest
class TestCases(unittest.TestCase):
    def test_answer(self):
        self.assertEqual({name}(0), {answer!r})
"""
GOOD = """
import os
def f(x):
    places = [p for p in (os.getcwd(), "/dev/shm") if os.path.isdir(p)]
    left = [name for place in places for name in os.listdir(place) if "hostile" in name or place == os.getcwd()]
    return {answer!r} if not left else left
"""


def program(name: str, attack: str, *, at_load: bool) -> str:
    """A module with a function `name` that attacks when called and, if asked, also when loaded."""
    body = textwrap.indent(attack.strip("\n"), "    ")
    load = "try:\n    attack()\nexcept Exception:\n    pass\n" if at_load else ""
    return f"def attack():\n{body}\n    return 'wrong'\n{load}def {name}(x):\n    return attack()\n"


def jobs_for(source_of: dict[str, str], answer: str, kinds: str) -> list[Job]:
    """One job of each of `kinds`; `source_of` has a program for each."""
    check = f"def check(candidate):\n    assert candidate(0) == {answer!r}\n"
    made: dict[str, Job] = {
        "call": CallJob(source=source_of["call"], entry_point="f", calls=((0,),), expected=(answer,)),
        "script": AssertJob(source=source_of["script"], entry_point="f", test_source=check),
        "in_process": AssertJob(source=source_of["in_process"], entry_point="f", test_source=check, in_process=True),
        "unittest": UnittestJob(
            source=source_of["unittest"], test_source=UNITTEST.format(name="f", answer=answer), entry_point="f"
        ),
        "stdin": StdinJob(source=source_of["stdin"], inputs=("0\n",), expected=(answer,)),
    }
    return [made[kind] for kind in kinds.split()]


def sources(attack: str) -> dict[str, str]:
    """A program per kind; half of them attack while loading too, where much is stopped early."""
    made = {kind: program("f", attack, at_load=kind in ("call", "in_process")) for kind in ALL.split()}
    return {**made, "stdin": made["stdin"] + "print(f(0))\n"}


def good_sources(answer: str) -> dict[str, str]:
    made = dict.fromkeys(ALL.split(), GOOD.format(answer=answer))
    return {**made, "stdin": made["stdin"] + "print(f(0))\n"}


def processes_below(roots: list[int]) -> set[int]:
    """Every live process below `roots`, as this machine sees them."""
    parents: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[0] != b"Z":
            parents[int(name)] = int(fields[1])
    found = set(roots)
    while grew := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= grew
    return found


def workers_processes(sandbox: Sandbox) -> set[int]:
    return processes_below([pid for worker in sandbox._team.workers for pid in worker.pids])


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(CONFIG) as made:
        yield made


def nobody_else(sandbox: Sandbox) -> bool:
    """Whether only the workers' own processes live: zygote and judge, each under its bubblewrap."""
    per_worker = 4 if sandbox.isolation == "bubblewrap" else 2
    return len(workers_processes(sandbox)) == per_worker * len(sandbox._team.workers)


def settles(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether `condition` becomes true; replaced workers need a moment to start."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.05)
    return True


def patient(job: Job) -> Job:
    """`job` with limits that a loaded machine does not reach."""
    if isinstance(job, StdinJob):
        return dataclasses.replace(job, per_test_s=20.0, wall_s=60.0)
    return dataclasses.replace(job, cpu_s=20.0, wall_s=60.0)


def check_verdict(kind: str, verdict: Verdict) -> None:
    assert verdict.status is not Status.PASSED, f"{kind}: forged a pass"
    assert verdict.wall_s <= WALL_S + 2.0, f"{kind}: ran for {verdict.wall_s:.1f} s"


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_hostile_program_gets_nowhere(sandbox: Sandbox, name: str) -> None:
    answer = f"ANSWER:{secrets.token_hex(8)}"
    kinds = FAST if name in SLOW else ALL
    verdicts = sandbox.run(jobs_for(sources(PROGRAMS[name]), answer, kinds))
    for kind, verdict in zip(kinds.split(), verdicts, strict=True):
        check_verdict(kind, verdict)
    # The workers are as before, or new: good programs pass, in clean folders, and nobody else is there.
    after = sandbox.run([patient(job) for job in jobs_for(good_sources(answer), answer, "call script stdin")])
    assert [v.detail for v in after if not v.passed] == []
    assert settles(lambda: nobody_else(sandbox)), "processes are left"
    leftovers = [p for place in ("/tmp", "/var/tmp", "/dev/shm") for p in Path(place).glob("onpol-hostile*")]
    if sandbox.isolation == "bubblewrap":
        assert leftovers == []


TWO_STEPS = """
import unittest
class TestCases(unittest.TestCase):
    def helper(self): return 1
    def test_1_raises(self):
        with self.assertRaises(ValueError) as caught: f(0)
        self.assertEqual(str(caught.exception), "first")
    def test_2_answer(self):
        self.assertEqual(f(1), {answer!r})
"""
SAVED_EXCEPTION = (
    SEARCH
    + """
saved = []
def walk(trace):
    while trace is not None:
        if got := look_in_frame(trace.tb_frame): return got
        trace = trace.tb_next
def f(x):
    if x == 0:
        saved.append(ValueError("first"))
        raise saved[0]
    return walk(saved[0].__traceback__)
"""
)
GLOBALS_OF_TESTS = (
    SEARCH
    + """
import unittest
def f(x):
    if x == 0: raise ValueError("first")
    for cls in unittest.TestCase.__subclasses__():
        for value in vars(cls).values():
            for name, thing in dict(getattr(value, '__globals__', {})).items():
                for cell in getattr(thing, '__closure__', None) or ():
                    found = cell.cell_contents
                    late = found.get('late') if isinstance(found, dict) else None
                    if late: return late['tests'][-24:]
                if got := look(thing): return got
    return 'wrong'
"""
)


@pytest.mark.parametrize("source", [SAVED_EXCEPTION, GLOBALS_OF_TESTS], ids=["saved_exception", "globals_of_tests"])
def test_second_call_learns_nothing_from_the_first(sandbox: Sandbox, source: str) -> None:
    answer = f"ANSWER:{secrets.token_hex(8)}"
    job = UnittestJob(source=source, test_source=TWO_STEPS.format(answer=answer), entry_point="f")
    verdict = sandbox.run([patient(job)])[0]
    assert verdict.status is Status.FAILED
    assert verdict.detail.startswith("test_2_answer"), verdict.detail
