"""Peculiar BigCodeBench programs that must pass, and what they must not open to hostile ones."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from onpol_cli.core.config import SandboxConfig
from onpol_cli.sandbox import Sandbox
from onpol_cli.sandbox.jobs import Status
from onpol_cli.tasks.minimal_edit.testing import EditTests

INSPECTED = """
import unittest
class TestCases(unittest.TestCase):
    def test_local_function(self):
        def sample(x, y=2): pass
        self.assertEqual(task_func(sample), 2)
    def test_lambda(self):
        self.assertEqual(task_func(lambda x: x), 1)
"""

MODULE = """
import unittest
import json
class TestCases(unittest.TestCase):
    def test_module(self):
        module, value = task_func()
        self.assertEqual(module.dumps(value), "1")
"""

IMPORTS = """
import math
import unittest
class TestCases(unittest.TestCase):
    def test_root(self):
        self.assertEqual(task_func(9), 3)
"""

ANYTHING = """
import unittest
from unittest.mock import ANY, Mock
class TestCases(unittest.TestCase):
    def test_call(self):
        mock = Mock()
        task_func(mock)
        mock.assert_called_once_with(1, ANY)
"""

SPECIFIED = """
import unittest
from unittest.mock import patch
class TestCases(unittest.TestCase):
    @patch('ctypes.CDLL', autospec=True)
    def test_name(self, library):
        library.return_value._name = 'x'
        self.assertEqual(task_func('y'), 'x')
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(SandboxConfig(workers=1)) as box:
        yield box


@pytest.mark.parametrize(
    ("tests", "program"),
    [
        (INSPECTED, "import inspect\ndef task_func(f):\n    return len(inspect.getfullargspec(f).args)"),
        (MODULE, "import json\ndef task_func():\n    return json, 1"),
        (IMPORTS, "def task_func(n):\n    return math.isqrt(n)"),
        (ANYTHING, "def task_func(function):\n    function(1, [2])"),
        (SPECIFIED, "import ctypes\ndef task_func(name):\n    return ctypes.CDLL(name)._name"),
    ],
)
def test_peculiar_programs_pass(sandbox: Sandbox, tests: str, program: str) -> None:
    (verdict,) = sandbox.run([EditTests("unittest", tests, "task_func").job(program)])
    assert verdict.status is Status.PASSED, verdict.detail


@pytest.mark.parametrize(
    ("tests", "program"),
    [
        (  # from a function that the test passes to the test's own code
            INSPECTED,
            "def task_func(f):\n"
            "    name = 'test_local_function' if f.__name__ == 'sample' else 'test_lambda'\n"
            "    method = f.__globals__['TestCases'].__dict__[name]\n"
            "    return next(c for c in method.__code__.co_consts if isinstance(c, int))",
        ),
        (  # the same, with the method renamed to look local
            INSPECTED,
            "def task_func(f):\n"
            "    method = f.__globals__['TestCases'].__dict__['test_lambda']\n"
            "    method.__qualname__ = 'a.<locals>.b'\n"
            "    return next(c for c in method.__code__.co_consts if isinstance(c, int))",
        ),
        (  # a module of the program's own making
            MODULE,
            "import types\ndef task_func():\n"
            "    module = types.ModuleType('json')\n    module.dumps = lambda value: '1'\n    return module, 1",
        ),
        (  # what is equal to everything, under a name that the test looks up and does not bind
            ANYTHING.replace("ANY, Mock", "Mock"),
            "from unittest.mock import ANY\ndef task_func(function):\n    function(1)",
        ),
    ],
)
def test_hostile_variants_fail(sandbox: Sandbox, tests: str, program: str) -> None:
    (verdict,) = sandbox.run([EditTests("unittest", tests, "task_func").job(program)])
    assert verdict.status is not Status.PASSED
