# mypy: disable-error-code="no-untyped-def,no-untyped-call,attr-defined"
"""The runner of in-process tests. Never imported: its source is sent to the program's process late.

Owns guarding the entry point, running the tests and reporting. `in_process` says what it defends
against and why it arrives only after the program's module-level code has ended. It imports nothing:
whatever it uses was captured before the program ran and comes in `tools`. It defines no class, because
classes can be found through object.__subclasses__(); its functions can be found only through what
`_hide` takes out of the program's reach during a call. `run` is the state of the one run.
"""

COMPARING = [
    "__eq__",
    "__ne__",
    "__lt__",
    "__le__",
    "__gt__",
    "__ge__",
    "__bool__",
    "__len__",
    "__contains__",
    "__class__",
    "__getattribute__",
    "__sub__",
    "__rsub__",
    "__abs__",
    "__round__",
    "__float__",
    "__instancecheck__",
    "__array__",
    "__array_ufunc__",
]
HOOKS = (
    "__getattribute__", "__getattr__", "__setattr__", "__dict__", "__class__", "__traceback__", "with_traceback",
    "__context__", "__cause__", "args",
)  # fmt: skip
HERE = "__onpol_here__"
MUST_FAIL = {
    "assertEqual": (1, 2), "assertTrue": (False,), "assertFalse": (True,), "assertIn": (1, [2]),
    "assertIsInstance": (1, str), "assertAlmostEqual": (1.0, 2.0), "assertGreater": (1, 2),
    "assertIsNone": (1,), "assertListEqual": ([1], [2]), "assertDictEqual": ({1: 1}, {1: 2}),
}  # fmt: skip


def judge(late, program, tests, tools):
    """Run the tests and return {"secret", "run", "failures", "forged"}.

    late: tests (source), class_name, entry_point, secret, script (bool). program, tests: namespaces.
    """
    run = {
        **tools,
        "late": late,
        "program": program,
        "tests": tests,
        "forged": [],
        "case": None,
        "main": tools["ident"](),
    }
    before = _state(run)
    try:
        _prepare(run)
        count, failures = _run_script(run) if late["script"] else _run_class(run)
    except BaseException as error:
        count, failures = 0, [": ".join(run["describe"](error)[:2])]
    changed = _changes(run, before, _state(run)[: len(before)]) + _canaries(run)
    if changed:
        run["forged"].append(f"{changed[0]} was replaced")
    return {"secret": late["secret"], "run": count, "failures": failures[:5], "forged": run["forged"][:1]}


def _state(run):
    """Copies of every namespace in which nothing may be replaced."""
    return [dict(place) for place in run["watched"]] + [dict(vars(cls)) for cls in run["classes"]]


def _changes(run, before, after):
    """Names of functions, classes and modules that are not what they were."""
    return [
        key
        for old, new in zip(before, after, strict=True)
        for key, value in old.items()
        if new.get(key) is not value and (callable(value) or run["type"](value) in (staticmethod, run["module_type"]))
    ]


def _prepare(run):
    """Check that loading the program replaced nothing, then load the tests."""
    late, tests, program = run["late"], run["tests"], run["program"]
    changed = _changes(run, run["before"], _state(run))
    if changed or run["gc"].callbacks:
        run["forged"].append(f"the program replaced {changed[0] if changed else 'gc.callbacks'}")
    tests.update({k: v for k, v in program.items() if k not in ("__builtins__", "__loader__")})
    tests.update({"__builtins__": run["builtins"], "__name__": "__test__", HERE: _only_here(run)})
    if late["entry_point"] in program:
        tests[late["entry_point"]] = _guard(run, program[late["entry_point"]])
    exec(compile(late["tests"], "<tests>", "exec", dont_inherit=True), tests)


def _only_here(run):
    def here():
        if run["ident"]() != run["main"]:
            raise RuntimeError("tests run in the main thread only")

    return here


def _call(run, function, args, kwargs):
    """Run `function` in the program's thread: (True, result) or (False, exception)."""
    run["put"]((function, args, kwargs))
    return run["get"]()


def _hide(run, function):
    """Take the tests and this runner out of the program's reach; returns how to put them back."""
    tests, case, entry = run["tests"], run["case"], run["late"]["entry_point"]
    names = {name: tests[name] for name in (HERE, entry) if name in tests}
    tests.pop(HERE, None)
    tests[entry] = function
    methods = {}
    if case is not None:
        methods = {name: value for name, value in vars(case).items() if name.startswith("test")}
        for name in methods:
            delattr(case, name)
    return names, methods


def _show(run, names, methods):
    run["tests"].update(names)
    for name, value in methods.items():
        setattr(run["case"], name, value)


def _guard(run, function):
    def guarded(*args, **kwargs):
        if run["ident"]() != run["main"]:  # the program calls itself, or a mock calls it
            return function(*args, **kwargs)
        names, methods = _hide(run, function)
        before = _state(run)
        fine, value = _call(run, function, args, kwargs)
        changed = _changes(run, before, _state(run))
        _show(run, names, methods)
        if changed:
            run["forged"].append(f"the program replaced {changed[0]}")
        if not fine:
            raise _copy(run, value)
        bad = _lying(run, value)
        if bad:
            run["forged"].append(f"result of class {bad}, which defines its own comparison")
            raise RuntimeError(run["forged"][-1])
        return value

    # Only of functions: other callables could answer with code of their own, here in the main thread.
    if run["type"](function) is run["type"](guarded):
        for name in ("__name__", "__qualname__", "__doc__", "__module__"):
            setattr(guarded, name, getattr(function, name))
        guarded.__signature__ = _call(run, run["signature"], (function,), {})[1]
    return guarded


