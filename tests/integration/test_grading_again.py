"""`onpol eval --answers` interrupted and repeated, and the scores on problems whose original passes here."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from onpol_cli.runs.rundir import read_lines, read_manifest

PATIENCE_S = 300
GOOD, BAD = "def f(n):\n    return n + 1\n", "def f(n):\n    return n\n"
SLOW = "import time\ndef f(n):\n    time.sleep(8)\n    return n + 1\n"
MISSING = f"import nosuchmodule\n{GOOD}"


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def data(folder: Path, originals: list[str]) -> Path:
    """A file of edit problems with these originals."""
    base = {"statement": "Add one.", "corrupted": BAD, "families": ["arithmetic_operators"], "test_kind": "assert"}
    base |= {"entry_point": "f", "tests": "assert f(1) == 2"}
    rows = [{**base, "problem_id": f"p{n}", "original": original} for n, original in enumerate(originals)]
    return write(folder / "edits.jsonl", rows)


def answers(folder: Path, codes: list[str]) -> Path:
    return write(folder / "answers.jsonl", [{"task_id": f"p{n}", "solution": code} for n, code in enumerate(codes)])


def command(data: Path, answers: Path, folder: Path) -> list[str]:
    words = ["eval", "--bench", "minimal-edit", "--data", str(data), "--answers", str(answers), "--run-dir"]
    return [
        sys.executable,
        "-m",
        "onpol_cli.cli",
        *words,
        str(folder),
        "--json",
        "sandbox.workers=1",
        "sandbox.wall_s=120",
    ]


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def listen_to_ctrl_c() -> None:
    """Undo what a shell does to commands in the background: they ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupt(words: list[str], folder: Path) -> str:
    """Start, wait for the first graded lines, press Ctrl-C; what it said."""
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen_to_ctrl_c
    )
    end = time.monotonic() + PATIENCE_S
    while not list(read_lines(folder / "samples.jsonl")):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, error
    return error


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    return data(tmp_path, [GOOD] * 6)


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    return answers(tmp_path, [GOOD, BAD, GOOD, SLOW, BAD, GOOD])


def test_an_interrupted_grading_goes_on_with_the_same_command(tmp_path: Path, problems: Path, codes: Path) -> None:
    whole = subprocess.Popen(command(problems, codes, tmp_path / "whole"), stdout=subprocess.PIPE, text=True)
    words = command(problems, codes, tmp_path / "cut")
    said = interrupt(words, tmp_path / "cut")
    kept = list(read_lines(tmp_path / "cut" / "samples.jsonl"))
    assert 1 <= len(kept) <= 3
    assert f"{len(kept)} graded answers are kept" in said and "Traceback" not in said
    assert read_manifest(tmp_path / "cut")["status"] == "interrupted"
    again = run(words)
    assert again.returncode == 0, again.stderr
    printed, _ = whole.communicate(timeout=PATIENCE_S)
    assert json.loads(again.stdout)["benches"] == json.loads(printed)["benches"]
    rows = list(read_lines(tmp_path / "cut" / "samples.jsonl"))
    assert rows[: len(kept)] == kept
    assert [row["problem_id"] for row in rows] == [f"p{n}" for n in range(6)]
    third = run(words)
    assert third.returncode == 2 and "holds a finished run" in third.stderr and third.stderr.count("\n") == 1


def test_another_grading_does_not_go_on_in_the_same_folder(tmp_path: Path, problems: Path, codes: Path) -> None:
    folder = tmp_path / "run"
    interrupt(command(problems, codes, folder), folder)
    before = (folder / "samples.jsonl").read_bytes()
    other = answers(tmp_path, [GOOD, BAD, GOOD, SLOW, BAD, BAD])
    refused = run(command(problems, other, folder))
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "unfinished run that differs in answers or problems" in refused.stderr
    answers(tmp_path, [GOOD, BAD, GOOD, SLOW, BAD, GOOD])
    refused = run([*command(problems, codes, folder), "sandbox.cpu_s=3"])
    assert refused.returncode == 2 and "differs in sandbox.cpu_s" in refused.stderr
    assert (folder / "samples.jsonl").read_bytes() == before


def test_scores_on_all_and_on_those_whose_original_passes(tmp_path: Path) -> None:
    problems, codes = data(tmp_path, [GOOD, MISSING, GOOD]), answers(tmp_path, [GOOD, MISSING, BAD])
    first = run(command(problems, codes, tmp_path / "first"))
    assert first.returncode == 0, first.stderr
    assert "running 3 originals first" in first.stderr
    bench = json.loads(first.stdout)["benches"]["minimal-edit"]
    assert (bench["n"], bench["metrics"]["pass@1"]["value"]) == (3, pytest.approx(1 / 3))
    usable = bench["groups"]["usable"]
    assert usable["original passes here"]["n"] == 2
    assert usable["original passes here"]["metrics"]["pass@1"]["value"] == 0.5
    assert usable["original fails here"]["n"] == 1
    assert [row["original_passes"] for row in read_lines(tmp_path / "first" / "samples.jsonl")] == [True, False, True]
    words = [word for word in command(problems, codes, tmp_path / "second") if word != "--json"]
    second = run(words)
    assert second.returncode == 0 and "originals" not in second.stderr
    shown = [line for line in second.stdout.splitlines() if "original passes here" in line]
    assert len(shown) == 1 and " 2 " in shown[0] and "0.500" in shown[0]


def test_originals_can_be_left_out(tmp_path: Path) -> None:
    problems, codes = data(tmp_path, [GOOD]), answers(tmp_path, [GOOD])
    done = run([*command(problems, codes, tmp_path / "run"), "eval.originals=false"])
    assert done.returncode == 0 and "originals" not in done.stderr
    assert "usable" not in json.loads(done.stdout)["benches"]["minimal-edit"]["groups"]
