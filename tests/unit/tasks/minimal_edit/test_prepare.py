"""Building and verifying data sets, with the real sandbox on a few small programs."""

from __future__ import annotations

import ast
import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onpol_cli.core.config import SandboxConfig
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.records import read_records, write_records
from onpol_cli.sandbox import Sandbox
from onpol_cli.sandbox.jobs import CallJob, UnittestJob
from onpol_cli.tasks.minimal_edit import originals
from onpol_cli.tasks.minimal_edit import prepare as preparing
from onpol_cli.tasks.minimal_edit.budget import instrument, spent, with_budget
from onpol_cli.tasks.minimal_edit.data import read_problems, usable_file
from onpol_cli.tasks.minimal_edit.prepare import PrepareOptions, prepare
from onpol_cli.tasks.minimal_edit.sources import leetcode_slugs, read_sources
from onpol_cli.tasks.minimal_edit.strengthen import (
    Built,
    can_be_strengthened,
    example_inputs,
    is_exact,
    plain,
    vary,
    with_tests,
)
from onpol_cli.tasks.minimal_edit.testing import EditTests
from onpol_cli.tasks.minimal_edit.verify import verify

LEETCODE: list[dict[str, Any]] = [
    {
        "task_id": "count-above",
        "prompt": "from typing import *",
        "completion": "class Solution:\n    def count(self, nums: List[int], k: int) -> int:\n"
        "        total = 0\n        for x in nums:\n            if x > k:\n                total += 1\n"
        "        return total\n",
        "entry_point": "Solution().count",
        "test": "def check(candidate):\n    assert candidate(nums = [1, 5, 9], k = 4) == 2\n"
        "    assert candidate(nums = [3], k = 3) == 0\n",
        "query": "Count what is above k.\nPlease complete the following python code precisely:\n```python\nx\n```",
        "meta": {"question_title": "Count."},
    },
    {
        "task_id": "wrong",
        "prompt": "",
        "completion": "class Solution:\n    def f(self, n):\n        return n + 1\n",
        "entry_point": "Solution().f",
        "test": "def check(candidate):\n    assert candidate(n = 1) == 3\n",
        "query": "Wrong.",
    },
    {
        "task_id": "largest",
        "prompt": "",
        "completion": "class Solution:\n    def f(self, nums):\n        return max(nums) - min(nums)\n",
        "entry_point": "Solution().f",
        "test": "def check(candidate):\n    assert candidate(nums = [4, 1, 7]) == 6\n",
        "query": "Range of the values, in any order.",
    },
]


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(SandboxConfig(workers=1)) as box:
        yield box


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    write_records(tmp_path / "pool.jsonl", LEETCODE)
    return tmp_path / "pool.jsonl"


def _options(pool: Path, **changes: Any) -> PrepareOptions:
    return PrepareOptions(
        "leetcode", **{"families": "all", "max_corruptions": 1, "per_problem": 2, "data": pool, **changes}
    )


def test_items_parse_fail_and_come_back_the_same(pool: Path, tmp_path: Path, sandbox: Sandbox) -> None:
    told: list[tuple[int, int]] = []
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    report = prepare(_options(pool), first, sandbox, progress=lambda *done: told.append(done))
    prepare(_options(pool), second, sandbox)
    assert first.read_bytes() == second.read_bytes()
    assert told == [(3, 3)]
    assert (report.sources, report.problems, report.items) == (3, 2, 4)
    assert report.dropped == {"original fails its tests": 1}
    assert report.tests_added > 0
    assert sum(report.families.values()) == 4
    for row in read_records(first):
        assert ast.unparse(ast.parse(row["corrupted"])) != row["original"]
    found = verify(first, sandbox)
    assert (found.problems, found.originals_passed, found.corrupted_failed) == (4, 4, 4)
    assert found.usable == [problem.problem_id for problem in read_problems(first)]
    assert all(problem.meta["original_passes"] for problem in read_problems(first))
    assert [path.name for path in tmp_path.glob("*.partial")] == []


