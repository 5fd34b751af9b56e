"""Sets of runs at the edges: one model, nothing passes, no edit bench, several answers, nothing trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from comparison_runs import write_eval, write_lines

from onpol_cli.comparison.compare import compare

pytestmark = pytest.mark.filterwarnings("error")
PAPER = Path(__file__).parents[3] / "conf" / "claims" / "paper.yaml"
Row = dict[str, Any]


def rewrite(path: Path, change: Callable[[Row], Row | None]) -> None:
    """Apply `change` to every line of samples.jsonl; None drops the line."""
    rows = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
    write_lines(path / "samples.jsonl", [new for row in rows if (new := change(row)) is not None])


def check(paths: list[Path]) -> dict[str, Any]:
    """Everything but the plots can be made and is strict JSON."""
    comparison = compare(paths, PAPER)
    comparison.terminal()
    for frames in comparison.sections.values():
        assert all(len(row) == len(frame.columns) for frame in frames for row in frame.rows)
    return dict(json.loads(json.dumps(comparison.json(), allow_nan=False)))


def test_one_model(tmp_path: Path) -> None:
    whole = check([write_eval(tmp_path, "base", 0, problems=5)])
    assert list(whole["models"]) == ["base"]
    assert "differences" not in whole
    assert {row["verdict"] for row in whole["claims"]} == {"unresolved"}


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_nothing_passes(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    paths = [write_eval(tmp_path, "RL", seed, problems=6) for seed in seeds]
    for path in paths:
        rewrite(path, lambda row: {**row, "outcome": "failed"})
    whole = check([*paths, write_eval(tmp_path, "SFT", 0, problems=6)])
    metrics = whole["models"]["RL"]["benches"]["tiny-edit-ood"]["metrics"]
    assert metrics["pass@1"]["value"] == 0.0
    assert metrics["pass@1"]["high"] > 0.0, "no pass of 6 does not prove a rate of 0"
    assert metrics["excess_levenshtein"]["value"] is None


def test_no_edit_bench(tmp_path: Path) -> None:
    paths = [write_eval(tmp_path, label, 0, problems=6) for label in ("base", "RL")]
    for path in paths:
        rewrite(path, lambda row: row if row["bench"] == "tiny-codegen" else None)
    comparison = compare(paths)
    (frame,) = comparison.sections["Scores"]
    assert frame.columns == ("model", "tiny-codegen")
    assert check(paths)["models"]["RL"]["benches"].keys() == {"tiny-codegen"}


def test_several_answers_a_problem(tmp_path: Path) -> None:
    paths = [write_eval(tmp_path, label, 0, problems=12, samples=3) for label in ("base", "RL")]
    whole = check(paths)
    row = next(r for r in whole["differences"] if r["metric"] == "pass@1" and r["bench"] == "tiny-codegen")
    assert row["test"] == "paired permutation"
    assert row["interval"] == "bootstrap over problems"


def test_without_training_runs_kl_or_updates(tmp_path: Path) -> None:
    paths = [write_eval(tmp_path, label, 0, problems=5, train=False) for label in ("base", "RL")]
    for path in paths:
        for name in ("kl.json", "update.json", "problems.jsonl", "config.yaml"):
            (path / name).unlink(missing_ok=True)
    assert not {"costs", "divergence", "update"} & set(check(paths))
    comparison = compare(paths)
    assert comparison.sections["Costs"] == []
    assert {"training", "costs", "forgetting-kl"}.isdisjoint(comparison.figures)


def test_unequal_seeds(tmp_path: Path) -> None:
    paths = [write_eval(tmp_path, "RL", seed, problems=20) for seed in (0, 1, 2)]
    paths += [write_eval(tmp_path, "SFT", seed, problems=20) for seed in (5, 6)]
    whole = check(paths)
    row = next(r for r in whole["differences"] if r["metric"] == "pass@1")
    assert row["seeds"] == {}
    assert row["p_seeds"] is None
    assert row["low"] < row["value"] < row["high"]
