"""The process that judges: holds tests and expected values, never runs the program.

Owns the conversation with the pool (jobs in, verdicts out) and with one zygote (its programs). It lives
in a namespace (and, where possible, under a user) of its own, which programs cannot see. Everything
that comes from a program is decoded to plain data before it is looked at.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from onpol_cli.sandbox import codec, frames
from onpol_cli.sandbox.compare import CALL_RULES
from onpol_cli.sandbox.inside import scripts, stdin_tests, unittests

GRACE_S = 1.0
"""Seconds after a program's own limits before the judge stops waiting for the zygote to act."""

SHORT_BYTES = 1 << 20
"""Longest frame of a program where a few words are due. Decoding takes up to 30 times as much memory."""
OUTPUT_BYTES = 16 << 20
"""Results that a job may return in all (`keep_output`), bytes of their encoding."""
AT_ONCE_BYTES = 32768
"""Calls that fit into a socket's buffer are sent together; answers still come one by one."""


class WorkerLost(Exception):
    """The zygote is gone or does not answer."""


@dataclass
class Session:
    """One program in the zygote, seen from the judge."""

    control: socket.socket
    limits: dict[str, Any]
    line: frames.Line = field(init=False)
    deadline: float = field(init=False)
    loaded: bool = False

    def start(self, header: dict[str, Any], stdio: tuple[int, ...] = ()) -> None:
        """Fork the program and send it `header` (kind, preamble, source, ...)."""
        self.line, theirs = socket.socketpair()
        message = json.dumps({"op": "run", "limits": self.limits}).encode()
        try:
            socket.send_fds(self.control, [message], [theirs.fileno(), *stdio])
        except OSError:
            raise WorkerLost from None
        finally:
            theirs.close()
        patience = self.limits["wall"] + GRACE_S
        self.deadline = time.monotonic() + patience
        # The program may keep its end alive in this very socket's queue, and then no death unblocks a send.
        self.line.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(patience) + 1, 0))
        frames.send(self.line, codec.dumps(header))

    def ask(self, payload: bytes, limit: int = frames.MAX_FRAME) -> bytes:
        """One request to the program, one answer."""
        frames.send(self.line, payload)
        return self.listen(limit)

    def listen(self, limit: int = frames.MAX_FRAME) -> bytes:
        """The next frame of the program, of at most `limit` bytes."""
        return frames.receive(self.line, self.deadline, limit)

    def preload(self, *modules: str) -> None:
        """Have the zygote import `modules` (once) before the program is forked."""
        self._tell({"op": "preload", "modules": modules})

    def mark(self) -> None:
        """A test begins: its CPU and wall limits count from here."""
        self._tell({"op": "mark"})

    def census(self) -> dict[str, Any]:
        """Threads, processes and signal handlers of the program, by the kernel's count."""
        self._tell({"op": "census"})
        return self._hear()

    def stop(self) -> dict[str, Any]:
        """Kill what is left of the program; its report: cpu, wall, reason, exit, signal."""
        self.line.close()
        self._tell({"op": "stop"})
        return self._hear()

    def _tell(self, message: dict[str, Any]) -> None:
        try:
            self.control.send(json.dumps(message).encode())
        except OSError:
            raise WorkerLost from None

    def _hear(self) -> dict[str, Any]:
        self.control.settimeout(4.0)
        try:
            data = self.control.recv(65536)
        except OSError:
            data = b""
        self.control.settimeout(None)
        if not data:
            raise WorkerLost
        return dict(json.loads(data))


