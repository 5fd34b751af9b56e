"""`scripts/gpu_check` in miniature on the CPU, from torch and transformers alone, and its guards."""

import json
import os
import signal
import subprocess
import sys
import time
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
from needed import wait_for
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check"
PARTS = 12


def brought_along(*names: str) -> set[str]:
    """Distributions that `names` need, themselves included, without extras."""
    waiting, found = list(names), set()
    while waiting:
        name = canonicalize_name(waiting.pop())
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            wanted = [Requirement(line) for line in needs]
            waiting += [need.name for need in wanted if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Path:
    """A Python that sees torch, transformers and what they bring, and nothing else of this environment."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in brought_along("torch", "transformers"):
        own = distribution(name)
        for top in {Path(file).parts[0] for file in own.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(own.locate_file(top))
    return folder / "bin" / "python"


def check(python: Path, *words: str) -> tuple[int, dict, str]:
    """Exit status, last line of stdout as JSON, stderr."""
    done = subprocess.run(
        [str(python), str(SCRIPT), *words], capture_output=True, text=True, timeout=900, env={"OMP_NUM_THREADS": "1"}
    )
    assert done.stdout.strip(), done.stderr
    return done.returncode, json.loads(done.stdout.strip().splitlines()[-1]), done.stderr


def test_the_bare_environment_is_bare(bare):
    for name in ("hydra", "rapidfuzz", "pandas", "peft", "vllm"):
        assert subprocess.run([str(bare), "-c", f"import {name}"], capture_output=True).returncode, name


def test_every_part_is_measured_with_torch_and_transformers_alone(bare, tmp_path):
    words = ("--device", "cpu", "--small", "--minutes", "15")  # a busy machine must not look like a failure
    status, found, log = check(bare, *words, "--out", str(tmp_path / "out.json"))
    assert status == 0, log
    assert json.loads((tmp_path / "out.json").read_text()) == found
    parts = {name: record["found"] for name, record in found["parts"].items()}
    assert len(parts) == PARTS
    curve = parts["curve"]
    assert curve["agrees"] and max(curve["replayed"]["largest_relative_gap"].values()) < 1e-3
    assert curve["kl_teacher_cpu"] != curve["kl_teacher_device"]  # two decoders, so that the comparison is one
    assert parts["loss"]["float32"]["log-probs"]["gradient_error"] < 1e-5
    assert parts["mismatch"]["sampler float32, learner float32"]["largest"] < 1e-3
    assert 1e-4 < parts["mismatch"]["sampler bfloat16, learner bfloat16"]["largest"] < 0.5
    assert "peft is not installed" in parts["learner-0.6b-lora"]["adapters"]
    assert parts["learner-0.6b-lora"]["trained"] < parts["learner-0.6b"]["trained"]
    assert parts["vllm-0.6b"] == {"not_measured": "vLLM is not installed"}
    assert all(found["ratios"][f"{name} sft mfu"] > 0 for name in parts if name.startswith("learner"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_failing_part_is_recorded_and_the_next_one_runs(bare):
    status, found, _ = check(bare, "--device", "cuda", "--small", "--only", "machine", "loss")
    assert status == 1
    assert [record["status"] for record in found["parts"].values()] == ["failed", "failed"]
    assert found["parts"]["loss"]["found"]["shape"]["tokens"] == 256  # what was known before the failure stays


def test_a_part_over_its_time_is_stopped(bare):
    # leaves 3.3 s for what imports torch and transformers and trains 40 steps
    words = ("--device", "cpu", "--small", "--minutes", "0.155", "--only", "curve", "loss")
    status, found, _ = check(bare, *words)
    assert status == 1 and found["seconds"] < 30
    assert found["parts"]["curve"]["status"] == "timeout"
    assert found["parts"]["loss"]["status"] in ("timeout", "skipped")


def test_the_search_for_a_device_counts_and_may_use_up_the_time(tmp_path):
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(100)\n")  # a first import from a slow disk
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--minutes", "0.2", "--out", str(tmp_path / "out.json")],
        capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert time.monotonic() - began < 60
    found = json.loads(done.stdout)
    assert done.returncode == 1 and found["seconds"] <= 12 and found["device"] == "unknown"
    assert {record["status"] for record in found["parts"].values()} == {"skipped"} and len(found["parts"]) == PARTS


STUB = """
import json, os, time
parent = os.getppid()
def say(**line): print(json.dumps(line), flush=True)
say(begin="machine"); say(part="machine", key="matmul_bfloat16_tflops", value=2.0); say(end="machine", status="done")
say(begin="loss"); say(part="loss", key="shape", value={"tokens": 256})
while os.getppid() == parent:
    time.sleep(0.2)
"""
"""A worker whose second part hangs for as long as there is who asked for it."""


@pytest.fixture
def hanging(tmp_path):
    """The check with that worker, once the second part's first figure is in its file; and the file."""
    (tmp_path / "stub.py").write_text(STUB)
    program = f"import sys, gpu_parts.check as check; check.SCRIPT = {str(tmp_path / 'stub.py')!r}; "
    out = tmp_path / "out.json"
    process = subprocess.Popen(
        [sys.executable, "-c", program + "sys.exit(check.main(None))", "--device", "cpu", "--small", "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "scripts")])},
    )  # fmt: skip
    try:
        wait_for(lambda: out.is_file() and '"tokens": 256' in out.read_text(), process, 60)
        yield process, out
    finally:
        process.kill()
        process.wait()


MEASURED = {"machine": ("done", {"matmul_bfloat16_tflops": 2.0}), "loss": ("running", {"shape": {"tokens": 256}})}


def known(text: str) -> dict[str, tuple]:
    return {name: (record["status"], record["found"]) for name, record in json.loads(text)["parts"].items()}


def test_what_was_measured_outlives_a_kill(hanging):
    process, out = hanging
    process.kill()
    process.wait()
    assert known(out.read_text()) == MEASURED
    assert sorted(file.name for file in out.parent.iterdir()) == ["out.json", "stub.py"]  # no half-written file


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_its_json(hanging, number):
    process, out = hanging
    process.send_signal(number)
    printed, log = process.communicate(timeout=60)
    assert process.returncode == 128 + number, log
    assert json.loads(printed) == json.loads(out.read_text())
    parts = known(printed)
    assert parts.pop("machine") == MEASURED["machine"] and parts.pop("loss") == ("stopped", MEASURED["loss"][1])
    assert len(parts) == PARTS - 2 and all(part == ("skipped", {}) for part in parts.values())
