"""What the sandbox is asked and what it answers: jobs, limits, verdicts.

Owns the data types only. Running them is `pool`, comparing results is `compare`, and what happens
inside the isolated processes is under `inside/`.

Every value that crosses into or out of a program (`calls`, `expected`, results) is *plain data*:
None, bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, deque, and linked
nodes where the preamble defines a class `ListNode`, `TreeNode` or `Node`. `codec` is the exact list.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from onpol_cli.core.config import SandboxConfig


class Status(StrEnum):
    """Outcome of one job."""

    PASSED = "passed"
    FAILED = "failed"
    """A test failed: wrong result, failed assertion, or an exception while answering a test."""
    TIMEOUT = "timeout"
    """CPU or wall-clock limit reached."""
    ERROR = "error"
    """Syntax error, raised while loading, died (signal, exit, memory), or could not be run."""


@dataclass(frozen=True)
class Limits:
    """Limits per program. Seconds, MiB, KiB and counts."""

    cpu_s: float
    wall_s: float
    memory_mb: int
    processes: int
    file_mb: int
    open_files: int
    output_kb: int

    @classmethod
    def from_config(cls, config: SandboxConfig) -> Limits:
        """The limits that `config` sets."""
        return cls(
            cpu_s=config.cpu_s,
            wall_s=config.wall_s,
            memory_mb=config.memory_mb,
            processes=config.processes,
            file_mb=config.file_mb,
            open_files=config.open_files,
            output_kb=config.output_kb,
        )


@dataclass(frozen=True, kw_only=True)
class CallJob:
    """Call `entry_point` of `source` on each of `calls` and compare with `expected`.

    The program never sees `expected`. The first wrong result ends the job.

    Attributes:
        source: the untrusted program.
        entry_point: function (or method of `in_class`) to call; dotted names and `Solution().f` work too.
        calls: positional arguments of each test.
        expected: the results, one a call.
        compare: name of a rule of `compare.CALL_RULES`: "equal" or "lcb".
        in_class: class to instantiate once, e.g. "Solution".
        preamble: trusted code that runs before `source` in the same namespace.
        cpu_s: CPU seconds for the whole program; None takes the sandbox's limit (or, with
            `per_test_s`, has no limit beyond that of each test).
        wall_s: wall seconds; None keeps the sandbox's ratio of wall to CPU seconds.
        per_test_s: CPU seconds of each call.
        memory_mb: None takes the sandbox's limit.
        keep_output: also return the results in `Verdict.outputs`.
    """

    source: str
    entry_point: str
    calls: tuple[tuple[Any, ...], ...]
    expected: tuple[Any, ...]
    compare: str = "equal"
    in_class: str | None = None
    preamble: str = ""
    cpu_s: float | None = None
    wall_s: float | None = None
    per_test_s: float | None = None
    memory_mb: int | None = None
    keep_output: bool = False


@dataclass(frozen=True, kw_only=True)
class AssertJob:
    """Run a trusted test script against `entry_point` of `source`.

    The script runs in a process of its own, in which the entry point is a proxy: each call is sent
    to the program's process as plain data. After the script, a function `check` that it defines is
    called with the proxy; the proxy is also bound to the last identifier of `entry_point`
    (`Solution().f` is evaluated once, in the program's process, and bound as `f`; a name assigned
    before the script runs, so that `assert f(1) == 2` works).

    Attributes:
        source: the untrusted program.
        test_source: trusted script: module-level asserts, or `def check(candidate)`.
        entry_point: name or expression that yields the function.
        preamble: trusted code run in both processes first (imports, helpers, node classes).
        in_process: run the script in the program's own process, for the few tests that need what a
            proxy cannot do (a result that is no plain data). Decide it from the reference solution,
            never from the program. Hardened like `UnittestJob`, with the same residual risk.
        cpu_s, wall_s, memory_mb: as in `CallJob`.
    """

    source: str
    test_source: str
    entry_point: str
    preamble: str = ""
    in_process: bool = False
    cpu_s: float | None = None
    wall_s: float | None = None
    memory_mb: int | None = None


@dataclass(frozen=True, kw_only=True)
class UnittestJob:
    """Run the `unittest.TestCase` class of `test_source` in the program's process (BigCodeBench).

    Attributes:
        source: the untrusted program.
        test_source: trusted test module; it sees the program's names as its own globals.
        class_name: the TestCase class.
        entry_point: the function under test, guarded at each call ("" guards nothing).
        preamble, cpu_s, wall_s, memory_mb: as in `CallJob`.
    """

    source: str
    test_source: str
    class_name: str = "TestCases"
    entry_point: str = "task_func"
    preamble: str = ""
    cpu_s: float | None = None
    wall_s: float | None = None
    memory_mb: int | None = None


@dataclass(frozen=True, kw_only=True)
class StdinJob:
    """Run the whole program once per input with a real stdin; compare its stdout.

    Attributes:
        source: the untrusted program, run as `__main__`.
        inputs: stdin of each test.
        expected: stdout of each test; the program never sees it.
        compare: name of a rule of `compare.STDOUT_RULES`: "lcb" or "exact".
        preamble: trusted code that runs before `source` in the same namespace.
        per_test_s: CPU seconds of each test; None takes the sandbox's `cpu_s`.
        wall_s: wall seconds of each test; None keeps the sandbox's ratio of wall to CPU seconds.
        memory_mb: None takes the sandbox's limit.
        keep_output: also return every stdout in `Verdict.outputs`.
    """

    source: str
    inputs: tuple[str, ...]
    expected: tuple[str, ...]
    compare: str = "lcb"
    preamble: str = ""
    per_test_s: float | None = None
    wall_s: float | None = None
    memory_mb: int | None = None
    keep_output: bool = False


Job = CallJob | AssertJob | UnittestJob | StdinJob


@dataclass(frozen=True)
class Verdict:
    """The answer to one job.

    Attributes:
        status: see `Status`.
        detail: one line for people; empty when passed.
        failed_test: 0-based index of the test that failed, where that is known.
        cpu_s: CPU seconds of the program and its descendants.
        wall_s: wall-clock seconds.
        wall_timeout: TIMEOUT by the wall clock while CPU time was within its limit.
        outputs: results (CallJob) or stdouts (StdinJob) so far, if the job has `keep_output`.
        test_cpu_s: CPU seconds of each test that ran (StdinJob).
    """

    status: Status
    detail: str = ""
    failed_test: int | None = None
    cpu_s: float = 0.0
    wall_s: float = 0.0
    wall_timeout: bool = False
    outputs: tuple[Any, ...] = ()
    test_cpu_s: tuple[float, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return self.status is Status.PASSED


@dataclass(frozen=True, kw_only=True)
class ReferenceJob:
    """Run a reference solution on inputs and return its results (`Sandbox.results`).

    Attributes:
        source: the reference; isolated like any program.
        entry_point, calls, in_class, preamble, cpu_s, per_test_s: as in `CallJob`.
    """

    source: str
    entry_point: str
    calls: tuple[tuple[Any, ...], ...]
    in_class: str | None = None
    preamble: str = ""
    cpu_s: float | None = None
    per_test_s: float | None = None


@dataclass(frozen=True)
class ReferenceResults:
    """Results of a `ReferenceJob`, in the order of its calls.

    Attributes:
        results: one a call; None where `errors` has an entry.
        errors: by call index, why there is no result ("ValueError: ...", "no plain data: ...").
        verdict: how the whole run ended; PASSED if the program answered (or raised on) every call.
    """

    results: tuple[Any, ...]
    errors: dict[int, str] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=lambda: Verdict(Status.PASSED))
