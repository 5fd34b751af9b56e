"""Training commands on the GPU, from the words of the command line to metrics.jsonl and a checkpoint."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
STEPS = "method.steps=4"
GPU_RECIPE = ("learner=gpu", "rollout.dtype=bfloat16", "rollout.canary_tolerance=0.5")
EVERYWHERE = ("loss/total", "grad_norm", "rate/train_tokens_per_s", "time/train")


def healthy(rows, steps=4):
    assert [row["step"] for row in rows] == list(range(steps))
    for name in EVERYWHERE:
        assert all(row[name] == row[name] and abs(row[name]) < 1e6 for row in rows), name


@pytest.mark.parametrize("settings", [(), GPU_RECIPE], ids=["float32", "learner=gpu"])
def test_tutor_and_student(onpol, device, tmp_path, settings):
    healthy(onpol("tutor", "train", "tutor", "method=sft", STEPS, *settings))
    for method in ("rl", "opd", "opd-exact"):
        command = ("train", "tutor") if method == "rl" else ("distill", "student", "tutor=tutor")
        rows = onpol(method, *command, f"method={method}", STEPS, *settings)
        healthy(rows)
        tolerance = 0.5 if settings else 1e-3
        assert max(row["canary/max_abs"] for row in rows) < tolerance
        if device.type == "cuda":
            assert rows[-1]["memory/peak_mb"] > 0
    assert (tmp_path / "opd" / "checkpoint" / "model.safetensors").is_file()


def test_an_interrupted_run_goes_on(onpol):
    method = ("distill", "student", "tutor=tiny", "method=opd", "method.teacher_temperature=2", "method.steps=20")
    whole = onpol("whole", *method)
    assert 2 <= len(onpol("halves", *method, stop_after=2)) < 20
    rows = onpol("halves", *method, resume=True)
    healthy(rows, 20)
    for name in ("loss/total", "grad_norm", "entropy", "length/mean"):
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in whole], rel=1e-2, abs=1e-5), name


def test_lora_with_the_base_as_teacher(onpol):
    words = ("tutor=tiny", "method=opd", "method.teacher_temperature=2", "model.lora.rank=8", "optim.lr=1e-3", STEPS)
    rows = onpol("lora", "distill", "student", *words)
    healthy(rows)
    assert all(row["grad_norm"] > 0 for row in rows)


def test_two_processes_follow_one(cuda, onpol):
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs, and torch sees {torch.cuda.device_count()}")
    method = ("train", "tutor", "method=sft", STEPS)
    one, two = onpol("one", *method), onpol("two", *method, "parallel.nproc=2")
    for name in ("loss/total", "grad_norm"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], rel=1e-4), name


def test_gpu_check_in_miniature(cuda, tmp_path):
    words = [sys.executable, str(ROOT / "scripts" / "gpu_check"), "--small", "--out", str(tmp_path / "out.json")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["parts"]["curve"]["found"]["agrees"]
    assert found["parts"]["loss"]["found"]["float32"]["log-probs"]["gradient_error"] < 1e-4