def conclude(report: dict[str, Any], said: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
    """Join what the tests said with how the program ended; limits win over what it answered."""
    verdict = {"status": "error", "detail": "", **said, "cpu_s": report["cpu"], "wall_s": report["wall"]}
    reason = report["reason"]
    if reason in ("cpu", "wall"):
        seconds = min(limits[reason], limits[f"test_{reason}"])
        verdict.update(status="timeout", wall_timeout=reason == "wall", detail=f"{reason} limit of {seconds:g} s")
    elif reason is not None:
        verdict.update(status="error", detail=f"{reason} limit")
    elif verdict["status"] == "gone":
        how = f"signal {report['signal']}" if report["signal"] else f"exit code {report['exit']}"
        verdict.update(status="error", detail=f"the program's process ended ({how})")
    return verdict


def raised(reply: dict[str, Any]) -> str:
    """One line for an exception that a program reports."""
    kind, text = (str(part) for part in list(reply["raised"])[:2])
    return f"{kind}: {text}"[:300] if text else kind[:300]


def load(session: Session, header: dict[str, Any]) -> dict[str, Any] | None:
    """Start the program and wait until it has loaded; a verdict if it did not."""
    session.start(header)
    reply = codec.loads(session.listen(SHORT_BYTES))
    if "raised" in reply:
        return {"status": "error", "detail": raised(reply)}
    session.loaded = True
    return None


def program_header(job: dict[str, Any], kind: str) -> dict[str, Any]:
    """First frame to a program."""
    return {"kind": kind, **{key: job.get(key) for key in ("source", "preamble", "entry_point", "in_class")}}


def judge_calls(session: Session, job: dict[str, Any], parts: list[bytes]) -> dict[str, Any]:
    """CallJob and ReferenceJob: one call after the other, results compared here."""
    failure = load(session, program_header(job, "call"))
    if failure:
        return failure
    count = job["tests"]
    rule = CALL_RULES[job["compare"]] if job["compare"] else None
    outputs: list[bytes] = []
    at_once = not job["per_test"] and sum(map(len, parts[:count])) < AT_ONCE_BYTES
    if at_once:
        session.line.sendall(b"".join(map(frames.pack, parts[:count])))
    for number in range(count):
        if job["per_test"]:
            session.mark()
        limit = _longest(job, outputs, parts[count + number] if rule else b"")
        try:
            answer = session.listen(limit) if at_once else session.ask(parts[number], limit)
        except frames.TooLong as error:
            return {"status": "failed", "detail": f"result of {error}", "failed_test": number, "outputs": outputs}
        except frames.Closed:
            return {"status": "gone", "failed_test": number, "outputs": outputs}
        if job["keep_output"]:
            outputs.append(answer)
        wrong = _wrong(answer, rule, parts[count + number]) if rule else codec.loads(answer) and None
        if wrong:
            return {"status": "failed", "detail": wrong, "failed_test": number, "outputs": outputs}
    return {"status": "passed", "outputs": outputs}


def _longest(job: dict[str, Any], outputs: list[bytes], expected: bytes) -> int:
    """Bytes of the next answer: whatever equals the expected result is not many times as long."""
    room = OUTPUT_BYTES - sum(map(len, outputs))
    longest = room if job["compare"] is None else 16 * len(expected) + SHORT_BYTES
    return min(longest, room) if job["keep_output"] else longest


def _wrong(answer: bytes, rule: Callable[[Any, Any], bool], expected: bytes) -> str | None:
    reply = codec.loads(answer)
    if "raised" in reply:
        return raised(reply)
    result, wanted = reply["result"], codec.loads(expected)
    try:
        if rule(result, wanted):
            return None
    except (RecursionError, ArithmeticError, ValueError) as error:
        return f"cannot be compared: {type(error).__name__}"
    opaque = codec.has_opaque(result)
    if opaque:
        return f"result holds an object of class {opaque}, which is no plain data"
    return f"got {_short(result)}, expected {_short(wanted)}"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # ints beyond the digit limit, deep nesting
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 120 else f"{text[:117]}..."


KINDS = {
    "call": judge_calls,
    "script": scripts.judge_script,
    "unittest": unittests.judge_unittest,
    "in_process_script": unittests.judge_unittest,
}


def judge(control: socket.socket, job: dict[str, Any], parts: list[bytes]) -> dict[str, Any]:
    """Run one job in the zygote and say what came out."""
    if job["kind"] == "stdin":
        return stdin_tests.judge_stdin(control, job, parts)
    session = Session(control, job["limits"])
    try:
        said = KINDS[job["kind"]](session, job, parts)
    except (frames.Closed, frames.Late):
        said = {"status": "gone"}
    except (codec.Malformed, TypeError, KeyError, ValueError, AttributeError, RecursionError, MemoryError) as error:
        said = {"status": "error", "detail": f"the program's process sent garbage ({type(error).__name__})"}
    return conclude(session.stop(), said, job["limits"])


def serve(options: dict[str, Any]) -> NoReturn:
    """Entry point of `boot`: judge jobs until the pool closes the socket."""
    pool = frames.wrap(options["fds"][0])
    control = socket.socket(fileno=options["fds"][1])
    compile("0", "<warm up>", "eval")  # the first compile() is dear, and forks for scripts need it
    gc.freeze()  # they then do not copy the pages of what is already loaded
    try:
        control.recv(65536)  # the zygote has loaded its modules
        frames.send(pool, codec.dumps({"ready": True}))
        while True:
            job = codec.loads(frames.receive(pool))
            parts = [frames.receive(pool, limit=1 << 40) for _ in range(job["parts"])]
            verdict = judge(control, job, parts)
            outputs = verdict.pop("outputs", [])
            frames.send(pool, codec.dumps({**verdict, "parts": len(outputs)}))
            for output in outputs:
                frames.send(pool, output)
    except (WorkerLost, frames.Closed, OSError):
        os._exit(0)
