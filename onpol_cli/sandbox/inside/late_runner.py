# mypy: disable-error-code="no-untyped-def,no-untyped-call,attr-defined,var-annotated"
"""The runner of in-process tests. Never imported: its source is sent to the program's process late.

Owns guarding the entry point, running the tests and reporting. `in_process` says what it defends
against and why it arrives only after the program's module-level code has ended. It imports nothing:
whatever it uses was captured before the program ran and comes in `tools`, and its builtins are a copy.
It defines no class, because classes can be found through object.__subclasses__(); its functions can be
found only through what `_hide` takes out of the program's reach during a call. `run` is the state of the run.
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
ITEMS = [
    "__getitem__",
    "__iter__",
    "__next__",
    "__getattr__",
    "__hash__",
    "__str__",
    "__repr__",
    "__format__",
    "__int__",
]
"""What tests use of plain data: own versions are refused where a class derives from such."""
DATA = (list, tuple, dict, set, frozenset, str, bytes, int, float)
PLAIN = (int, float, str, bool, bytes, type(None))
HOOKS = (
    "__getattribute__", "__getattr__", "__setattr__", "__dict__", "__class__", "__traceback__", "with_traceback",
    "__context__", "__cause__", "__suppress_context__", "__notes__", "__init_subclass__", "args",
)  # fmt: skip
HERE = "__onpol_here__"
MUST_FAIL = {
    "assertEqual": (1, 2), "assertTrue": (False,), "assertFalse": (True,), "assertIn": (1, [2]),
    "assertIsInstance": (1, str), "assertAlmostEqual": (1.0, 2.0), "assertGreater": (1, 2),
    "assertIsNone": (1,), "assertListEqual": ([1], [2]), "assertDictEqual": ({1: 1}, {1: 2}),
}  # fmt: skip


def judge(late, program, tests, tools):
    """Run the tests and return {"run", "failures", "forged"}.

    late: tests (source), class_name, entry_point, script (bool). program, tests: namespaces.
    """
    run = {**tools, "late": late, "program": program, "tests": tests, "case": None, "kept": []}
    run["main"] = run["ident"]()
    before = _state(run)
    try:
        _prepare(run)
        count, failures = _run_script(run) if late["script"] else _run_class(run)
    except BaseException as error:
        count, failures = 0, [_text(run, error)]
    changed = run["own"]["changes"](run["watch"], before, _state(run)) + _canaries(run)
    forged = [f"{changed[0]} was replaced"] if changed else []
    return {"run": count, "failures": failures[:5], "forged": forged}


def _state(run):
    return run["own"]["state"](run["watch"])


def _forged(run, how):
    """Answer and end at once: what the program replaced must not run on top of these frames."""
    run["end"]({"run": 0, "failures": [], "forged": [how]})


def _text(run, error):
    """One line about an exception, whose methods may be the program's."""
    return ": ".join(_call(run, run["own"]["describe"], (error,), {})[1][:2])


def _prepare(run):
    """Load the tests, in a namespace with the program's names."""
    late, tests, program = run["late"], run["tests"], run["program"]
    entry = late["entry_point"]
    run["watch"]["sys"].path[:] = run["watch"]["path"]
    code = compile(late["tests"], "<tests>", "exec", dont_inherit=True)
    own = {k for k, v in program.items() if run["trusted"].get(k, HERE) is not v} - {entry}
    lies = [name for name in _names(run, code) if name in own and _lying_global(run, program[name])]
    if lies:
        _forged(run, f"the program's {lies[0]} defines its own comparison")
    tests.update({k: v for k, v in program.items() if k not in own or k not in run["names"]})
    tests.update({"__builtins__": run["builtins"], "__name__": "__test__", HERE: _only_here(run)})
    if entry in program:
        tests[entry] = _guard(run, program[entry])
    exec(code, tests)


def _names(run, code):
    """Global names that the tests use."""
    inner = [const for const in code.co_consts if run["type"](const) is run["code"]]
    return [*code.co_names, *(name for part in inner for name in _names(run, part))]


def _lying_global(run, value):
    kinds = (run["type"], run["type"](_names), run["watch"]["module_type"])
    return run["type"](value) not in kinds and _lying(run, value)


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
        changed = run["own"]["changes"](run["watch"], before, _state(run))
        replaced = changed[0] if changed else run["own"]["foreign_hooks"](run["watch"])
        if replaced:
            _forged(run, f"the program replaced {replaced}")
        _show(run, names, methods)
        run["kept"].append((value, args, kwargs))  # or finalizers run in this thread, at the end of a test
        if not fine:
            raise _copy(run, value)
        bad = _lying(run, value)
        if bad:
            _forged(run, f"result of class {bad}, which defines its own comparison")
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
    strange = [cls for cls in lineage if not _library_class(run, cls)]
    if any(_defines(run, cls, HOOKS) or not _library_class(run, run["type"](cls)) for cls in strange):
        _forged(run, f"exception of class {_raw(run, kind, '__name__')}, which intercepts attributes")
    if any(cls in run["not_run"] for cls in lineage):
        _forged(run, "the program skips its test")
    args = BaseException.args.__get__(error)
    speaks = any(_defines(run, cls, ("__str__", "__repr__")) for cls in strange)
    if speaks or any(run["type"](arg) not in PLAIN for arg in args):
        kind = _with_fixed_text(run, kind, error)
    if issubclass(base, OSError) and len(args) == 2:
        args = (*args, OSError.filename.__get__(error))
    copy = base.__new__(kind, *args)
    base.__init__(copy, *args)
    vars(copy).update({name: value for name, value in vars(error).items() if name != "__notes__"})
    if issubclass(base, ImportError):
        copy.name, copy.path = error.name, error.path
    return copy


