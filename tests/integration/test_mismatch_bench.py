"""`scripts/bench/mismatch.py` on a few tokens: rounding the logits is what it says it is."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "mismatch.py"


def test_rounded_logits_are_further_from_the_learner():
    found = {}
    for logits in ("rounded", "float32"):
        words = [sys.executable, str(SCRIPT), "--prompts", "6", "--samples", "4", "--one", "hf", logits]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        found[logits] = json.loads(done.stdout.strip().splitlines()[-1])
    assert 0 < found["float32"]["kl"] < 0.8 * found["rounded"]["kl"]
    assert found["float32"]["tokens"] > 500
