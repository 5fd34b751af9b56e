"""The four kinds of jobs on honest programs: what passes, what fails, and what is said about it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from onpol_cli.core.config import SandboxConfig
from onpol_cli.core.errors import OnpolError
from onpol_cli.sandbox import AssertJob, CallJob, ReferenceJob, Sandbox, Status, StdinJob, UnittestJob, Verdict

NODES = """
class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next
def build(values):
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head
def values(node):
    found = []
    while node:
        found.append(node.val)
        node = node.next
    return found
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(SandboxConfig(workers=1, cpu_s=20.0, wall_s=100.0)) as made:
        yield made


def one(sandbox: Sandbox, job: Any) -> Verdict:
    return sandbox.run([job])[0]


def call(source: str, expected: Any, *args: Any, **more: Any) -> CallJob:
    return CallJob(source=source, entry_point="f", calls=(args,), expected=(expected,), **more)


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -(10**30), 7**6000, 1.5, math.inf, "a\ud800é", b"\x00\xff", [1, [2, "x"]], (1, (2,)),
     {"": 1, "a": 2}, {(1, 2): {3}, None: frozenset({4})}, deque([1, 2]), 1 + 2j, range(3)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_plain_data_crosses_both_ways(sandbox: Sandbox, value: Any) -> None:
    verdict = one(sandbox, call("def f(x): return x", value, value, keep_output=True))
    assert verdict.passed, verdict.detail
    assert type(verdict.outputs[0]) is type(value)


def test_results_of_other_types_are_not_equal(sandbox: Sandbox) -> None:
    assert one(sandbox, call("def f(): return (1, 2)", [1, 2])).status is Status.FAILED
    assert one(sandbox, call("def f(): return (1, 2)", [1, 2], compare="lcb")).passed
    assert one(sandbox, call("def f(): return iter([1])", [1])).status is Status.FAILED


def test_first_wrong_call_is_named(sandbox: Sandbox) -> None:
    job = CallJob(source="def f(x): return x // 2", entry_point="f", calls=((2,), (4,), (5,)), expected=(1, 2, 3))
    verdict = one(sandbox, job)
    assert (verdict.status, verdict.failed_test, verdict.detail) == (Status.FAILED, 2, "got 2, expected 3")


def test_method_of_a_class_and_preamble(sandbox: Sandbox) -> None:
    source = "class Solution:\n    def f(self, x: List[int]): return sqrt(x[0])"
    job = call(source, 3.0, [9], in_class="Solution", preamble="from math import *\nfrom typing import *")
    assert one(sandbox, job).passed