def _copy(run, error):
    """A copy of an exception that the program may have kept: its traceback will lead to the tests."""
    kind = run["type"](error)
    lineage = _raw(run, kind, "__mro__")
    base = next(cls for cls in lineage if _raw(run, cls, "__module__") == "builtins")
    if any(_defines(run, cls, HOOKS) for cls in lineage if not _library_class(run, cls)):
        run["forged"].append(f"exception of class {_raw(run, kind, '__name__')}, which intercepts attributes")
        return RuntimeError(run["forged"][-1])
    args = BaseException.args.__get__(error)
    if issubclass(base, OSError) and len(args) == 2:
        args = (*args, OSError.filename.__get__(error))
    copy = base.__new__(kind, *args)
    base.__init__(copy, *args)
    vars(copy).update(vars(error))
    if issubclass(base, ImportError):
        copy.name, copy.path = error.name, error.path
    return copy


def _raw(run, cls, name):
    """An attribute that `type` keeps for a class, whatever its metaclass says."""
    return run["type"].__dict__[name].__get__(cls)


def _defines(run, cls, names):
    own = _raw(run, cls, "__dict__")
    return any(name in own for name in names)


def _library_class(run, cls):
    """Whether `cls` is what an imported library calls by its name."""
    module = _raw(run, cls, "__module__")
    if run["type"](module) is not str:
        return False
    found = run["modules"].get(module) or run["find"](module)
    for part in _raw(run, cls, "__qualname__").split("."):
        found = getattr(found, part, None)
    return found is cls


def _configured(run, entry):
    """Whether the special method of a mock was given a behaviour of the program's choice."""
    mock, default = run["mock"], run["mock"].DEFAULT
    if isinstance(entry, mock.NonCallableMock):
        effect = vars(entry).get("_mock_side_effect")
        fixed = vars(entry).get("_mock_return_value", default) is not default
        return fixed or getattr(effect, "__globals__", vars(mock)) is not vars(mock)
    return getattr(entry, "__globals__", vars(mock)) is not vars(mock)


def _own_comparison(run, cls):
    mock, meta = run["mock"], run["type"](cls)
    if meta is not run["type"] and not _library_class(run, meta):
        return True  # a metaclass of the program's own could answer for the class
    if issubclass(cls, mock.NonCallableMock):
        return any(_configured(run, vars(cls)[name]) for name in ("__eq__", "__ne__") if name in vars(cls))
    suspects = [c for c in _raw(run, cls, "__mro__") if _defines(run, c, COMPARING)]
    return cls is run["type"](mock.ANY) or not all(_library_class(run, c) for c in suspects)


def _lying(run, value, depth=0):
    """Name of a class inside `value` whose objects decide themselves what they are equal to."""
    cls = run["type"](value)
    if cls in (int, float, str, bool, bytes, run["type"](None)):
        return None
    if cls is run["module_type"]:  # `return plt`: only a module that was there before the program
        return None if run["modules"].get(vars(value).get("__name__")) is value else "module"
    if _own_comparison(run, cls):
        return _raw(run, cls, "__name__")
    if issubclass(cls, run["mock"].NonCallableMock) and _call(run, run["same"], (value, object()), {})[1] is True:
        return _raw(run, cls, "__name__")
    items = []
    if depth < 4 and isinstance(value, (list, tuple, set, frozenset)):
        items = list(value)[:5000]
    elif depth < 4 and isinstance(value, dict):
        items = list(value.keys())[:5000] + list(value.values())[:5000]
    return next((bad for item in items if (bad := _lying(run, item, depth + 1))), None)


def _run_class(run):
    """Run the TestCase class: (number of tests run, failures)."""
    unittest = run["unittest"]
    run["case"] = run["tests"][run["late"]["class_name"]]
    suite = unittest.TestLoader().loadTestsFromTestCase(run["case"])
    run["classes"].append(run["case"])
    result = unittest.TestResult()
    suite.run(result)
    failures = []
    for test, trace in result.failures + result.errors:
        last = trace.strip().splitlines()[-1] if trace.strip() else ""
        failures.append(f"{getattr(test, '_testMethodName', test)}: {last}"[:300])
    return result.testsRun, failures + [str(test) for test in result.unexpectedSuccesses]


def _run_script(run):
    """The script was run by `_prepare`; call its `check`: (1, failures)."""
    late, tests, program = run["late"], run["tests"], run["program"]
    entry = late["entry_point"]
    candidate = tests[entry] if entry in program else _guard(run, eval(entry, program))
    check = tests.get("check")
    try:
        if callable(check) and entry != "check":
            check(candidate)
    except BaseException as error:
        return 1, [": ".join(run["describe"](error)[:2])]
    return 1, []


def _canaries(run):
    """Assertions that must fail; names of those that did not."""
    case = run["unittest"].TestCase()
    passed = []
    for name, args in MUST_FAIL.items():
        try:
            getattr(case, name)(*args)
        except AssertionError:
            continue
        passed.append(name)
    return passed
