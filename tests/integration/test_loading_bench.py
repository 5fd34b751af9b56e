"""`scripts/bench/loading.py` on a small model: both ways end with the same shards."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "loading.py"


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_both_ways_of_loading_give_the_same_shards(tmp_path):
    words = [sys.executable, str(SCRIPT), "--size", "small", "--nproc", "2", "--out", str(tmp_path / "loading.json")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found == json.loads((tmp_path / "loading.json").read_text())
    first, each = (found["ways"][way] for way in ("first", "each"))
    assert first["norm"] == pytest.approx(each["norm"], rel=1e-12) and first["norm"] > 1
    assert min(first["peak_gib"], each["peak_gib"]) > found["weights_gib"] > 0
    assert found["ratios"]["peak_gib"] == each["peak_gib"] / first["peak_gib"]
