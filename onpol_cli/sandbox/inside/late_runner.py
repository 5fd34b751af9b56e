# mypy: disable-error-code="no-untyped-def,no-untyped-call,attr-defined"
"""The runner of in-process tests. Never imported: its source is sent to the program's process late.

Owns guarding the entry point, running the tests and reporting. `in_process` says what it defends
against and why it arrives only after the program's module-level code has ended. It imports nothing:
whatever it uses was captured before the program ran and comes in `tools`.
"""

# The functions below keep what they need in locals and cells; module globals could be found and rebound.


def judge(late, program, tests, tools):
    """Run the tests and return {"secret", "run", "failures", "forged"}.

    late: tests (source), class_name, entry_point, secret, script (bool). program, tests: namespaces.
    """
    watched, classes, trusted_modules = tools["watched"], tools["classes"], tools["modules"]
    describe, put, get, ident = tools["describe"], tools["put"], tools["get"], tools["ident"]
    mock_module, is_type = tools["mock"], tools["type"]
    mock_class, mock_dict, any_class = mock_module.NonCallableMock, vars(mock_module), type(mock_module.ANY)
    main, forged, sentinel, same = ident(), [], object(), tools["same"]
    comparing = (
        "__eq__ __ne__ __lt__ __le__ __gt__ __ge__ __bool__ __len__ __contains__ __class__ __getattribute__ "
        "__sub__ __rsub__ __abs__ __round__ __float__ __instancecheck__ __array__ __array_ufunc__"
    ).split()

    def state():
        return [dict(place) for place in watched] + [dict(vars(cls)) for cls in classes]

    def changes(before, after):
        return [
            key
            for old, new in zip(before, after, strict=True)
            for key, value in old.items()
            if new.get(key) is not value and (callable(value) or is_type(value) is staticmethod)
        ]

    def library_class(cls):
        module = trusted_modules.get(cls.__module__) or tools["find"](cls.__module__)
        found = module
        for part in cls.__qualname__.split("."):
            found = getattr(found, part, None)
        return found is cls

    def configured(entry):
        """Whether the special method of a mock was given a behaviour of the program's choice."""
        if isinstance(entry, mock_class):
            effect = vars(entry).get("_mock_side_effect")
            fixed = vars(entry).get("_mock_return_value", mock_module.DEFAULT) is not mock_module.DEFAULT
            return fixed or getattr(effect, "__globals__", mock_dict) is not mock_dict
        return getattr(entry, "__globals__", mock_dict) is not mock_dict

    def own_comparison(cls):
        if issubclass(cls, mock_class):
            return any(configured(vars(cls)[name]) for name in ("__eq__", "__ne__") if name in vars(cls))
        suspects = [c for c in cls.__mro__ if any(name in vars(c) for name in comparing)]
        return cls is any_class or not all(library_class(c) for c in suspects)

    def lying(value, depth=0):
        """Name of a class inside `value` whose objects decide themselves what they are equal to."""
        cls = is_type(value)
        if cls in (int, float, str, bool, bytes, type(None)):
            return None
        if own_comparison(cls) or (issubclass(cls, mock_class) and call(same, (value, sentinel), {})[1] is True):
            return cls.__name__
        if depth < 4 and isinstance(value, (list, tuple, set, frozenset)):
            return next((bad for item in list(value)[:5000] if (bad := lying(item, depth + 1))), None)
        if depth < 4 and isinstance(value, dict):
            both = list(value.keys())[:5000] + list(value.values())[:5000]
            return next((bad for item in both if (bad := lying(item, depth + 1))), None)
        return None

    def call(function, args, kwargs):
        put((function, args, kwargs))
        return get()

    def guard(function):
        def guarded(*args, **kwargs):
            if ident() != main:  # the program calls itself, or a mock calls it
                return function(*args, **kwargs)
            before = state()
            fine, value = call(function, args, kwargs)
            changed = changes(before, state())
            if changed:
                forged.append(f"the program replaced {changed[0]}")
            if not fine:
                raise value
            bad = lying(value)
            if bad:
                forged.append(f"result of class {bad}, which defines its own comparison")
                raise RuntimeError(forged[-1])
            return value

        for name in ("__name__", "__qualname__", "__doc__", "__module__"):
            setattr(guarded, name, getattr(function, name, None))
        guarded.__wrapped__ = function
        return guarded

    def only_here():
        if ident() != main:
            raise RuntimeError("tests run in the main thread only")

    def prepare():
        changed = changes(tools["before"], state())
        if changed or tools["gc"].callbacks:
            forged.append(f"the program replaced {changed[0] if changed else 'gc.callbacks'}")
        tests.update({k: v for k, v in program.items() if k not in ("__builtins__", "__loader__")})
        tests.update(__builtins__=program["__builtins__"], __name__="__test__", __onpol_here__=only_here)
        if late["entry_point"] in program:
            tests[late["entry_point"]] = guard(program[late["entry_point"]])
        exec(compile(late["tests"], "<tests>", "exec", dont_inherit=True), tests)

    def run_class():
        unittest, failures = tools["unittest"], []
        suite = unittest.TestLoader().loadTestsFromTestCase(tests[late["class_name"]])
        classes.append(tests[late["class_name"]])
        result = unittest.TestResult()
        suite.run(result)
        for kind in ("failures", "errors"):
            for test, trace in getattr(result, kind):
                last = trace.strip().splitlines()[-1] if trace.strip() else ""
                failures.append(f"{getattr(test, '_testMethodName', test)}: {last}"[:300])
        failures += [str(test) for test in result.unexpectedSuccesses]
        return result.testsRun, failures

    def run_script():
        function = eval(late["function"], program) if not late["entry_point"] in program else None
        candidate = tests[late["entry_point"]] if function is None else guard(function)
        try:
            check = tests.get("check")
            if callable(check) and late["entry_point"] != "check":
                check(candidate)
        except BaseException as error:
            return 1, [": ".join(describe(error)[:2])]
        return 1, []

    def canaries():
        """Assertions that must fail; names of those that did not."""
        case = tools["unittest"].TestCase()
        wrong = {
            "assertEqual": (1, 2), "assertTrue": (False,), "assertFalse": (True,), "assertIn": (1, [2]),
            "assertIsInstance": (1, str), "assertAlmostEqual": (1.0, 2.0), "assertGreater": (1, 2),
            "assertIsNone": (1,), "assertListEqual": ([1], [2]), "assertDictEqual": ({1: 1}, {1: 2}),
        }  # fmt: skip
        passed = []
        for name, args in wrong.items():
            try:
                getattr(case, name)(*args)
            except AssertionError:
                continue
            passed.append(name)
        return passed

    before = state()
    try:
        prepare()
        run, failures = run_script() if late["script"] else run_class()
    except BaseException as error:
        run, failures = 0, [": ".join(describe(error)[:2])]
    changed = changes(before, state()[: len(before)]) + canaries()
    if changed:
        forged.append(f"{changed[0]} was replaced")
    if sentinel == object():
        forged.append("object was replaced")
    return {"secret": late["secret"], "run": run, "failures": failures[:5], "forged": forged[:1]}