def test_parquet_holds_the_same_items(pool: Path, tmp_path: Path, sandbox: Sandbox) -> None:
    prepare(_options(pool), tmp_path / "a.jsonl", sandbox)
    prepare(_options(pool), tmp_path / "a.parquet", sandbox)
    assert read_records(tmp_path / "a.parquet") == read_records(tmp_path / "a.jsonl")
    assert read_problems(tmp_path / "a.parquet") == read_problems(tmp_path / "a.jsonl")


def test_an_interrupted_build_goes_on_and_ends_with_the_same_bytes(
    pool: Path, tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "CHUNK", 1)
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    prepare(_options(pool), whole, sandbox)

    def stop(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(_options(pool), out, sandbox, progress=stop)
    partial = tmp_path / "out.jsonl.partial"
    assert not out.exists()
    partial.write_bytes(partial.read_bytes() + b'{"source_id": "cut')  # as if killed while writing
    with pytest.raises(OnpolError, match="--resume"):
        prepare(_options(pool), out, sandbox)
    with pytest.raises(OnpolError, match="other options"):
        prepare(_options(pool, seed=1), out, sandbox, resume=True)
    told: list[int] = []
    report = prepare(_options(pool), out, sandbox, resume=True, progress=lambda done, of: told.append(done))
    assert told == [3]
    assert report.items == 4
    assert out.read_bytes() == whole.read_bytes()


def test_the_default_number_of_edits_is_the_papers() -> None:
    options = PrepareOptions("leetcode")
    assert (options.max_corruptions, options.per_problem) == (20, 1)


def test_refusals_come_before_any_work(pool: Path, tmp_path: Path, sandbox: Sandbox) -> None:
    (tmp_path / "there.jsonl").write_text("x")
    with pytest.raises(OnpolError, match="exists"):
        prepare(_options(pool), tmp_path / "there.jsonl", sandbox)
    with pytest.raises(OnpolError, match="cannot tell the format"):
        prepare(_options(pool), tmp_path / "out.csv", sandbox)
    with pytest.raises(OnpolError, match="Unknown corruption family"):
        _options(pool, families="nonsense")
    with pytest.raises(OnpolError, match="--max-corruptions must be at least 1"):
        _options(pool, max_corruptions=0)
    with pytest.raises(OnpolError, match="No item was made of 3 sources"):
        prepare(_options(pool, families="strip_variant"), tmp_path / "none.jsonl", sandbox)


def test_verification_names_what_is_missing_and_is_forgotten_when_file_or_environment_changes(
    tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.jsonl"
    base = {"statement": "s", "families": ["x"], "test_kind": "assert", "entry_point": "f", "tests": "assert f(1) == 2"}
    good, bad = "def f(n):\n    return n + 1", "def f(n):\n    return n"
    rows = [
        {**base, "problem_id": "fine", "original": good, "corrupted": bad},
        {**base, "problem_id": "no-module", "original": f"import nosuchmodule\n{good}", "corrupted": bad},
        {**base, "problem_id": "not-broken", "original": good, "corrupted": good},
    ]
    write_records(path, rows)
    report = verify(path, sandbox)
    assert (report.originals_passed, report.corrupted_failed) == (2, 2)
    assert report.usable == ["fine"]
    assert report.missing == {"nosuchmodule": 1}
    assert "corrupted program passes" in report.reasons["not-broken"]
    assert json.loads(usable_file(path).read_text())["usable"] == ["fine"]
    assert [problem.meta["original_passes"] for problem in read_problems(path)] == [True, False, True]
    with monkeypatch.context() as patch:
        patch.setattr(originals, "environment", lambda: "other packages")
        assert all("original_passes" not in problem.meta for problem in read_problems(path))
    write_records(path, rows[:2])
    assert all("original_passes" not in problem.meta for problem in read_problems(path))


BENCH = {
    "task_id": "BigCodeBench/0",
    "complete_prompt": 'def task_func(a):\n    """Doc."""\n',
    "canonical_solution": "    return a + 1\n",
    "instruct_prompt": "Add one.",
    "test": "import unittest\nclass TestCases(unittest.TestCase):\n    pass",
    "entry_point": "task_func",
}
MBPP = {
    "task_id": 7,
    "prompt": "Double.",
    "code": "def helper(n):\n    return n\n\ndef twice(n):\n    return helper(n) * 2",
    "test_list": ["assert twice(2) == 4"],
    "test_imports": [],
}


def test_pools_are_recognised_by_their_fields(tmp_path: Path) -> None:
    write_records(tmp_path / "b.json", [BENCH])
    (bench,) = read_sources("bigcodebench", tmp_path / "b.json")
    assert (bench.source_id, bench.statement, bench.tests.kind) == ("BigCodeBench/0", "Add one.", "unittest")
    assert isinstance(bench.tests.job("x"), UnittestJob)
    write_records(tmp_path / "m.json", [MBPP])
    (mbpp,) = read_sources(str(tmp_path / "m.json"))
    assert (mbpp.source_id, mbpp.tests.entry_point) == ("mbpp/7", "twice")
    assert isinstance(mbpp.tests.job("x"), CallJob)
    own = {"problem_id": "p", "statement": "s", "original": "def f(a):\n    return a", "tests": "assert f(1) == 1"}
    write_records(tmp_path / "o.jsonl", [own, {**own, "problem_id": "q", "original": "def f(:"}])
    (source,) = read_sources(str(tmp_path / "o.jsonl"))
    assert (source.tests.kind, source.tests.entry_point) == ("assert", "f")


def test_unknown_pools_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OnpolError, match="Allowed: leetcode, bigcodebench, mbpp, a path, or hub:OWNER/NAME"):
        read_sources("deepcoder")
    write_records(tmp_path / "x.jsonl", [{"a": 1}])
    with pytest.raises(OnpolError, match="Known formats have"):
        read_sources(str(tmp_path / "x.jsonl"))
    write_records(tmp_path / "y.jsonl", [MBPP, MBPP])
    with pytest.raises(OnpolError, match="already given"):
        read_sources(str(tmp_path / "y.jsonl"))


def test_the_hub_is_asked_for_the_training_file(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[str, str]] = []

    def download(name: str, file: str, repo_type: str) -> str:
        asked.append((name, file))
        return str(pool)

    files = ["README.md", "L-v1-test.jsonl", "L-v1-train.jsonl"]
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda name, repo_type: files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert len(read_sources("leetcode")) == 3
    assert asked == [("newfacade/LeetCodeDataset", "L-v1-train.jsonl")]
    assert len(read_sources("hub:me/mine/L-v1-test.jsonl")) == 3
    assert asked[-1] == ("me/mine", "L-v1-test.jsonl")


def test_an_unreachable_hub_is_one_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(name: str, repo_type: str) -> list[str]:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", unreachable)
    with pytest.raises(OnpolError, match=r"no route.*--data FILE"):
        read_sources("mbpp")


def test_problems_of_livecodebench_are_left_out(pool: Path, tmp_path: Path, sandbox: Sandbox) -> None:
    rows = [
        {"platform": "leetcode", "question_title": "count-above"},
        {"platform": "atcoder", "question_title": "largest"},
    ]
    lcb = tmp_path / "lcb.jsonl.gz"
    lcb.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    assert leetcode_slugs(lcb) == {"count-above"}
    report = prepare(_options(pool, exclude=lcb), tmp_path / "out.jsonl", sandbox)
    assert (report.sources, report.problems) == (2, 1)


def test_varied_inputs_keep_what_all_examples_share() -> None:
    examples = [([1, 3, 7], "ab", 3), ([2, 5, 6, 8], "ba", 4), ([4, 9], "bb", 2)]
    inputs = vary(examples, random.Random(0), 30)
    assert inputs == vary(examples, random.Random(0), 30)
    assert len({repr(given) for given in inputs}) == len(inputs) > 10
    for values, text, size in inputs:
        assert values == sorted(set(values))  # sorted and distinct, as in every example
        assert len(values) == size  # the number that gives the length
        assert len(values) in (2, 3, 4)
        assert set(text) <= {"a", "b"}
        assert all(1 <= value <= 9 for value in values)


def test_texts_with_a_grammar_grids_and_permutations_are_varied_with_care() -> None:
    examples = [("3[a]2[bc]", [[1, 2], [3, 4]], [2, 0, 1]), ("2[x]", [[5, 6], [7, 8]], [1, 0])]
    for text, grid, order in vary(examples, random.Random(1), 30):
        assert text in ("3[a]2[bc]", "2[x]")
        assert sorted(cell for row in grid for cell in row) in ([1, 2, 3, 4], [5, 6, 7, 8])
        assert sorted(order) == list(range(len(order)))


def test_nodes_are_read_varied_built_and_written_back() -> None:
    script = "def check(candidate):\n    assert candidate(root = tree_node([2, 1, None, 0]), k = 1) == 1\n"
    tests = EditTests("assert", script, "Solution().f", parameters=("root", "k"))
    ((root, k),) = example_inputs(tests)
    assert (root, k) == (Built("tree_node", [2, 1, None, 0]), 1)
    tree = plain(root)
    assert (tree.val, tree.left.val, tree.right, tree.left.left.val) == (2, 1, None, 0)
    chain = plain(Built("list_node", [1, 2]))
    assert (chain.val, chain.next.val, chain.next.next) == (1, 2, None)
    assert plain(Built("list_node", [])) is None
    for new_root, _ in vary([(root, k)], random.Random(0), 10):
        assert all(b is None or a is not None for a, b in zip(root.values, new_root.values, strict=False))
    longer = with_tests(tests, [(Built("tree_node", [3]), 2)], [None])
    assert longer.endswith("    assert candidate(root = tree_node([3]), k = 2) == None\n")


def test_only_exact_answers_become_tests_and_only_where_there_is_one() -> None:
    assert all(map(is_exact, [1, "x", [1, {"a": (None, True)}], set("ab")]))
    assert not any(map(is_exact, [0.5, [1, 2.0], {1: {2.0}}, object(), "x" * 1000]))
    tests = EditTests("assert", "def check(candidate): pass", "f")
    assert can_be_strengthened(tests, "Return the sum.")
    assert not can_be_strengthened(tests, "Return the answer in any order.")


ENDLESS = "def f(n):\n    while True:\n        try:\n            n += 1\n        except Exception:\n            pass"
RECURSIVE = "def f(n):\n    'doc'\n    return n if n < 2 else f(n - 1) + f(n - 2)"


@pytest.mark.parametrize("kind", ["assert", "unittest"])
def test_programs_are_stopped_by_steps_not_seconds(sandbox: Sandbox, kind: str) -> None:
    script = "assert f(25) == 75025"
    if kind == "unittest":
        script = f"import unittest\nclass TestCases(unittest.TestCase):\n    def test_f(self):\n        {script}"
    tests = with_budget(EditTests(kind, script, "f"))
    verdicts = sandbox.run([tests.job(instrument(source), cpu_s=20.0) for source in (ENDLESS, RECURSIVE)])
    assert all(spent(verdict.detail) for verdict in verdicts)  # f(25) makes 250,000 calls
    quick = replace(tests, source=script.replace("25) == 75025", "15) == 610"))
    (verdict,) = sandbox.run([quick.job(instrument(RECURSIVE))])
    assert verdict.passed, verdict.detail


def test_every_loop_call_and_comprehension_is_a_step() -> None:
    source = (
        "def f(a):\n    'doc'\n    for x in a:\n        while x:\n            x -= 1\n"
        "    return [z for y in a if y for z in range(y)]"
    )
    steps: list[None] = []
    names: dict[str, Any] = {"__onpol_step__": lambda: steps.append(None) is None}
    exec(instrument(source), names)
    assert names["f"]([0, 3]) == [0, 1, 2]
    assert len(steps) == 1 + 2 + 3 + 2 + 3  # call, for, while, outer and inner rounds of the comprehension
    assert names["f"].__doc__ == "doc"
