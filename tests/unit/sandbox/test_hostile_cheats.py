"""No hostile program cheats the tests' tools, its keepers or the decoders of answers, or harms the next one."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_cheats import CONSTANT, FORGERIES, KEEPERS, THIEVES, TOOLS
from test_hostile import ALL, CONFIG, check_verdict, good_sources, jobs_for, nobody_else, patient, settles, sources

from onpol_cli.core.config import SandboxConfig
from onpol_cli.sandbox import AssertJob, CallJob, ReferenceJob, Sandbox, Status, StdinJob, UnittestJob, codec, isolation
from onpol_cli.sandbox.inside.sweep import delete_folder

UNITTEST = """
import unittest{more}
class TestCases(unittest.TestCase):
    def test_answer(self):
        result = f(0)
        self.assertEqual({result}, {answer!r})
"""
KINDS = dict.fromkeys(TOOLS, "in_process unittest") | dict.fromkeys(KEEPERS, ALL)
KINDS |= dict.fromkeys(FORGERIES, "call script unittest stdin")
PLACES = ("bubblewrap", "rlimits")


@pytest.fixture(scope="module")
def bubblewrap() -> Iterator[Sandbox]:
    with Sandbox(CONFIG) as made:
        yield made


@pytest.fixture(scope="module")
def rlimits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))
        made = Sandbox(CONFIG)
    with made:
        yield made


def after(sandbox: Sandbox) -> list[str]:
    """What good programs complain about now."""
    answer = f"ANSWER:{secrets.token_hex(8)}"
    jobs = [patient(job) for job in jobs_for(good_sources(answer), answer, "call script stdin")]
    return [verdict.detail for verdict in sandbox.run(jobs) if not verdict.passed]


def attack(sandbox: Sandbox, name: str, body: str, kinds: str) -> None:
    answer = f"ANSWER:{secrets.token_hex(8)}"
    test = UNITTEST.format(more="", result="result", answer=answer)
    jobs = [
        dataclasses.replace(job, test_source=test) if isinstance(job, UnittestJob) else job
        for job in jobs_for(sources(body), answer, kinds)
    ]
    for kind, verdict in zip(kinds.split(), sandbox.run(jobs), strict=True):
        check_verdict(kind, verdict)
        assert verdict.detail.isprintable()
        assert "died" not in verdict.detail, f"{kind}: killed its worker"
    assert after(sandbox) == []


@pytest.mark.parametrize("name", sorted(KINDS))
def test_cheating_gets_nowhere(bubblewrap: Sandbox, name: str) -> None:
    attack(bubblewrap, name, (TOOLS | KEEPERS | FORGERIES)[name], KINDS[name])
    assert settles(lambda: nobody_else(bubblewrap)), "processes are left"


@pytest.mark.parametrize("name", sorted(KEEPERS.keys() - {"folders_without_end"}))
def test_keepers_hold_without_bubblewrap(rlimits: Sandbox, name: str) -> None:
    attack(rlimits, name, KEEPERS[name], "call unittest stdin")
    assert settles(lambda: nobody_else(rlimits)), "processes are left"


@pytest.mark.parametrize("name", sorted(THIEVES))
def test_secret_of_the_verdict_is_out_of_reach(bubblewrap: Sandbox, name: str) -> None:
    answer = f"ANSWER:{secrets.token_hex(8)}"
    result = "result[0] if isinstance(result, list) else str(result)"
    unit = UNITTEST.format(more=", chunk", result=result, answer=answer)
    check = f"def check(candidate):\n    result = candidate(0)\n    assert ({result}) == {answer!r}\n"
    source = THIEVES[name]
    verdicts = bubblewrap.run([
        UnittestJob(source=source, test_source=unit, entry_point="f"),
        AssertJob(source=source, test_source=check, entry_point="f", in_process=True),
    ])  # fmt: skip
    assert [verdict.passed for verdict in verdicts] == [False, False]


def test_constructor_of_the_entry_point_learns_nothing(bubblewrap: Sandbox) -> None:
    source = THIEVES["audit_hook"] + "\nclass Solution:\n    __init__ = lambda self: steal()\n    f = f"
    job = AssertJob(source=source, entry_point="Solution().f", test_source="assert f(1) == 2", in_process=True)
    assert not bubblewrap.run([job])[0].passed


def test_constants_of_the_program_compare_honestly(bubblewrap: Sandbox) -> None:
    test = UNITTEST.format(more="", result="EXPECTED", answer="x")
    verdict = bubblewrap.run([UnittestJob(source=CONSTANT, test_source=test, entry_point="f")])[0]
    assert "defines its own comparison" in verdict.detail


def test_honest_programs_may_do_what_looks_like_cheating(bubblewrap: Sandbox) -> None:
    source = """
import collections, contextlib, sys, unittest
class Loud(ValueError):
    def __str__(self): return 'mine'
def len(x): return 7
@contextlib.contextmanager
def quiet(): yield
def f(x):
    if x: raise Loud('a')
    with quiet(): sys.path.append('somewhere')
    return [{'a': collections.Counter('aab')}, {}.keys()]
"""
    test = """
import unittest
class TestCases(unittest.TestCase):
    @unittest.skip('not here')
    def test_skipped(self): self.fail()
    def test_result(self):
        result = f(0)
        self.assertEqual(result[0], {'a': {'a': 2, 'b': 1}})
        self.assertEqual(len(result), 2)
    def test_error(self):
        with self.assertRaises(ValueError) as caught: f(1)
        self.assertEqual((str(caught.exception), caught.exception.args), ('mine', ('a',)))
