"""The program's own process: after the fork, limits first, then the untrusted code.

Owns what happens in the child between the fork and the program's end, for jobs whose judge is another
process. Nothing here is trusted by anyone: the program may patch all of it. It can only send answers,
and a wrong answer stays wrong however it is sent. (`in_process` is the other case.)
"""

from __future__ import annotations

import atexit
import importlib
import os
import signal
import sys
import threading
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from onpol_cli.sandbox import codec, frames
from onpol_cli.sandbox.inside import in_process, kernel
from onpol_cli.sandbox.inside.in_process import describe

FIRST_KEPT = 900
"""As in `boot`, which runs as a script and cannot be imported."""

# What answers to programming problems import; each worker pays for it once. Few, because every page
# that a module maps makes each fork dearer.
BASIC_MODULES = [
    "bisect",
    "collections",
    "copy",
    "datetime",
    "functools",
    "heapq",
    "itertools",
    "json",
    "linecache",
    "math",
    "operator",
    "random",
    "re",
    "string",
    "threading",
    "typing",
]


@dataclass(frozen=True)
class Descriptors:
    """Descriptors that a program gets: its line to the judge, and stdin and stdout if it has them."""

    line: int
    stdin: int | None = None
    stdout: int | None = None


def preload(modules: Sequence[str]) -> None:
    """Import what programs need; skip what is not installed. Runs in the zygote."""
    for name in (*BASIC_MODULES, *modules):
        try:
            importlib.import_module(name)
        except Exception:  # boundary: third-party code; a program that needs it will say so itself
            continue
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)


def warm_up(folder: str) -> None:
    """Do once in the zygote what is the same for every program, so that no fork pays for it.

    Each page that a program touches first is copied for it, so that a little work costs much.
    """
    os.environ.update(HOME=folder, TMPDIR=folder, PWD=folder)
    for number in range(3):
        _open_stream(number)
    site = importlib.import_module("site")  # -S left out exit() and quit()
    site.setquit()
    site.sethelper()
    # The first compile() creates the types of the syntax tree: 1.5 ms.
    header = {"preamble": "", "source": "import math\ndef f(x):\n    return [x, {'a': math.pi}]\n"}
    namespace: dict[str, Any] = {}
    run_source(namespace, header)
    _answer(eval("f", namespace), codec.dumps({"args": [(1, "a")], "kwargs": {}}), namespace)


def become_program(fds: Descriptors, folder: str, limits: dict[str, Any], nproc: int | None) -> NoReturn:
    """Turn the forked child into the program and end with it."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    line = _descriptors(fds)
    os.chdir(folder)
    kernel.limit(limits, nproc)
    if limits["shares_pids"]:  # else the zygote is process 1, and all end with it
        kernel.die_with_parent()
        kernel.confine_signals(os.getpid())
    sys.modules["random"].seed(0)  # forking may reseed; programs see the same numbers every time
    sock = frames.wrap(line)
    try:
        header = codec.loads(frames.receive(sock))
        kernel.set_dumpable(header["kind"] in ("call", "stdin"))
        _ROLES[header["kind"]](sock, header)
    except (frames.Closed, frames.Late):
        os._exit(71)
    os._exit(0)


def _descriptors(fds: Descriptors) -> int:
    """Put the descriptors where they belong and close every other one; returns the line's number."""
    null = os.open(os.devnull, os.O_RDWR)
    line, stdin, stdout = (os.dup(fd) if fd is not None else None for fd in (fds.line, fds.stdin, fds.stdout))
    os.dup2(null if stdin is None else stdin, 0)
    os.dup2(null if stdout is None else stdout, 1)
    os.dup2(null, 2)
    assert line is not None
    os.dup2(line, 3)
    os.closerange(4, FIRST_KEPT)
    os.closerange(FIRST_KEPT + 16, 65536)
    for number, given in enumerate((fds.stdin, fds.stdout)):
        if given is not None:  # the streams of `warm_up` know only that /dev/null can be sought in
            _open_stream(number)
    return 3


def _open_stream(number: int) -> None:
    """Make sys.stdin, stdout or stderr anew on its descriptor."""
    name, mode = ("stdin", "stdout", "stderr")[number], "r" if number == 0 else "w"
    stream = open(number, mode, encoding="utf-8", errors="surrogateescape", closefd=False)  # noqa: SIM115
    setattr(sys, name, stream)
    setattr(sys, f"__{name}__", stream)


def new_module(name: str, source: str) -> types.ModuleType:
    """A fresh module for a program; the source is registered so that tracebacks and inspect find it."""
    module = types.ModuleType(name)
    module.__dict__.update(__builtins__=__builtins__, __file__="<program>")
    sys.modules[name] = module
    sys.modules["linecache"].cache["<program>"] = (len(source), None, source.splitlines(True), "<program>")
    return module


def run_source(namespace: dict[str, Any], header: dict[str, Any]) -> None:
    """Execute the trusted preamble, then the program, in `namespace`."""
    if header["preamble"]:
        exec(compile(header["preamble"], "<preamble>", "exec", dont_inherit=True), namespace)
    exec(compile(header["source"], "<program>", "exec", dont_inherit=True), namespace)


def _answer_calls(sock: frames.Line, header: dict[str, Any]) -> None:
    """Load the program, then answer one call after the other until the judge hangs up."""
    namespace = new_module("program", header["source"]).__dict__
    try:
        run_source(namespace, header)
        function = _entry(namespace, header["entry_point"], header["in_class"])
    except BaseException as error:  # boundary: whatever the program raises is its result
        return frames.send(sock, codec.dumps({"raised": describe(error)}))
    frames.send(sock, codec.dumps({"loaded": True}))
    while True:
        request = frames.receive(sock)
        frames.send(sock, _answer(function, request, namespace))


def _entry(namespace: dict[str, Any], entry_point: str, in_class: str | None) -> Any:
    if in_class is not None:
        return getattr(namespace[in_class](), entry_point)
    return eval(entry_point, namespace)


def _answer(function: Any, request: bytes, namespace: dict[str, Any]) -> bytes:
    call = codec.loads(request, namespace)
    kwargs = call["kwargs"] if type(call) is dict else {}
    args = call["args"] if type(call) is dict else call
    try:
        reply: dict[str, Any] = {"result": function(*args, **kwargs)}
        if type(call) is dict:
            reply.update(args=args, kwargs=kwargs)  # the test may look at what was changed in place
        return codec.dumps(reply)
    except BaseException as error:  # boundary: as above
        return codec.dumps({"raised": describe(error)})


def _run_whole(sock: frames.Line, header: dict[str, Any]) -> None:
    """Run the program as a script with its real stdin and stdout; exit as an interpreter would."""
    namespace = new_module("__main__", header["source"]).__dict__
    try:
        run_source(namespace, header)
    except SystemExit:
        pass
    except BaseException as error:  # boundary: as above
        frames.send(sock, codec.dumps({"raised": describe(error)}))
    for finish in (threading._shutdown, atexit._run_exitfuncs, sys.stdout.flush):  # type: ignore[attr-defined]
        try:
            finish()
        except BaseException as error:  # boundary: as above
            frames.send(sock, codec.dumps({"raised": describe(error)}))


_ROLES = {"call": _answer_calls, "stdin": _run_whole, "unittest": in_process.run, "script": in_process.run}
