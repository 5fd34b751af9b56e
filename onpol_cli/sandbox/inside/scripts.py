"""Judging by a trusted test script: the entry point is a proxy, the program runs elsewhere.

Owns AssertJob inside the judge. The script runs in a fork of the judge, so that whatever it changes or
breaks ends with it. The proxy sends calls as plain data, writes in-place changes of arguments back,
and raises the program's exceptions as builtin (or the preamble's) exceptions of the same name.
"""

from __future__ import annotations

import builtins
import functools
import os
import resource
import select
import time
import types
from typing import Any, NoReturn

from onpol_cli.sandbox import codec, frames
from onpol_cli.sandbox.inside import kernel


class CandidateGone(BaseException):
    """The program's process ended in the middle; not an Exception, so that tests do not swallow it."""


class Proxy:
    """Calls the program's entry point from the test script."""

    def __init__(self, session: Any, namespace: dict[str, Any]) -> None:
        self._session, self._namespace = session, namespace
        self.calls = 0
        self.gone = False
        self.error: BaseException | None = None
        self.opaque: str | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        try:
            answer = self._session.ask(codec.dumps({"args": list(args), "kwargs": kwargs}))
            reply = codec.loads(answer, self._namespace)
        except (frames.Closed, frames.Late, codec.Malformed):
            self.gone = True
            raise CandidateGone from None
        if "raised" in reply:
            self.error = _exception(reply["raised"], self._namespace)
            raise self.error
        for before, after in zip(args, reply["args"], strict=True):
            _write_back(before, after)
        for name, before in kwargs.items():
            _write_back(before, reply["kwargs"][name])
        self.opaque = self.opaque or codec.has_opaque(reply["result"])
        return reply["result"]


def _write_back(before: Any, after: Any) -> None:
    """Make a mutable argument look as the program left it."""
    if type(before) is not type(after) or before == after:
        return
    if isinstance(before, list):
        before[:] = after
    elif isinstance(before, dict | set):
        before.clear()
        before.update(after)
    elif type(before).__name__ in codec.NODE_CLASSES:
        vars(before).update(vars(after))


def _exception(raised: list[Any], namespace: dict[str, Any]) -> BaseException:
    """An exception of the first class in the program's `mro` that is known here."""
    for name in raised[2]:
        kind = namespace.get(name, getattr(builtins, name, None))
        if isinstance(kind, type) and issubclass(kind, BaseException):
            try:
                return kind(str(raised[1]))
            except TypeError:  # UnicodeDecodeError and the like want more arguments
                continue
    return Exception(f"{raised[0]}: {raised[1]}")


def judge_script(session: Any, job: dict[str, Any], parts: list[bytes]) -> dict[str, Any]:
    """AssertJob: load the program, then run the script in a fork."""
    from onpol_cli.sandbox.inside.judge import load, program_header

    failure = load(session, program_header(job, "call"))
    if failure:
        return failure
    try:
        code = [_compiled(job["preamble"], "<preamble>"), _compiled(job["test_source"], "<tests>")]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return {"status": "error", "detail": f"the test script itself raised {type(error).__name__}: {error}"[:300]}
    reading, writing = os.pipe()
    pid = kernel.fork()
    if pid == 0:
        _script_process(session, job, code, writing)
    os.close(writing)
    try:
        return _wait(session, reading)
    finally:
        os.close(reading)
        os.kill(pid, 9)
        os.waitpid(pid, 0)


@functools.lru_cache(maxsize=256)
def _compiled(source: str, name: str) -> types.CodeType:
    """Code of a script; answers to one problem share it, and a fork need not make it."""
    return compile(source, name, "exec", dont_inherit=True)


def _wait(session: Any, reading: int) -> dict[str, Any]:
    poller = select.poll()
    poller.register(reading, select.POLLIN)
    data = b""
    while poller.poll(max(0.0, session.deadline - time.monotonic()) * 1000):
        chunk = os.read(reading, 65536)
        data += chunk
        if not chunk:
            break
    if not data:
        return {"status": "error", "detail": "the test script crashed or did not end"}
    return dict(codec.loads(data))


def _script_process(session: Any, job: dict[str, Any], code: list[types.CodeType], writing: int) -> NoReturn:
    """In the fork: run the script, write one verdict, end."""
    try:
        kernel.die_with_parent()
        session.control.close()  # its zygote must notice when the judge is gone
        os.dup2(1, 2)  # stdin and stdout of a judge are /dev/null
        seconds = int(job["limits"]["wall"]) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        memory = kernel.mapped_bytes() + job["limits"]["memory_mb"] * kernel.MIB  # decoding an answer takes memory here
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        os.write(writing, codec.dumps(_run(session, job, code)))
    finally:
        os._exit(0)


def _run(session: Any, job: dict[str, Any], code: list[types.CodeType]) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "test_script", "__builtins__": builtins}
    proxy = Proxy(session, namespace)
    try:
        exec(code[0], namespace)
        namespace[job["entry_point"].rpartition(".")[2]] = proxy
        exec(code[1], namespace)
        check = namespace.get("check")
        if callable(check) and check is not proxy:  # an entry point may itself be called check
            check(proxy)
    except CandidateGone:
        return {"status": "gone"}
    except BaseException as error:  # boundary: a test script may raise anything
        return _failed(error, proxy)
    if proxy.gone:
        return {"status": "gone"}
    if proxy.calls == 0:
        return {"status": "error", "detail": "the test script never called the entry point"}
    return {"status": "passed"}


def _failed(error: BaseException, proxy: Proxy) -> dict[str, Any]:
    text = " ".join(str(error).split())[:200]
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if proxy.gone:
        return {"status": "gone"}
    if error is proxy.error or isinstance(error, AssertionError):
        said = "assertion failed" + (f": {text}" if text else "") if error is not proxy.error else said
    elif isinstance(error, SyntaxError | NameError | ImportError) or proxy.calls == 0:
        return {"status": "error", "detail": f"the test script itself raised {said}"}
    if proxy.opaque:
        said += f" (a result holds an object of class {proxy.opaque}, which is no plain data)"
    return {"status": "failed", "detail": said}
