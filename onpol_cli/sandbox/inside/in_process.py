"""Tests that must run in the program's own process (unittest with mocks): how a pass is made hard to forge.

A program here shares an interpreter with its judge, so this is hardening, not a proof. What is done:

* Tests, the runner's source and a secret arrive only after the program's module-level code has ended,
  and only if the kernel then counts one process, the expected threads and no new signal handlers.
* The program runs in a thread of its own, at load time and at each call of the guarded entry point: no
  chain of frames leads from it to the tests or to the secret, which live in the main thread's locals.
* An audit hook, which cannot be removed, refuses the other roads there: gc.get_objects and its like,
  sys._current_frames, the interpreter's C API through ctypes, tracing, replacing a function's code,
  reading code of the tests.
  The process is not dumpable, so /proc/self/mem is closed by the kernel.
* During a call, test methods, the guard and what leads to them are taken out of the tests' namespaces;
  exceptions are copied before they pass through the tests, so that a kept one shows no traceback.
* After each guarded call, before any assertion sees its result: builtins, unittest's classes and
  modules, and the tests must be what they were before the call; results must not contain objects of
  the program's classes that define their own comparison or truth.
* The verdict counts only with the secret, with as many tests run as the judge counted in the AST, and
  after assertions that must fail did fail.

What remains: reading or writing raw memory (ctypes.cast, faults in C extensions), a program that alters
the tests' mocks while it is called, and program objects whose methods the test itself
calls in the main thread (their frames lead to the test). Use jobs judged by another process where
the tests allow it.
"""

from __future__ import annotations

import _thread
import builtins
import gc
import inspect
import operator
import queue
import sys
from typing import Any

from onpol_cli.sandbox import codec, frames

_REFUSED_ALWAYS = frozenset({
    "gc.get_objects", "gc.get_referrers", "gc.get_referents", "sys._current_frames", "sys._current_exceptions",
})  # fmt: skip
_REFUSED_TO_PROGRAM = frozenset({
    "sys.settrace", "sys.setprofile", "sys.monitoring.register_callback",
    "ctypes.cdata", "ctypes.string_at", "ctypes.wstring_at",
})  # fmt: skip
# Looked up through cells of the hook, not through module globals that a program could rebind.


def describe(error: BaseException) -> list[Any]:
    """[type name, one line of text, names of its base classes]; never raises."""
    kind = type(error)
    try:
        text = " ".join(str(error).split())[:300]
    except BaseException:  # boundary: __str__ is the program's
        text = ""
    return [kind.__name__, text, [base.__name__ for base in kind.__mro__]]


def _install_hook(main_thread: int, test_namespace: dict[str, Any]) -> None:
    ident, refused, to_program = _thread.get_ident, _REFUSED_ALWAYS, _REFUSED_TO_PROGRAM
    looking: set[int] = set()  # threads in which this hook itself reads a code object

    def private(function: Any) -> bool:
        """Whether a function of the tests is more than a local one, made to be given to the program."""
        looking.add(ident())
        try:
            return "<locals>" not in function.__code__.co_qualname
        finally:
            looking.discard(ident())

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in refused:
            raise RuntimeError(f"{event} is not allowed in the sandbox")
        if event == "object.__setattr__" and args[1] == "__code__":
            raise RuntimeError("replacing code is not allowed in the sandbox")
        if ident() == main_thread:
            return
        api = event == "ctypes.dlsym" and str(args[1]).startswith(("Py", "_Py"))
        if event in to_program or api:
            raise RuntimeError(f"{event} is not allowed in the sandbox")
        reads_code = event == "object.__getattr__" and args[1] == "__code__" and ident() not in looking
        if reads_code and getattr(args[0], "__globals__", None) is test_namespace and private(args[0]):
            raise RuntimeError("reading the tests is not allowed in the sandbox")

    sys.addaudithook(hook)


# The bottom frame of the program's thread: separate globals, so that walking up from the program
# finds two queues and nothing else.
_SERVE = """
def serve(get, put):
    while True:
        function, args, kwargs = get()
        try:
            answer = (True, function(*args, **kwargs))
        except BaseException as error:
            answer = (False, error)
        function = args = kwargs = None
        put(answer)
        answer = None
"""


def _signature(function: Any) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # a class, or a builtin without one
        return None


_WATCHED_MODULES = [
    "builtins",
    "unittest",
    "unittest.case",
    "unittest.mock",
    "unittest.util",
    "unittest.result",
    "unittest.loader",
    "unittest.suite",
    "json",
    "json.encoder",
    "json.decoder",
    "os",
    "os.path",
    "re",
    "math",
    "operator",
    "functools",
    "collections",
    "io",
    "traceback",
    "numpy",
    "numpy.testing",
    "pandas",
    "pandas.testing",
]


def _capture() -> dict[str, Any]:
    """What the runner uses, and what must not change, as it is before the program runs."""
    import unittest.mock  # here, because most workers never need it; the zygote has it when they do

    modules = dict(sys.modules)
    watched = [vars(modules[name]) for name in _WATCHED_MODULES if name in modules]
    classes = [unittest.TestCase, unittest.TestResult, unittest.TestSuite, unittest.mock.NonCallableMock]
    if "pandas" in modules:
        classes += [modules["pandas"].DataFrame, modules["pandas"].Series]
    return {
        "watched": [*watched, sys.modules], "classes": classes, "modules": modules, "find": sys.modules.get,
        "before": [dict(place) for place in [*watched, sys.modules]] + [dict(vars(cls)) for cls in classes],
        "describe": describe, "ident": _thread.get_ident, "unittest": unittest, "mock": unittest.mock,
        "type": type, "gc": gc, "same": operator.eq, "module_type": type(sys), "builtins": builtins,
        "signature": _signature,
    }  # fmt: skip


def run(sock: frames.Line, header: dict[str, Any]) -> None:
    """Load the program in its thread, then let the late-coming runner test it in this one."""
    receive, send, loads, dumps, run_late = frames.receive, frames.send, codec.loads, codec.dumps, exec
    # Imports of what the runner needs happen before the program can interfere with importing.
    from onpol_cli.sandbox.inside.candidate import new_module, run_source

    test_namespace: dict[str, Any] = {}
    to_program, from_program = queue.SimpleQueue[Any](), queue.SimpleQueue[Any]()
    own: dict[str, Any] = {"__builtins__": __builtins__}
    exec(_SERVE, own)
    _thread.start_new_thread(own["serve"], (to_program.get, from_program.put))
    tools = _capture() | {"put": to_program.put, "get": from_program.get}
    namespace = new_module("__test__", header["source"]).__dict__
    _install_hook(_thread.get_ident(), test_namespace)
    to_program.put((run_source, (namespace, header), {}))
    fine, value = from_program.get()
    if not fine:
        return send(sock, dumps({"raised": describe(value)}))
    send(sock, dumps({"loaded": True}))
    late = loads(receive(sock))
    runner: dict[str, Any] = {"__builtins__": __builtins__}
    run_late(late["runner"], runner)
    return send(sock, dumps(runner["judge"](late, namespace, test_namespace, tools)))
