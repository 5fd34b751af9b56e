"""The pure parts of scripts/bench/vs_trl.py: variants, summaries, ratios, refusals. Neither torch nor TRL is needed."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"


sys.path.insert(0, str(BENCH))  # where it lies when it is run


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


vs_trl = load(BENCH / "vs_trl.py")
clock = load(BENCH / "vs_trl_sides" / "clock.py")


def record(*totals, read=100, trained=40):
    steps = [{"forward_backward": t / 2, "other": t / 2, "total": t, "cpu": 2 * t} for t in totals]
    return {"steps": steps, "tokens": {"read": read * len(totals), "trained": trained * len(totals)}, "warmup_s": 9.0}


def test_summary_is_over_the_steps_of_all_processes():
    found = vs_trl.summary([record(1.0, 3.0), record(2.0)])
    assert (found["median_s"], found["min_s"], found["cpu_median_s"], found["steps"]) == (2.0, 1.0, 4.0, 3)
    assert found["phases_s"] == {"forward_backward": 1.0, "other": 1.0}
    assert found["tokens_per_step"] == {"read": 100, "trained": 40} and found["tokens_per_s"] == 50
    assert found["warmup_s"] == [9.0, 9.0]


def test_ratios_above_one_mean_that_onpol_is_faster():
    peer, ours = vs_trl.summary([record(2.0, 4.0)]), vs_trl.summary([record(1.0, 1.5)])
    assert vs_trl.ratios(peer, ours) == {
        "tokens_per_s": pytest.approx(6 / 2.5), "median_step": 3 / 1.25, "min_step": 2.0, "cpu_step": 2.4,
        "tokens_per_cpu_s": pytest.approx(6 / 2.5),
    }  # fmt: skip


def test_the_fastest_variant_reads_most_tokens_a_second():
    slow, fast = record(1.0), record(1.5, read=200)
    tried = [({"name": "slow"}, slow), ({"name": "fast"}, fast)]
    assert vs_trl.fastest(tried) == vs_trl.fastest(tried, busy=True) == {"name": "fast"}
    fast["steps"][0]["cpu"] = 9.0
    assert vs_trl.fastest(tried) == {"name": "fast"} and vs_trl.fastest(tried, busy=True) == {"name": "slow"}


@pytest.mark.parametrize("part", ["sft", "distil"])
def test_variants_hold_the_whole_batch_and_are_distinct(part):
    found = vs_trl.variants(part, 64)
    assert len({vs_trl.name_of(variant) for variant in found}) == len(found)
    assert all(64 % variant["micro"] == 0 for variant in found)
    assert {"eager", "sdpa"} == {v["attention"] for v in found} and {"no", "option"} <= {v["compile"] for v in found}


def test_other_work_or_other_losses_are_refused():
    same = {"divergence": 0.2, "divergence_grad_norm": 1.0}
    assert vs_trl.check_losses(same, dict(same)) == {"divergence": 0.0, "divergence_grad_norm": 0.0}
    for other in ({**same, "divergence": 0.201}, {"divergence": 0.2}):
        with pytest.raises((SystemExit, KeyError)):
            vs_trl.check_losses(same, other)
    vs_trl.check_tokens(record(1.0), record(2.0, 2.0), "distil")
    with pytest.raises(SystemExit, match="not the same work"):
        vs_trl.check_tokens(record(1.0, trained=39), record(1.0), "distil")


def test_trials_are_taken_from_the_same_trainer_and_format_only():
    result = {"sections": {"distil:float32": {"trials": {"best": 1}}}}
    assert vs_trl.known_trials(result, "distil-groups:float32") == {"best": 1}
    assert vs_trl.known_trials(result, "distil:bfloat16") is vs_trl.known_trials(result, "sft:float32") is None


def test_a_phase_inside_another_is_counted_once():
    class Work:
        def outer(self):
            time.sleep(0.02)
            self.inner()

        def inner(self):
            time.sleep(0.05)

    work, watch = Work(), clock.Clock()
    watch.wrap(work, "outer", "a")
    watch.wrap(work, "inner", lambda: "b")
    watch.start()
    work.outer()
    watch.step()
    (step,) = watch.steps
    assert step["a"] + step["b"] + step["other"] == pytest.approx(step["total"])
    assert step["b"] >= 0.05 and 0.02 <= step["a"] < step["total"] - 0.04


def test_help_and_unknown_sections():
    command = [sys.executable, str(BENCH / "vs_trl.py")]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert "pip install" in shown and all(name in "".join(shown.split()) for name in vs_trl.SECTIONS)
    failed = subprocess.run([*command, "sft", "--trl-python", "x"], capture_output=True, text=True)
    assert failed.returncode == 2 and "unknown sections" in failed.stderr


def test_the_committed_figures_are_of_this_script():
    path = BENCH.parents[1] / "results" / "bench" / "vs_trl.json"
    result = json.loads(path.read_text())
    assert set(result["sections"]) <= set(vs_trl.SECTIONS)
    for found in result["sections"].values():
        raw = found.get("raw", {})
        assert {side: vs_trl.summary(of) for side, of in raw.items()} == {side: found[side] for side in raw}
    assert max(result["losses"]["relative_difference"].values()) <= vs_trl.TOLERANCE
