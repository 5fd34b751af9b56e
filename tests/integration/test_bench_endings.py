"""Every script of scripts/bench ends its stdout with one JSON object that has ratios, and is quoted with its command.

Run in miniature where that is cheap; else the script's `main` tells figures that were recorded.
"""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "scripts" / "bench"
RECORDED = ROOT / "results" / "bench"
ELSEWHERE = {"learner_profile": "test_learner_profile", "loading": "test_loading_bench"}
"""Run in miniature by a test of their own, which looks at the ending, too."""
RUN = {
    "compare": ("--repeats", "1"),
    "corruption": ("--data", "{data}/leetcodedataset/LeetCodeDataset-v0.2.0-train.jsonl.gz", "--limit", "6",
                   "--families", "in-domain", "--out", "{tmp}"),
    "coverage": ("--repeats", "4", "one seed, one answer"),
    "sandbox": ("--programs", "20", "--workers", "1"),
}  # fmt: skip
TOLD = ("engines", "fresh", "grading", "loss_memory", "mismatch", "rollouts", "vs_trl")


def ending(stdout: str) -> dict:
    """The last line, an object with ratios that are numbers."""
    found = json.loads(stdout.rstrip("\n").splitlines()[-1])
    values = list(leaves(found["ratios"]))
    assert values and all(type(value) in (int, float) for value in values), found["ratios"]
    return found


def leaves(value):
    for inner in value.values() if isinstance(value, dict) else [value]:
        yield from leaves(inner) if isinstance(inner, dict) else [inner]


def recorded(name: str) -> dict:
    return json.loads((RECORDED / f"{name}.json").read_text())


def test_all_are_here_and_quoted_with_their_commands():
    scripts = {path.stem for path in BENCH.glob("*.py")} - {"facts"}
    assert scripts == {*RUN, *TOLD, *ELSEWHERE}
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    quoted = set(re.findall(r"python scripts/bench/(\w+)\.py", "\n".join(page.read_text("utf-8") for page in pages)))
    assert quoted == scripts
    for name in ELSEWHERE.values():
        assert 'found["ratios"]' in Path(__file__).with_name(f"{name}.py").read_text()


