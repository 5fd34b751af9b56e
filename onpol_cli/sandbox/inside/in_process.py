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
* Garbage is collected in the program's thread only, and import hooks of the program are refused: finalizers
  and finders would run in the main thread, on top of the frames that hold the tests.
* During a call, test methods, the guard and what leads to them are taken out of the tests' namespaces;
  exceptions are copied before they pass through the tests, so that a kept one shows no traceback.
* After each guarded call, before any assertion sees its result: builtins, unittest's classes and
  modules, and the tests must be what they were before the call; results, and globals of the program that
  the tests name, must not contain objects of the program's classes that define their own comparison or truth.
  Names of builtins that the program defines are not the tests' names.
* The verdict counts only with the secret, with as many successes as the judge counted tests in the AST, and
  after assertions that must fail did fail. A program cannot skip a test.

What remains: reading or writing raw memory (ctypes.cast, faults in C extensions), a program that alters
the tests' mocks while it is called, program objects whose methods the test itself calls in the main
thread (their frames lead to the test), threads that a call leaves behind and that patch between two checks,
and patches of library classes that are not watched. Use jobs judged by another process where the tests allow it.
"""

from __future__ import annotations

import _json
import _thread
import abc
import builtins
import collections
import gc
import inspect
import json
import operator
import os
import queue
import sys
import types
from typing import Any

from onpol_cli.sandbox import frames

_EARLY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "early_runner.py")

_REFUSED_ALWAYS = frozenset({
    "gc.get_objects", "gc.get_referrers", "gc.get_referents", "sys._current_frames", "sys._current_exceptions",
    "sys.addaudithook",
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


def _install_hook(main_thread: int, test_namespace: dict[str, Any], watched: list[Any]) -> None:
    ident, refused, to_program = _thread.get_ident, _REFUSED_ALWAYS, _REFUSED_TO_PROGRAM
    of_tests = [test_namespace, *watched]
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
        defaults = event == "object.__setattr__" and args[1] in ("__defaults__", "__kwdefaults__")
        of_a_tool = defaults and any(getattr(args[0], "__globals__", None) is place for place in of_tests)
        if of_a_tool and private(args[0]):  # mock sets those of the local functions that it makes
            raise RuntimeError("replacing defaults of the tests' tools is not allowed in the sandbox")
        if ident() == main_thread:
            return
        api = event == "ctypes.dlsym" and str(args[1]).startswith(("Py", "_Py"))
        if event in to_program or api:
            raise RuntimeError(f"{event} is not allowed in the sandbox")
        reads_code = event == "object.__getattr__" and args[1] == "__code__" and ident() not in looking
        if reads_code and getattr(args[0], "__globals__", None) is test_namespace and private(args[0]):
            raise RuntimeError("reading the tests is not allowed in the sandbox")

    sys.addaudithook(hook)


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
    "unittest.async_case",
    "contextlib",
    "sys",
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
    "pathlib",
    "io",
    "traceback",
    "numpy",
    "numpy.testing",
    "pandas",
    "pandas.testing",
]
_WATCHED_CLASSES = ["unittest", "contextlib", "collections", "pathlib", "json", "io"]
"""The classes of these modules (and of modules in them) must not change either; `_OTHER_CLASSES` by name."""
_OTHER_CLASSES = [
    ("pandas", "DataFrame"),
    ("pandas", "Series"),
    ("pandas", "Index"),
    ("matplotlib.axes", "Axes"),
    ("matplotlib.axes._base", "_AxesBase"),
    ("matplotlib.figure", "Figure"),
    ("matplotlib.text", "Text"),
]


def _classes(modules: dict[str, Any]) -> list[type]:
    places = [vars(module) for name, module in modules.items() if name.partition(".")[0] in _WATCHED_CLASSES]
    found = {value: None for place in list(places) for value in place.values() if type(value) in (type, abc.ABCMeta)}
    others = [getattr(modules[name], cls, None) for name, cls in _OTHER_CLASSES if name in modules]
    return [cls for cls in (*found, *others) if isinstance(cls, type) and cls.__flags__ & _HEAP_TYPE]


_LAZY = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)
_HEAP_TYPE = 1 << 9  # others cannot be changed


def _every_class() -> dict[int, type]:
    """All classes that exist, by id; held, so that no later class gets the id of one that is gone."""
    seen: dict[int, type] = {}
    pending: list[type] = [object]
    while pending:
        cls = pending.pop()
        if id(cls) not in seen:
            seen[id(cls)] = cls
            pending += type.__subclasses__(cls)
    return seen


def _capture(own: dict[str, Any], private: dict[str, Any]) -> dict[str, Any]:
    """What the runners use, and what must not change, as it is before the program runs."""
    import unittest.mock  # here, because most workers never need it; the zygote has it when they do

    modules = dict(sys.modules)
    places = [vars(modules[name]) for name in _WATCHED_MODULES if name in modules] + [sys.modules]
    watch = {
        "places": places, "classes": _classes(modules), "modules": modules, "find": sys.modules.get,
        "known": _every_class(), "hooks": (list(sys.meta_path), list(sys.path_hooks)), "path": list(sys.path),
        "exists": os.path.exists, "sys": sys, "gc": gc, "module_type": type(sys),
    }  # fmt: skip
    watch["before"] = own["state"](watch)
    return {
        "watch": watch, "own": own, "builtins": builtins, "names": frozenset(private), "unittest": unittest,
        "mock": unittest.mock, "ident": _thread.get_ident, "type": type, "same": operator.eq,
        "code": types.CodeType, "signature": _signature, "deque": collections.deque, "lazy": _LAZY,
        "namespace": types.SimpleNamespace, "not_run": (unittest.SkipTest, vars(unittest.case)["_ShouldStop"]),
    }  # fmt: skip


def _line(sock: frames.Line) -> dict[str, Any]:
    """The line to the judge as C functions, which nobody can patch once they are captured."""
    decoder: Any = json.JSONDecoder()
    encoding: Any = (None, None, _json.encode_basestring_ascii, None, ": ", ", ", False, False, True)
    return {
        "recv": sock.recv, "sendall": sock.sendall, "exit": os._exit, "header": frames.HEADER.size,
        "pack": frames.HEADER.pack, "unpack": frames.HEADER.unpack, "scan": _json.make_scanner(decoder),
        "encode": _json.make_encoder(*encoding),
    }  # fmt: skip


def run(sock: frames.Line, header: dict[str, Any]) -> Any:
    """Load the program in its thread, then let the late-coming runner test it in this one."""
    from onpol_cli.sandbox.inside.candidate import new_module, run_source

    with open(_EARLY) as file:
        source = file.read()
    private = dict(vars(builtins))
    own: dict[str, Any] = {"__builtins__": private}
    exec(source, own)
    line, send, late_part, tampered = _line(sock), own["send"], own["late_part"], own["tampered"]
    test_namespace: dict[str, Any] = {}
    to_program, from_program = queue.SimpleQueue[Any](), queue.SimpleQueue[Any]()
    put, get, describe_it = to_program.put, from_program.get, own["describe"]
    _thread.start_new_thread(own["serve"], (to_program.get, from_program.put, gc.enable, gc.disable))
    namespace = new_module("__test__", header["source"]).__dict__
    put((run_source, (namespace, {**header, "source": ""}), {}))  # the preamble is trusted
    fine, value = get()
    if fine:
        tools = _capture(own, private) | {"put": put, "get": get, "trusted": dict(namespace)}
        watch = tools["watch"]
        _install_hook(_thread.get_ident(), test_namespace, watch["places"])
        put((run_source, (namespace, {**header, "preamble": ""}), {}))
        fine, value = get()
    if not fine:
        put((describe_it, (value,), {}))
        return send(line, {"raised": get()[1]})
    replaced = tampered(watch)
    if replaced:
        return send(line, {"raised": ["Forged", "the program replaced " + replaced, []]})
    send(line, {"loaded": True})
    return late_part(line, namespace, test_namespace, tools)
