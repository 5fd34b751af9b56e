"""`scripts/bench/learner_profile.py` on a step of a few tokens: its clocks account for the whole step."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "learner_profile.py"
SMALL = (
    *("method.prompts=2", "method.group=2", "task.problems=12", "task.validation_problems=2"),
    *("rollout.sampling.max_new_tokens=16", "sandbox.workers=1"),
)


def test_the_clocks_account_for_the_whole_step(tmp_path):
    out = tmp_path / "profile.json"
    words = [sys.executable, str(SCRIPT), "--steps", "2", "--threads", "1", "--out", str(out), *SMALL]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found == json.loads(out.read_text())
    for seconds in (found["seconds"], found["cpu_seconds"]):
        assert sum(seconds["phases"].values()) == pytest.approx(seconds["step"], abs=1e-3)
        for phase in ("generate", "train"):  # nothing is counted twice, and what is left over is small
            assert sum(seconds[phase].values()) == pytest.approx(seconds["phases"][phase], abs=1e-3)
            assert all(value >= -1e-3 for value in seconds[phase].values()), (phase, seconds[phase])
    assert found["padding"]["tokens of training"] == 0
    assert set(found["padding"]) >= {"attention rows of training", "attention keys of decoding", "tokens of prefill"}
    assert all(0 <= share < 1 for share in found["padding"].values())
    assert 0 < found["share_of_matmul_peak"]["step"] < 1
    assert sum(share for name, share in found["ratios"].items() if "of the step" in name) == pytest.approx(1, abs=0.01)