@pytest.mark.parametrize("name", RUN)
def test_it_ends_with_its_ratios(name, tmp_path, request):
    folder = request.getfixturevalue("data_dir") if any("{data}" in word for word in RUN[name]) else None
    words = [word.format(data=folder, tmp=tmp_path) for word in RUN[name]]
    command = [sys.executable, str(BENCH / f"{name}.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    CHECKS[name](ending(done.stdout))


def of_compare(found):
    compared, own = found["compare_12_runs_x_576_problems"], found["onpol_help"]
    assert found["ratios"]["compare over onpol --help"]["cpu"] == pytest.approx(compared["cpu"] / own["cpu"], abs=1e-3)


def of_corruption(found):
    part, ratios = found["in-domain"], found["ratios"]["in-domain"]
    assert part["sources"] == 6 and part["items"] > 0 and part["same_bytes_twice"]
    assert ratios["yield"] == pytest.approx(part["problems"] / 6, abs=1e-4)
    assert ratios["items that parse"] == ratios["items that signature_kept"] == ratios["corrupted that fail"] == 1


def of_coverage(found):
    mean, *_ = found["mean, min, max"]["one seed, one answer"]["score"]
    assert found["ratios"]["one seed, one answer"]["score"] == pytest.approx(mean / 0.95, abs=1e-4)


def of_sandbox(found):
    for kind in ("call", "assert", "stdin"):
        ratio = found[kind]["per_second"] / found["one_by_one"][kind]["per_second"]
        assert found["ratios"][kind]["per_second"] == pytest.approx(ratio, abs=1e-3)


CHECKS = {name: globals()[f"of_{name}"] for name in RUN}


@pytest.fixture
def tell(monkeypatch, capsys):
    """Runs a script's `main` with some of its functions replaced; the object at the end of its stdout."""

    def told(name, *words, **functions):
        monkeypatch.syspath_prepend(BENCH)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
        spec = importlib.util.spec_from_file_location(f"bench_{name}", BENCH / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        path = list(sys.path)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "path", path)
        for function, value in functions.items():
            assert hasattr(module, function)
            monkeypatch.setattr(module, function, value)
        module.main()
        return ending(capsys.readouterr().out)

    return told


def test_engines_tells_seconds_and_agreement(tell):
    before = recorded("engines")
    runs = {(run["method"], run["engine"], run["seed"]): run for run in before["runs"]}
    found = tell("engines", onpol=lambda *_: {}, train=lambda method, engine, seed, *_: runs[method, engine, seed])
    assert found["summary"] == before["summary"]
    wall = before["summary"]["rl"]["seconds"]["wall"]
    assert found["ratios"]["rl"]["seconds, vllm over hf"]["wall"] == wall["vllm"]["mean"] / wall["hf"]["mean"]
    within = [row["within_noise"] for of in before["summary"].values() for row in of["metrics"].values()]
    assert sum(within) == len(within) - 1  # as results/bench/README.md says
    assert [found["ratios"][method]["metrics within noise"] for method in ("rl", "opd")] == [1, pytest.approx(10 / 11)]


def test_fresh_tells_equal_verdicts(tell, data_dir):
    differ = iter([None, {"program": "second"}, None, None])
    found = tell(
        "fresh", "--data", str(data_dir), "--first", "398", "--last", "401",
        in_sandbox=lambda jobs, workers: ([{"status": "passed"}] * len(jobs), 0.5), compare=lambda *_: next(differ),
    )  # fmt: skip
    assert (found["programs"], found["agree"], found["ratios"]["equal verdicts"]) == (4, 3, 0.75)
    assert found["ratios"]["one by one over the sandbox, seconds"] == found["fresh_s"] / 0.5


def test_grading_tells_the_sandbox_over_one_by_one(tell):
    found = tell("grading", "--only", "asserts", "--workers", "1", ASSERTS=40)
    part = found["asserts"]
    assert found["ratios"] == {
        "asserts": {
            "sandbox over one by one, programs a second": part["per_s"] / part["one_by_one"]["per_second"]
        }
    }


def test_grading_tells_agreement_and_speed(tell):
    before = recorded("grading")
    before["edit400"]["problems"] = 400
    before["lcb"] = {
        name: before["lcb"][name] | {"answers": answers} for name, answers in (("v1", 240), ("v5", 111))
    }  # fmt: skip
    parts = {name: lambda options, name=name: before[name] for name in ("lcb", "trivial", "edit400")}
    found = tell("grading", "--only", ",".join(parts), PARTS=parts)
    assert found["ratios"]["trivial"] == {
        "official over ours, wall_s": before["trivial"]["ratio_wall_s"],
        "official over ours, cpu_s": before["trivial"]["ratio_cpu_s"],
    }
    v1 = found["ratios"]["v1"]
    assert (v1["ours equal to published"], v1["official equal to published"]) == (1 - 2 / 240, 1 - 3 / 240)
    assert found["ratios"]["edit400"] == {"originals that pass": 375 / 400, "corrupted that pass": 0}


def test_loss_memory_tells_each_route_over_plain(tell):
    before = recorded("loss_memory")
    rows = {
        (row["route"], row["entropy"]): row
        for part in ("log_probs_only", "with_entropy") for row in before[part]["raw"]
    }  # fmt: skip
    found = tell("loss_memory", run=lambda name, entropy, *_: rows[name, entropy], errors=lambda *_: [0.0, 0.0])
    for part in ("log_probs_only", "with_entropy"):
        assert "onpol" in found["ratios"][part]
        for route, ratios in found["ratios"][part].items():
            ratios.pop("gradient_error")
            assert ratios.items() <= before[part]["against_plain"][route].items()


def test_mismatch_tells_rounded_over_float32(tell):
    before = recorded("mismatch")
    found = tell("mismatch", child=lambda _, name, logits, *sizes: before["engines"][name][logits])
    assert found["ratios"]["hf"] == before["ratios"]["hf"]


def test_rollouts_tells_tokens_a_second_over_the_first_engine(tell):
    rows = {row["engine"]: row for row in [*recorded("rollouts")["batch_sizes"], *recorded("rollouts")["results"]]}
    found = tell("rollouts", write_model=lambda folder: None, child=lambda name, *_: dict(rows[name]))
    assert found["ratios"] == {"generate:512": 1, "hf": 2.74, "vllm": 2.4}


def test_vs_trl_tells_every_section_measured(tell):
    before = recorded("vs_trl")

    class Sides:
        def __init__(self, *words):
            pass

        def run(self, *words):
            return {}

    found = tell(
        "vs_trl", "sft:float32", "distil:float32", "--trl-python", "python", Sides=Sides, facts=lambda *_: {},
        check_losses=lambda *_: {"loss": 0.0}, section=lambda sides, name, *_: before["sections"][name],
    )  # fmt: skip
    assert found["ratios"] == {name: before["sections"][name]["ratios"] for name in ("sft:float32", "distil:float32")}
