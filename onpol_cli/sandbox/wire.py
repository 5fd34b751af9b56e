"""Jobs as frames to a judge, and frames back as verdicts.

Owns the translation between the types of `jobs` and what travels. Frames from a worker are not trusted:
they are bounded in size and decoded as plain data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onpol_cli.core.errors import OnpolError
from onpol_cli.core.records import well_formed
from onpol_cli.sandbox import codec, frames
from onpol_cli.sandbox.compare import CALL_RULES, STDOUT_RULES
from onpol_cli.sandbox.jobs import (
    AssertJob,
    CallJob,
    Job,
    Limits,
    ReferenceJob,
    Status,
    StdinJob,
    UnittestJob,
    Verdict,
)

AnyJob = Job | ReferenceJob


def check(job: AnyJob) -> None:
    """Refuse a job that cannot be judged.

    Raises:
        OnpolError: no tests, counts that differ, or an unknown rule.
    """
    tests = job.calls if isinstance(job, CallJob | ReferenceJob) else job.inputs if isinstance(job, StdinJob) else None
    if tests is not None and not tests:
        raise OnpolError(f"{type(job).__name__} without tests would pass anything. Give it at least one test.")
    if isinstance(job, CallJob | StdinJob):
        count = len(tests or ())
        if count != len(job.expected):
            raise OnpolError(f"{type(job).__name__} has {count} tests and {len(job.expected)} expected results.")
        rules = CALL_RULES if isinstance(job, CallJob) else STDOUT_RULES
        if job.compare not in rules:
            raise OnpolError(f"Unknown comparison {job.compare!r}; known: {', '.join(rules)}.")


def limits_of(job: AnyJob, limits: Limits) -> dict[str, Any]:
    """Limits of one process of `job`: totals and, under `test_*`, per test. Seconds, MiB, KiB."""
    ratio = max(1.0, limits.wall_s / limits.cpu_s)
    per_test = getattr(job, "per_test_s", None)
    total = getattr(job, "cpu_s", None) or (limits.cpu_s if per_test is None else _total(job, per_test))
    wall = getattr(job, "wall_s", None) or ratio * total
    test_cpu = total if per_test is None else min(per_test, total)
    return {
        "cpu": total, "wall": wall, "test_cpu": test_cpu, "test_wall": min(wall, wall / total * test_cpu),
        "memory_mb": getattr(job, "memory_mb", None) or limits.memory_mb, "processes": limits.processes,
        "file_mb": limits.file_mb, "open_files": limits.open_files, "output_kb": limits.output_kb,
    }  # fmt: skip


def _total(job: AnyJob, per_test: float) -> float:
    return per_test * len(job.calls) if isinstance(job, CallJob | ReferenceJob) else per_test


def patience_s(job: AnyJob, limits: Limits) -> float:
    """Wall seconds after which a judge that says nothing is given up."""
    processes = len(job.inputs) if isinstance(job, StdinJob) else 1
    return float(processes * limits_of(job, limits)["wall"] + 1.5)


def encode(job: AnyJob, limits: Limits) -> Iterator[bytes]:
    """The frames of `job`: a header, then tests, then expected results."""
    header: dict[str, Any] = {
        "source": well_formed(job.source), "preamble": well_formed(job.preamble),
        "limits": limits_of(job, limits), "tests": 1,
    }  # fmt: skip
    parts: list[bytes] = []
    if isinstance(job, CallJob | ReferenceJob):
        header |= {"kind": "call", "entry_point": job.entry_point, "in_class": job.in_class, "tests": len(job.calls)}
        header |= {"per_test": job.per_test_s is not None, "compare": getattr(job, "compare", None)}
        header["keep_output"] = isinstance(job, ReferenceJob) or job.keep_output
        parts = [codec.dumps(list(args)) for args in job.calls]
        parts += [codec.dumps(value) for value in job.expected] if isinstance(job, CallJob) else []
    elif isinstance(job, StdinJob):
        header |= {"kind": "stdin", "compare": job.compare, "keep_output": job.keep_output, "tests": len(job.inputs)}
        parts = [well_formed(text).encode("utf-8", "surrogateescape") for text in (*job.inputs, *job.expected)]
    elif isinstance(job, AssertJob):
        kind = "in_process_script" if job.in_process else "script"
        header |= {"kind": kind, "test_source": well_formed(job.test_source), "entry_point": job.entry_point}
    elif isinstance(job, UnittestJob):
        header |= {"kind": "unittest", "test_source": well_formed(job.test_source), "class_name": job.class_name}
        header["entry_point"] = job.entry_point
    yield frames.pack(codec.dumps({**header, "parts": len(parts)}))
    yield from map(frames.pack, parts)


def one_line(text: str) -> str:
    """`text` without what a terminal or a file may choke on: it holds what a program chose to say."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def decode(header: bytes) -> tuple[Verdict, int]:
    """A verdict, and the number of output frames that follow it.

    Raises:
        codec.Malformed: the frame is no verdict.
    """
    said = codec.loads(header)
    try:
        verdict = Verdict(
            status=Status(said["status"]),
            detail=one_line(str(said.get("detail", ""))),
            failed_test=said.get("failed_test"),
            cpu_s=float(said["cpu_s"]),
            wall_s=float(said["wall_s"]),
            wall_timeout=bool(said.get("wall_timeout", False)),
            test_cpu_s=tuple(said.get("test_cpu_s", ())),
        )
        return verdict, int(said["parts"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise codec.Malformed(f"no verdict ({type(error).__name__})") from None


def outputs(job: AnyJob, frames_in: list[bytes]) -> tuple[Any, ...]:
    """Decode the outputs that came with a verdict; results of calls are unwrapped."""
    values = [codec.loads(frame) for frame in frames_in]
    if isinstance(job, StdinJob | ReferenceJob):
        return tuple(values)
    return tuple(value.get("result") if isinstance(value, dict) else None for value in values)
