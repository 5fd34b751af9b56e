# mypy: disable-error-code="no-untyped-def,no-untyped-call,attr-defined,var-annotated,operator,arg-type,assignment"
"""What guards in-process tests while the program is there. Never imported: `in_process` runs its source.

Owns the program's thread, the comparison of namespaces before and after the program had its turn, and the
words with the judge. Its globals hold a private copy of the builtins, and it uses C functions captured
before the program ran, so that nothing the program patches is called here. It imports nothing.
"""

ANNOTATIONS = "__annotations__"  # made at its first use
LENIENT = ("numpy", "pandas")  # programs add old names such as numpy.bool
CHANGING = ("excepthook", "displayhook", "unraisablehook", "breakpointhook", "stdin", "stdout", "stderr")


def serve(get, put, gc_on, gc_off):
    """The bottom frame of the program's thread: walking up from the program finds two queues, no more.

    Garbage is collected only while this thread works, or finalizers of the program could run in another.
    """
    while True:
        function, args, kwargs = get()
        gc_on()
        try:
            answer = (True, function(*args, **kwargs))
        except BaseException as error:
            answer = (False, error)
        gc_off()
        function = args = kwargs = None
        put(answer)
        answer = None


def describe(error):
    """[type name, one line of text, names of its base classes]; to be called in the program's thread."""
    kind = type(error)
    try:
        text = " ".join(str(error).split())[:300]
    except BaseException:
        text = ""
    return [raw(kind, "__name__"), text, [raw(cls, "__name__") for cls in raw(kind, "__mro__")]]


def raw(cls, name):
    """An attribute that `type` keeps for a class, whatever its metaclass says."""
    return type.__dict__[name].__get__(cls)


def state(watch):
    """Copies of every namespace in which nothing may be replaced; with lineage and metaclass of classes."""
    places = [(dict(place), ()) for place in watch["places"]]
    return places + [(dict(raw(cls, "__dict__")), (type(cls), *raw(cls, "__mro__"))) for cls in watch["classes"]]


def changes(watch, before, after):
    """Names of what was replaced, or newly stands in front of something."""
    found = []
    for (old, lineage), (new, now) in zip(before, after, strict=False):
        if len(lineage) != len(now) or any(a is not b for a, b in zip(lineage, now, strict=True)):
            found.append("a base class")
        for key, value in old.items():
            if new.get(key) is not value and key not in CHANGING and counts(watch, value):
                found.append(str(key))
        if old.get("__name__") not in LENIENT:
            found += [str(key) for key in new if key not in old and hides(key, lineage)]
    return found


def counts(watch, value):
    return callable(value) or type(value) in (staticmethod, classmethod, property, watch["module_type"])


def hides(key, lineage):
    """Whether a new name in a module hides a builtin, or one in a class something inherited or special."""
    if not lineage:
        return key in __builtins__
    special = type(key) is str and key.startswith("__") and key != ANNOTATIONS
    return special or any(key in raw(base, "__dict__") for base in lineage[2:])


def library_class(watch, cls):
    """Whether `cls` was there before the program, or is what a library found on the path calls by its name."""
    if id(cls) in watch["known"]:
        return True
    module, name = raw(cls, "__module__"), raw(cls, "__qualname__")
    if type(module) is not str or module in watch["modules"]:
        return False  # a class that was put into a library
    found, top = watch["find"](module), module.partition(".")[0]
    places = [f"{folder}/{top}" for folder in watch["path"]]
    inside = dict(vars(found)) if type(found) is watch["module_type"] else {}
    file = inside.get("__file__")
    real = [p for p in places if type(file) is str and file.startswith((f"{p}/", f"{p}.")) and watch["exists"](file)]
    for part in name.split("."):
        found = inside.get(part)
        inside = raw(found, "__dict__") if issubclass(type(found), type) else {}
    return bool(real) and found is cls


def foreign_hooks(watch):
    """Whether the program took a part in importing or in collecting garbage."""
    lists = (watch["sys"].meta_path, watch["sys"].path_hooks)
    old = [hook for hooks in watch["hooks"] for hook in hooks]
    new = [hook for hooks in lists for hook in hooks if not any(hook is other for other in old)]
    new += [f for f in watch["sys"].path_importer_cache.values() if f is not None]
    own = [hook for hook in new if not library_class(watch, hook if issubclass(type(hook), type) else type(hook))]
    own += [hook for hook in new if type(hook) is type(serve)]
    return "import hooks" if own else "gc.callbacks" if watch["gc"].callbacks else None


def tampered(watch):
    """What the program replaced while it loaded, or None."""
    changed = changes(watch, watch["before"], state(watch))
    return changed[0] if changed else foreign_hooks(watch)


def send(line, message):
    data = "".join(line["encode"](message, 0)).encode("ascii")
    line["sendall"](line["pack"](len(data)) + data)


def receive(line):
    """The judge's next frame: plain JSON."""

    def read(count):
        data = b""
        while len(data) < count:
            chunk = line["recv"](count - len(data))
            if not chunk:
                line["exit"](71)
            data += chunk
        return data

    (size,) = line["unpack"](read(line["header"]))
    return line["scan"](read(size).decode("ascii"), 0)[0]


def late_part(line, program, tests, tools):
    """Receive the tests and their runner, run them, answer. Entered once the program has loaded."""
    late = receive(line)
    runner = {"__builtins__": dict(__builtins__)}
    exec(late["runner"], runner)

    def end(verdict):
        send(line, {"secret": late["secret"], **verdict})
        line["exit"](0)

    end(runner["judge"](late, program, tests, {**tools, "end": end}))
