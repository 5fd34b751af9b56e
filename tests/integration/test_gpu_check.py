"""`scripts/gpu_check` in miniature on the CPU, from torch and transformers alone, and its guards."""

import json
import subprocess
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch
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