@pytest.mark.parametrize(
    ("source", "detail"),
    [
        ("def f(: pass", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("x = 1", "NameError"),
        ("import no_such_module", "ModuleNotFoundError"),
    ],
)
def test_programs_that_do_not_load_are_errors(sandbox: Sandbox, source: str, detail: str) -> None:
    verdict = one(sandbox, call(source, 1))
    assert verdict.status is Status.ERROR
    assert detail in verdict.detail


def test_exception_in_a_call_fails_the_test(sandbox: Sandbox) -> None:
    verdict = one(sandbox, call("def f(x): return {}[x]", 1, "key"))
    assert (verdict.status, verdict.detail, verdict.failed_test) == (Status.FAILED, "KeyError: 'key'", 0)


def test_limit_per_call() -> None:
    source = "def f(n):\n    while n: pass\n    return n"
    job = CallJob(source=source, entry_point="f", calls=((0,), (1,)), expected=(0, 0), per_test_s=0.3)
    # a wall limit far beyond the CPU limit: a loaded machine must not turn one into the other
    with Sandbox(SandboxConfig(workers=1, cpu_s=2, wall_s=300)) as roomy:
        verdict = one(roomy, job)
    assert (verdict.status, verdict.failed_test, verdict.wall_timeout) == (Status.TIMEOUT, 1, False)
    assert verdict.detail == "cpu limit of 0.3 s"


def test_wall_timeout_is_told_apart(sandbox: Sandbox) -> None:
    verdict = one(sandbox, call("import time\ndef f(): time.sleep(60)", 1, wall_s=0.3))
    assert (verdict.status, verdict.wall_timeout) == (Status.TIMEOUT, True)
    assert verdict.cpu_s < 0.3


def test_script_with_check_keywords_and_in_place_changes(sandbox: Sandbox) -> None:
    test = (
        "def check(candidate):\n    data = [3, 1]\n"
        "    assert candidate(data, reverse=True) is None\n    assert data == [3, 1, 0]"
    )
    source = "def f(items, reverse):\n    items.append(0)\n    items.sort(reverse=reverse)"
    assert one(sandbox, AssertJob(source=source, entry_point="f", test_source=test)).passed


def test_script_with_bare_asserts_and_exceptions(sandbox: Sandbox) -> None:
    test = "try:\n    f(0)\n    assert False\nexcept ZeroDivisionError: pass\nassert f(2) == 0.5"
    assert one(sandbox, AssertJob(source="def f(x): return 1 / x", entry_point="f", test_source=test)).passed
    wrong = one(sandbox, AssertJob(source="def f(x): return 1", entry_point="f", test_source=test))
    assert (wrong.status, wrong.detail) == (Status.FAILED, "assertion failed")


def test_script_with_linked_nodes(sandbox: Sandbox) -> None:
    source = (
        "class Solution:\n    def rev(self, head):\n        new = None\n"
        "        while head: head.next, new, head = new, head, head.next\n        return new"
    )
    test = "def check(candidate):\n    assert values(candidate(head=build([1, 2, 3]))) == [3, 2, 1]"
    job = AssertJob(source=source, entry_point="Solution().rev", test_source=test, preamble=NODES)
    verdict = one(sandbox, job)
    assert verdict.passed, verdict.detail


def test_entry_point_named_check(sandbox: Sandbox) -> None:
    job = AssertJob(source="def check(x): return x + 1", entry_point="check", test_source="assert check(1) == 2")
    assert one(sandbox, job).passed


def test_script_that_breaks_is_not_the_programs_fault(sandbox: Sandbox) -> None:
    job = AssertJob(source="def f(): return 1", entry_point="f", test_source="f()\nassert undefined")
    verdict = one(sandbox, job)
    assert verdict.status is Status.ERROR
    assert "test script" in verdict.detail
    never = one(sandbox, AssertJob(source="def f(): return 1", entry_point="f", test_source="x = 1"))
    assert never.status is Status.ERROR


def test_results_that_are_no_data_need_in_process(sandbox: Sandbox) -> None:
    source = "def f(x): return lambda y: x + y"
    job = AssertJob(source=source, entry_point="f", test_source="assert f(1)(2) == 3")
    assert "no plain data" in one(sandbox, job).detail
    inside = AssertJob(source=source, entry_point="f", test_source="assert f(1)(2) == 3", in_process=True)
    assert one(sandbox, inside).passed
    wrong = AssertJob(source=source, entry_point="f", test_source="assert f(1)(2) == 4", in_process=True)
    assert one(sandbox, wrong).status is Status.FAILED


UNITTEST = """
import os, unittest, subprocess, socket, threading
from unittest.mock import patch
class TestCases(unittest.TestCase):
    def setUp(self): open('made', 'w').close()
    def test_file(self):
        self.assertEqual(task_func('x.txt', 'hi'), 'hi')
        self.assertEqual(sorted(os.listdir('.')), ['made', 'x.txt'])
    def test_mock(self):
        with patch('os.path.getsize', return_value=7) as size:
            task_func('x.txt', 'hi')
            size.assert_called_once()
    def test_raises(self):
        with self.assertRaises(TypeError): task_func(1)
    def test_machine(self):
        self.assertEqual(subprocess.run(['echo', 'x'], capture_output=True).stdout, b'x\\n')
        server = socket.create_server(('127.0.0.1', 0))
        client = socket.create_connection(server.getsockname(), timeout=10)
        thread = threading.Thread(target=client.sendall, args=(b'hello',))
        thread.start()
        thread.join()
        self.assertEqual(server.accept()[0].recv(5), b'hello')
"""
PROGRAM = """
import os
def task_func(name, text):
    with open(name, 'w') as file: file.write(text)
    os.path.getsize(name)
    with open(name) as file: return file.read()
"""


def test_unittest_with_files_mocks_threads_and_sockets(sandbox: Sandbox) -> None:
    verdict = one(sandbox, UnittestJob(source=PROGRAM, test_source=UNITTEST))
    assert verdict.passed, verdict.detail
    wrong = one(sandbox, UnittestJob(source=PROGRAM.replace("return file.read()", "return 1"), test_source=UNITTEST))
    assert wrong.status is Status.FAILED
    assert wrong.detail.startswith("test_file: AssertionError")


def test_unittest_that_does_not_parse_or_has_no_tests(sandbox: Sandbox) -> None:
    assert one(sandbox, UnittestJob(source=PROGRAM, test_source="class TestCases(:")).status is Status.ERROR
    empty = UnittestJob(source=PROGRAM, test_source="import unittest\nclass TestCases(unittest.TestCase): pass")
    assert not one(sandbox, empty).passed


@pytest.mark.parametrize(
    "source",
    [
        "a = int(input())\nprint(a + int(input()))",
        "import sys\nfirst = sys.stdin.readline()\nprint(int(first) + int(sys.stdin.read()))",
        "print(sum(map(int, open(0).read().split())))",
        "import os\nos.write(1, str(sum(map(int, os.read(0, 99).split()))).encode())",
        "import sys, threading\nthreading.Thread(target=lambda: print(sum(map(int, sys.stdin)))).start()",
        "if __name__ == '__main__':\n    print(int(input()) + int(input()))\n    exit()",
        "import os, sys\nprint(sum(map(int, sys.stdin)), flush=True)\nos._exit(0)",
        "import atexit\nn = int(input()) + int(input())\natexit.register(lambda: print(n))",
    ],
)
def test_stdin_is_real(sandbox: Sandbox, source: str) -> None:
    verdict = one(sandbox, StdinJob(source=source, inputs=("1\n2\n", "20\n22"), expected=("3\n", "42")))
    assert verdict.passed, verdict.detail
    assert len(verdict.test_cpu_s) == 2


def test_stdin_failures(sandbox: Sandbox) -> None:
    job = StdinJob(source="print(input() * 2)", inputs=("a", "b", ""), expected=("aa", "b", "x"), keep_output=True)
    verdict = one(sandbox, job)
    assert (verdict.status, verdict.failed_test, verdict.outputs) == (Status.FAILED, 1, ("aa\n", "bb\n"))
    raised = one(sandbox, StdinJob(source="print(input())", inputs=("",), expected=("",)))
    assert (raised.status, raised.detail.split(":")[0]) == (Status.FAILED, "EOFError")
    assert one(sandbox, StdinJob(source="print(", inputs=("",), expected=("",))).status is Status.ERROR


def test_large_input_and_output(sandbox: Sandbox) -> None:
    text = "\n".join(map(str, range(300_000)))
    verdict = one(
        sandbox, StdinJob(source="import sys\nsys.stdout.write(sys.stdin.read())", inputs=(text,), expected=(text,))
    )
    assert verdict.passed, verdict.detail
    numbers = list(range(300_000))
    assert one(sandbox, call("def f(x): return x[::-1]", numbers[::-1], numbers)).passed


def test_reference_results(sandbox: Sandbox) -> None:
    job = ReferenceJob(source="def f(x): return [10 // x] if x > -1 else f", entry_point="f", calls=((5,), (0,), (-1,)))
    found = sandbox.results([job])[0]
    assert found.results == ([2], None, None)
    assert found.errors[1].startswith("ZeroDivisionError")
    assert found.errors[2] == "no plain data: function"
    assert found.verdict.passed


def test_programs_see_the_same_random_numbers(sandbox: Sandbox) -> None:
    job = call("import random\ndef f(): return [random.random(), list({'a', 'b', 'c', 'd'})]", 0, keep_output=True)
    first, second = sandbox.run([job, job])
    assert first.outputs == second.outputs


def test_verdicts_arrive_in_order_and_are_announced(sandbox: Sandbox) -> None:
    jobs = [call("def f(x): return x", number % 3, number) for number in range(20)]
    seen: dict[int, Verdict] = {}
    verdicts = sandbox.run(jobs, on_verdict=seen.__setitem__)
    assert [verdict.passed for verdict in verdicts] == [number % 3 == number for number in range(20)]
    assert [seen[number] for number in range(20)] == verdicts


def test_jobs_that_cannot_be_judged_are_refused(sandbox: Sandbox) -> None:
    with pytest.raises(OnpolError, match="at least one test"):
        sandbox.run([CallJob(source="", entry_point="f", calls=(), expected=())])
    with pytest.raises(OnpolError, match="2 tests and 1 expected"):
        sandbox.run([StdinJob(source="", inputs=("", ""), expected=("",))])
    with pytest.raises(OnpolError, match="known: equal, lcb"):
        sandbox.run([call("", 1, compare="near")])