"""
    verdict = bubblewrap.run([patient(UnittestJob(source=source, test_source=test, entry_point="f"))])[0]
    assert verdict.passed, verdict.detail


LITTER = {
    "files": "import os\nfor n in range(2500): open(str(n), 'w').close()\ndef f(x): return 0",
    "folders": "import os\nfor _ in range(300):\n    os.mkdir('d')\n    os.chdir('d')\ndef f(x): return 0",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("litter", sorted(LITTER))
def test_litter_does_not_spoil_the_next_program(request: pytest.FixtureRequest, place: str, litter: str) -> None:
    sandbox: Sandbox = request.getfixturevalue(place)
    bad = CallJob(source=LITTER[litter], entry_point="f", calls=((1,),), expected=(1,))
    good = dataclasses.replace(bad, source="def f(x): return x")
    jobs = [bad, bad, good, good]
    verdicts = sandbox.run([patient(job) for job in jobs])
    assert [verdict.status for verdict in verdicts] == [Status.FAILED] * 2 + [Status.PASSED] * 2
    folders = [Path(folder) for worker in sandbox._team.workers for folder in worker._scratch]
    assert settles(lambda: not any(list(folder.glob("*")) for folder in folders))


def test_killing_a_worker_without_bubblewrap_kills_its_programs(rlimits: Sandbox) -> None:
    source = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(600)
    time.sleep(600)
def f(x): time.sleep(600)
"""
    slow = CallJob(source=source, entry_point="f", calls=((1,),), expected=(1,), cpu_s=100.0, wall_s=600.0)
    good = dataclasses.replace(slow, source="def f(x): return x")

    folders: set[str] = set()

    def stop(number: int, verdict: object) -> None:
        folders.update(folder for worker in rlimits._team.workers for folder in worker._scratch)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rlimits.run([slow, good], on_verdict=stop)
    gone = folders - {folder for worker in rlimits._team.workers for folder in worker._scratch}
    assert gone
    assert settles(lambda: not any(folder in line for folder in gone for line in command_lines()))
    assert not any(Path(folder).exists() for folder in gone)


def command_lines() -> list[str]:
    """Of every process; forks keep their worker's, which names its folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text(errors="replace"))
    return found


REFERENCES = {
    "number": "{'raised': 5}".replace("'", '"'),
    "words": "nonsense",
    "integer": '{"raised": [{"": ["int", "0x' + "f" * 9000 + '"]}]}',
    "endless": '{"result": {"": ["tuple", {"": ["range", [0, 1000000000000, 1]]}]}}',
}


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_references_cannot_break_the_parent(bubblewrap: Sandbox, name: str) -> None:
    source = f"""
import os, struct
def f(x):
    text = {REFERENCES[name]!r}.encode()
    os.write(3, struct.pack('!Q', len(text)) + text)
"""
    found = bubblewrap.results([ReferenceJob(source=source, entry_point="f", calls=((1,),))])[0]
    assert found.errors or found.verdict.status is Status.ERROR
    assert "died" not in found.verdict.detail


def test_results_have_a_limit_in_all(bubblewrap: Sandbox) -> None:
    job = ReferenceJob(source="def f(x): return 'x' * 6_000_000", entry_point="f", calls=((1,),) * 5, cpu_s=20.0)
    found = bubblewrap.results([job])[0]
    assert (found.verdict.status, len(found.results)) == (Status.FAILED, 2)


ENDLESS = ['["tuple", {"": ["range", [0, 1000000000000, 1]]}]', '["set", {"a": 1}]', '["Fraction", "1e9999999999"]']


@pytest.mark.parametrize("text", ENDLESS)
def test_decoding_ends(text: str) -> None:
    with pytest.raises(codec.Malformed):
        codec.loads(f'{{"": {text}}}'.encode())


def test_results_far_longer_than_expected_are_not_decoded(bubblewrap: Sandbox) -> None:
    job = CallJob(source="def f(x): return [[]] * 2_000_000", entry_point="f", calls=((1,),), expected=(1,))
    verdict = bubblewrap.run([patient(job)])[0]
    assert (verdict.status, verdict.failed_test) == (Status.FAILED, 0)
    assert verdict.detail.endswith("allowed")


def test_no_folder_is_too_deep_to_delete() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        deep = Path(place) / "deep"
        deep.mkdir()
        here = os.open(deep, os.O_RDONLY)
        for _ in range(1500):
            os.close(os.open("file", os.O_CREAT, dir_fd=here))
            os.symlink("/etc", "link", dir_fd=here)
            os.mkdir("d" * 20, dir_fd=here)
            below = os.open("d" * 20, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
        delete_folder(str(deep))
        assert os.listdir(place) == []


def test_signalling_nan_is_a_wrong_answer(bubblewrap: Sandbox) -> None:
    verdict = bubblewrap.run([StdinJob(source="print('sNaN')", inputs=("",), expected=("5",))])[0]
    assert (verdict.status, verdict.detail) == (Status.FAILED, "stdout 'sNaN', expected '5'")


def test_answers_of_an_installed_onpol_are_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = tmp_path / "site-packages"
    (modules / "onpol_cli" / "tasks").mkdir(parents=True)
    (modules / "onpol_cli" / "tasks" / "answers.py").write_text("ANSWER = 1")
    (modules / "other.py").write_text("x = 1")
    monkeypatch.syspath_prepend(str(modules))
    source = "import os, other\ndef f(): return [os.path.exists(os.path.dirname(other.__file__) + '/onpol_cli/tasks')]"
    job = CallJob(source=source, entry_point="f", calls=((),), expected=([False],))
    if isolation.isolation_level(CONFIG)[0] != "bubblewrap":
        pytest.skip("bubblewrap does not work here")
    with Sandbox(SandboxConfig(workers=1)) as sandbox:
        verdict = sandbox.run([job])[0]
    assert verdict.passed, verdict.detail