def _with_fixed_text(run, kind, error):
    """A subclass whose text was made in the program's thread, once."""
    texts = {name: _call(run, made, (error,), {}) for name, made in (("__str__", str), ("__repr__", repr))}
    texts = {name: str(text) if fine and run["type"](text) is str else "" for name, (fine, text) in texts.items()}
    methods = {"__str__": lambda self: texts["__str__"], "__repr__": lambda self: texts["__repr__"]}
    names = {name: _raw(run, kind, name) for name in ("__module__", "__qualname__")}
    return run["type"](_raw(run, kind, "__name__"), (kind,), {**methods, **names})


def _raw(run, cls, name):
    return run["own"]["raw"](cls, name)


def _defines(run, cls, names):
    own = _raw(run, cls, "__dict__")
    return any(name in own for name in names)


def _library_class(run, cls):
    return run["own"]["library_class"](run["watch"], cls)


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
    lineage = _raw(run, cls, "__mro__")
    names = COMPARING + ITEMS if any(base in lineage for base in DATA) else COMPARING
    suspects = [c for c in lineage if _defines(run, c, names)]
    return cls is run["type"](mock.ANY) or not all(_library_class(run, c) for c in suspects)


def _lying(run, value):
    """Name of a class inside `value` whose objects decide themselves what they are equal to."""
    seen, pending = {}, [value]
    while pending:
        item = pending.pop()
        cls = run["type"](item)
        if id(item) in seen or cls in PLAIN:
            continue
        seen[id(item)] = item
        if cls is run["watch"]["module_type"]:  # `return plt`: only a module that was there before the program
            if run["watch"]["modules"].get(vars(item).get("__name__")) is not item:
                return "module"
        elif cls in run["lazy"] or _own_comparison(run, cls):
            return _raw(run, cls, "__name__")
        elif issubclass(cls, run["mock"].NonCallableMock):
            if _call(run, run["same"], (item, object()), {})[1] is True:
                return _raw(run, cls, "__name__")
        else:
            pending += [x for x in _items(run, item, cls) if run["type"](x) not in PLAIN]
    return None


def _items(run, item, cls):
    """What a container holds, read by the methods of its builtin or library base."""
    if issubclass(cls, dict):
        return [*dict.keys(item), *dict.values(item)]
    for base in (list, tuple, set, frozenset, run["deque"]):
        if issubclass(cls, base):
            return list(base.__iter__(item))
    if cls is run["namespace"]:
        return list(vars(item).values())
    numpy, pandas = (run["watch"]["find"](name) for name in ("numpy", "pandas"))
    if numpy is not None and issubclass(cls, numpy.ndarray):
        return numpy.ndarray.ravel(item).tolist() if item.dtype.hasobject else []
    if pandas is not None and issubclass(cls, pandas.DataFrame):
        return [column for _, column in item.items()] if object in set(item.dtypes) else []
    if pandas is not None and issubclass(cls, (pandas.Series, pandas.Index)):
        return list(item) if item.dtype == object else []
    return []


def _run_class(run):
    """Run the TestCase class up to its first failure: (number of tests run, failures)."""
    unittest = run["unittest"]
    run["case"] = run["tests"][run["late"]["class_name"]]
    suite = unittest.TestLoader().loadTestsFromTestCase(run["case"])
    run["watch"]["classes"].append(run["case"])
    result = unittest.TestResult()
    succeeded = []
    result.addSuccess = succeeded.append
    result.failfast = True
    suite.run(result)
    failures = []
    for test, trace in result.failures + result.errors:
        last = trace.strip().splitlines()[-1] if trace.strip() else ""
        failures.append(f"{getattr(test, '_testMethodName', test)}: {last}"[:300])
    failures += [str(test) for test in result.unexpectedSuccesses]
    return len(succeeded) + len(result.skipped) + len(result.expectedFailures), failures


def _run_script(run):
    """The script was run by `_prepare`; call its `check`: (1, failures)."""
    late, tests, program = run["late"], run["tests"], run["program"]
    entry = late["entry_point"]
    if entry not in program:
        fine, function = _call(run, eval, (entry, program), {})
        if not fine:
            return 1, [_text(run, function)]
    candidate = tests[entry] if entry in program else _guard(run, function)
    check = tests.get("check")
    try:
        if callable(check) and entry != "check":
            check(candidate)
    except BaseException as error:
        return 1, [_text(run, error)]
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
