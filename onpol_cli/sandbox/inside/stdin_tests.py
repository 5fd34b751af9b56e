"""Judging whole programs: a real stdin, captured stdout, one fresh process per test.

Owns StdinJob inside the judge. The input is a sealed memory file, so that seeking, `open(0)`,
`os.read(0, n)` and reading in pieces all behave as with `program < file`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import time
from typing import Any

from onpol_cli.sandbox import codec, frames
from onpol_cli.sandbox.compare import STDOUT_RULES

PIPE_BYTES = 1 << 20
OUTPUT_BYTES = 16 << 20
"""Stdouts that a job may return in all (`keep_output`)."""


def judge_stdin(control: socket.socket, job: dict[str, Any], parts: list[bytes]) -> dict[str, Any]:
    """Run the program on each input until one fails; times are summed over the tests."""
    count, rule = job["tests"], STDOUT_RULES[job["compare"]]
    total: dict[str, Any] = {"status": "passed", "cpu_s": 0.0, "wall_s": 0.0, "test_cpu_s": [], "outputs": []}
    for number in range(count):
        expected = parts[count + number].decode("utf-8", "surrogateescape")
        room = max(job["limits"]["output_kb"] * 1024, 2 * len(parts[count + number]) + 65536)
        verdict, output = _one(control, job, parts[number], room)
        text = output.decode("utf-8", "replace")
        if verdict["status"] == "ran":
            same = rule(text, expected)
            verdict["status"] = "passed" if same else "failed"
            verdict["detail"] = "" if same else f"stdout {_short(text)}, expected {_short(expected)}"
        total["test_cpu_s"].append(verdict["cpu_s"])
        for key in ("cpu_s", "wall_s"):
            total[key] += verdict.pop(key)
        if job["keep_output"] and sum(map(len, total["outputs"])) + len(output) < OUTPUT_BYTES:
            total["outputs"].append(codec.dumps(text))
        if verdict["status"] != "passed":
            return {**total, **verdict, "failed_test": number}
    return total


def _one(control: socket.socket, job: dict[str, Any], text: bytes, room: int) -> tuple[dict[str, Any], bytes]:
    from onpol_cli.sandbox.inside.judge import Session, conclude, program_header

    session = Session(control, job["limits"])
    stdin = _memory_file(text)
    reading, writing = os.pipe()
    with contextlib.suppress(OSError):  # over the user's quota of pipe buffers: only slower
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    try:
        session.start(program_header(job, "stdin"), (stdin, writing))
    except frames.Closed:
        pass  # it died before it had its source; the report says how
    finally:
        os.close(stdin)
        os.close(writing)
    try:
        said, output = _collect(session, reading, room)
    finally:
        os.close(reading)
    report = session.stop()
    if said["status"] == "ran" and (report["signal"] or report["exit"]):
        said = {"status": "gone"}
    return conclude(report, said, job["limits"]), output


def _memory_file(text: bytes) -> int:
    """A read-only descriptor of a file with this content that exists in memory only."""
    writable = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(text)
    while view:
        view = view[os.write(writable, view) :]
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    fcntl.fcntl(writable, fcntl.F_ADD_SEALS, seals)
    os.lseek(writable, 0, os.SEEK_SET)
    return writable


def _collect(session: Any, reading: int, room: int) -> tuple[dict[str, Any], bytes]:
    """Read stdout until every writer is gone; then hear whether the program raised."""
    chunks: list[bytes] = []
    size = 0
    poller = select.poll()
    poller.register(reading, select.POLLIN)
    while poller.poll(max(0.0, session.deadline - time.monotonic()) * 1000):
        chunk = os.read(reading, PIPE_BYTES)
        if not chunk:
            return _raised(session), b"".join(chunks)
        chunks.append(chunk)
        size += len(chunk)
        if size > room:
            return {"status": "failed", "detail": f"more than {room} bytes of output"}, b"".join(chunks)[:room]
    return {"status": "gone"}, b"".join(chunks)


def _raised(session: Any) -> dict[str, Any]:
    try:
        reply = codec.loads(session.listen(1 << 16))
        kind, text = str(reply["raised"][0]), str(reply["raised"][1])
    except frames.Closed:
        return {"status": "ran"}
    except (frames.Late, codec.Malformed, TypeError, KeyError, IndexError):
        return {"status": "gone"}
    loading = kind in ("SyntaxError", "IndentationError", "TabError")
    return {"status": "error" if loading else "failed", "detail": f"{kind}: {text}"[:300]}


def _short(text: str) -> str:
    shown = repr(text.strip())
    return shown if len(shown) <= 100 else f"{shown[:97]}..."
