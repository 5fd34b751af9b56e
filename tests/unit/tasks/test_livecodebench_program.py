"""Scripts put into a function mean what they meant; those that would not are left alone."""

import builtins
import contextlib
import io
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onpol_cli.tasks.livecodebench.program import PREAMBLE, as_function, preamble_for


def output(source: str, stdin: str = "3\n4\n") -> str:
    """What `source` prints, run as a script after the preamble (without its limits)."""
    namespace = {"__name__": "__main__"}
    imports = "".join(line for line in PREAMBLE.splitlines(True) if "import" in line)
    printed = io.StringIO()
    old = sys.stdin
    sys.stdin = io.StringIO(stdin)
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(imports + source, "<test>", "exec"), namespace)
    finally:
        sys.stdin = old
    return printed.getvalue()


MOVED = {
    "plain": "n = int(input())\nprint(n + 1)\n",
    "main guard": "def main():\n    print(input())\n\nif __name__ == '__main__':\n    main()\n",
    "imports stay outside": "import math as m\nfrom collections import *\nprint(m.gcd(4, 6), Counter('aab')['a'])\n",
    "closures": "n = int(input())\ndef f(k):\n    return n * k\nprint(f(2))\n",
    "recursion": "def fac(n):\n    return 1 if n < 2 else n * fac(n - 1)\nprint(fac(5))\n",
    "strings with newlines": 'text = """a\nb"""\nprint(text)\nprint(f"x\\n{text}")\n',
    "docstring first": '"""What\n   it does."""\nprint(1)\n',
    "rebinding input first": "import sys\ninput = sys.stdin.readline\nprint(input().strip())\n",
    "a local name of the preamble": "count = 0\nfor i in range(3):\n    count += i\nprint(count)\n",
    "a nested function called input": (
        "import sys\ndef main():\n    def input():\n        return sys.stdin.readline()\n    print(input())\nmain()\n"
    ),
    "class": "class A:\n    x = 1\n    def get(self):\n        return self.x\nprint(A().get())\n",
    "comprehension": "n = 3\nprint([n * i for i in range(n)])\n",
}


@pytest.mark.parametrize("name", MOVED)
def test_moved_scripts_print_the_same(name):
    moved = as_function(MOVED[name])
    assert "def wrapped_function" in moved
    assert output(moved) == output(MOVED[name])


LEFT_ALONE = {
    "global": "count = 0\ndef f():\n    global count\n    count += 1\nf()\nprint(count)\n",
    "builtin rebound from itself": "max = max(1, 2)\nprint(max)\n",
    "builtin used before it is rebound": "print(sum([1, 2]))\nsum = 5\n",
    "used by a function before it is rebound": "def f():\n    return sum([1, 2])\nprint(f())\nsum = 5\n",
    "rebound only sometimes": "n = int(input())\nif n > 5:\n    min = 4\nprint(min(1, 2))\n",
    "preamble name in a tuple after use": "print(gcd(4, 6))\ngcd, b = 1, 2\n",
    "globals()": "x = 1\nprint(globals()['x'])\n",
    "exec": "x = 1\nexec('x = 2')\nprint(x)\n",
    "nested star import": "try:\n    from math import *\nexcept ImportError:\n    pass\nprint(gcd(4, 6))\n",
    "class body reads the module": "x = 1\nclass B:\n    x = x\nprint(B.x)\n",
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_scripts_that_need_a_module_are_left_alone(name):
    assert as_function(LEFT_ALONE[name]) == LEFT_ALONE[name]
    assert output(LEFT_ALONE[name])


def test_return_at_the_top_level_works_as_officially():
    source = "n = int(input())\nif n == 3:\n    print('three')\n    return\nprint('other')\n"
    with pytest.raises(SyntaxError):
        output(source)
    assert output(as_function(source)) == "three\n"


@pytest.mark.parametrize("source", ["", "def f(:", "x = '\0'", "(" * 5000, "import os\n", "-" * 300_000 + "1"])
def test_what_cannot_be_moved_comes_back_unchanged(source):
    assert as_function(source) == source


@given(st.text(max_size=80))
@settings(max_examples=100, deadline=None)
def test_any_text_is_survived(text):
    assert isinstance(as_function(text), str)


def test_the_preamble_has_the_official_names():
    namespace: dict[str, object] = {}
    exec("".join(line for line in PREAMBLE.splitlines(True) if "import" in line), namespace)
    wanted = ["deque", "heappush", "bisect_left", "gcd", "inf", "List", "lru_cache", "permutations", "Counter", "json"]
    for name in wanted:
        assert name in namespace


def names_after(preamble: str) -> dict[str, object]:
    """The namespace that a preamble makes (without its limits)."""
    namespace: dict[str, object] = {}
    exec(preamble.partition("import sys\nsys.set")[0], namespace)
    return namespace


def test_the_short_preamble_gives_every_used_name_its_meaning():
    whole = names_after(PREAMBLE)
    names = sorted(name for name in whole if not name.startswith("__"))
    assert len(names) > 500
    short = names_after(preamble_for("\n".join(names)))
    odd = {name for name in names if (short[name] if name in short else getattr(builtins, name)) is not whole[name]}
    assert odd == {"open"}, "a function of the preamble's own"


@pytest.mark.parametrize("preamble", [PREAMBLE, preamble_for("open")])
def test_open_refuses_descriptor_0_and_opens_files(preamble, tmp_path):
    opened = names_after(preamble)["open"]
    (tmp_path / "f").write_text("x")
    assert opened(tmp_path / "f").read() == "x"
    for standard_input in (0, "/dev/stdin"):
        with pytest.raises(OSError, match="not the input"):
            opened(standard_input)


def test_the_short_preamble_is_short():
    assert preamble_for("print(gcd(4, 6))").splitlines()[:2] == ["from math import gcd", "import sys"]
    assert preamble_for("datetime.date").startswith("import datetime\n")
    assert "List" in preamble_for("def f(x: List[int]) -> int: return 1")


@pytest.mark.parametrize("source", ["eval('gcd(4, 6)')", "globals()['gcd']", "def f(:", "x = 1\n" * 60_000])
def test_the_whole_preamble_where_use_cannot_be_seen(source):
    assert preamble_for(source) == PREAMBLE


def test_both_preambles_set_the_limits():
    for preamble in (PREAMBLE, preamble_for("1")):
        assert preamble.endswith("sys.setrecursionlimit(50000)\nsys.set_int_max_str_digits(50000)\n")
