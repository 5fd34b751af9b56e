"""Verdicts on run directories with known effects, and on hand-made arrays."""

import json
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from comparison_runs import write_all, write_eval

from onpol_cli.comparison.claims import Kind, Statement, Verdict, load_claims
from onpol_cli.comparison.judge import combine, decide, judge, judge_statement
from onpol_cli.comparison.records import read_runs
from onpol_cli.comparison.scores import METRICS, Column, Scores
from onpol_cli.comparison.significance import compare_pair

PAPER = Path(__file__).parents[3] / "conf" / "claims" / "paper.yaml"


def verdict(
    kind: Kind, left: Sequence[float], right: Sequence[float], margin: float = 0.0, metric: str = "pass@1"
) -> Verdict:
    """The verdict on two rows of per-problem values."""
    num = np.array([left, right], dtype=float)
    column = Column(
        METRICS[metric], "b", 1.0, tuple(map(str, range(len(left)))), (("l", 0), ("r", 0)), num, np.ones_like(num), 1
    )
    return decide(Statement(kind, metric, "b", "l", "r", margin), compare_pair(column, "l", "r"))[0]


def mixed(passes: int, n: int = 200) -> list[float]:
    """`passes` ones, then zeros."""
    return [1.0] * passes + [0.0] * (n - passes)


@pytest.mark.parametrize(
    ("kind", "left", "right", "margin", "expected"),
    [
        (Kind.superiority, 160, 120, 0.0, Verdict.supported),
        (Kind.superiority, 120, 160, 0.0, Verdict.contradicted),
        (Kind.superiority, 121, 120, 0.0, Verdict.unresolved),
        (Kind.superiority, 160, 120, 0.3, Verdict.contradicted),
        (Kind.non_inferiority, 120, 120, 0.03, Verdict.supported),
        (Kind.non_inferiority, 100, 140, 0.03, Verdict.contradicted),
        (Kind.non_inferiority, 118, 120, 0.015, Verdict.unresolved),
        (Kind.equivalence, 120, 120, 0.03, Verdict.supported),
        (Kind.equivalence, 100, 140, 0.03, Verdict.contradicted),
        (Kind.equivalence, 116, 120, 0.03, Verdict.unresolved),
        (Kind.difference, 160, 120, 0.0, Verdict.supported),
        (Kind.difference, 121, 120, 0.0, Verdict.unresolved),
    ],
)
def test_rules(kind: Kind, left: int, right: int, margin: float, expected: Verdict) -> None:
    assert verdict(kind, mixed(left), mixed(right), margin) is expected


def test_lower_is_better_for_distance() -> None:
    rng = np.random.default_rng(0)
    small, large = rng.normal(0.05, 0.02, 100), rng.normal(0.4, 0.02, 100)
    assert verdict(Kind.superiority, list(small), list(large), metric="excess_levenshtein") is Verdict.supported
    assert verdict(Kind.superiority, list(large), list(small), metric="excess_levenshtein") is Verdict.contradicted
    assert (
        verdict(Kind.non_inferiority, list(small + 0.005), list(small), 0.02, "excess_levenshtein") is Verdict.supported
    )
    assert verdict(Kind.non_inferiority, list(large), list(small), 0.02, "excess_levenshtein") is Verdict.contradicted


def test_combining_statements() -> None:
    assert combine([Verdict.supported, Verdict.supported]) is Verdict.supported
    assert combine([Verdict.supported, Verdict.unresolved]) is Verdict.unresolved
    assert combine([Verdict.unresolved, Verdict.contradicted]) is Verdict.contradicted
    assert combine([Verdict.supported, Verdict.premise_not_met]) is Verdict.premise_not_met


def test_paper_claims_on_known_runs(tmp_path: Path) -> None:
    runs, _ = read_runs(write_all(tmp_path, seeds=(0, 1, 2), problems=80))
    judged = {one.claim.id: one for one in judge(load_claims(PAPER), Scores(runs))}
    assert judged["minimal-student-of-degraded-tutor"].verdict is Verdict.supported
    forgetting = judged["less-forgetting"].statements
    assert [one.verdict for one in forgetting[:2]] == [Verdict.supported, Verdict.supported]
    assert judged["faster-than-rl"].verdict is Verdict.supported
    razor = judged["razor"].statements[0]
    assert razor.n == 4 and razor.verdict is Verdict.unresolved, "three seeds of four methods are four points"
    for one in judged.values():
        for part in one.statements:
            assert part.p is None or (part.p_holm is not None and part.p_holm >= part.p)


def test_one_seed_says_so_and_curves_stay_open(tmp_path: Path) -> None:
    scores = Scores(read_runs(write_all(tmp_path, problems=30))[0])
    curve = judge_statement(Statement(Kind.curve, "entropy-half-step", "edit", "OPD from RL", "RL"), scores)
    assert curve.verdict is Verdict.unresolved
    assert "at least 2" in curve.note
    assert curve.effect is not None and curve.effect < 0
    paired = judge_statement(Statement(Kind.superiority, "pass@1", "edit", "RL", "base"), scores)
    assert "one seed" in paired.note


def test_premise_not_met(tmp_path: Path) -> None:
    scores = Scores(read_runs(write_all(tmp_path, problems=60))[0])
    # In these runs the base does not forget more than SFT, so nothing follows.
    premise = Statement(Kind.superiority, "forgetting", "forgetting", "SFT", "base")
    claim = Statement(Kind.superiority, "excess_levenshtein", "edit", "RL", "SFT", premise=premise)
    judged = judge_statement(claim, scores)
    assert judged.verdict is Verdict.premise_not_met
    assert judged.premise is not None and judged.premise.verdict is Verdict.contradicted


def test_absent_labels_and_benches_are_unresolved_with_a_reason(tmp_path: Path) -> None:
    scores = Scores(
        read_runs([write_eval(tmp_path, "base", 0, problems=8), write_eval(tmp_path, "RL", 0, problems=8)])[0]
    )
    absent = judge_statement(Statement(Kind.superiority, "pass@1", "edit", "GKD", "RL"), scores)
    assert absent.verdict is Verdict.unresolved
    assert "no run labelled GKD (have: base, RL)" in absent.note
    nowhere = judge_statement(Statement(Kind.superiority, "pass@1", "quixbugs", "rl", "Base"), scores)
    assert "No bench 'quixbugs'" in nowhere.note
    few = judge_statement(Statement(Kind.association, "kl/base_model", "edit"), scores)
    assert "are needed" in few.note


def test_a_real_model_is_the_base_of_claims_by_its_method(tmp_path: Path) -> None:
    paths = write_all(tmp_path, seeds=(0, 1, 2), problems=80)
    for path in paths:
        manifest = json.loads((path / "manifest.json").read_text())
        if manifest["label"] == "base":
            manifest["label"] = manifest["evaluates"]["label"] = "Qwen/Qwen3-4B"
            (path / "manifest.json").write_text(json.dumps(manifest))
    scores = Scores(read_runs(paths)[0])
    judged = {one.claim.id: one for one in judge(load_claims(PAPER), scores)}
    assert scores.base == "Qwen/Qwen3-4B"
    assert [one.verdict for one in judged["less-forgetting"].statements[:2]] == [Verdict.supported, Verdict.supported]


def averages(left: list[float | None], right: list[float | None]) -> Column:
    """Excess distances of passing answers; None: not passed."""
    num = np.array([[value or 0.0 for value in side] for side in (left, right)])
    den = np.array([[float(value is not None) for value in side] for side in (left, right)])
    names = tuple(map(str, range(len(left))))
    return Column(METRICS["excess_levenshtein"], "edit", 1.0, names, (("A", 0), ("B", 0)), num, den, 1)


@pytest.mark.parametrize(
    ("left", "right", "note"),
    [
        ([0.30, None, None], [None, 0.31, None], "fewer than two problems"),
        ([0.30, None, None], [0.31, 0.2, 0.1], "fewer than two problems"),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], "are all alike"),
    ],
)
@pytest.mark.parametrize("kind", [Kind.equivalence, Kind.non_inferiority])
def test_averages_without_spread_prove_nothing(kind: Kind, left: list, right: list, note: str) -> None:
    scores = MagicMock(labels=["A", "B"], base=None, headline=1.0)
    scores.bench.return_value, scores.column.return_value = "edit", averages(left, right)
    found = judge_statement(Statement(kind, "excess_levenshtein", "edit", "A", "B", 0.02), scores)
    assert found.verdict is Verdict.unresolved and note in found.note


def test_seeds_that_do_not_rise_are_not_left_out_of_the_judgement(tmp_path: Path) -> None:
    paths = write_all(tmp_path, seeds=(0, 1, 2), problems=8)
    statement = Statement(Kind.curve, "reward-jump", "edit", "OPD from RL", "RL")
    assert judge_statement(statement, Scores(read_runs(paths)[0])).verdict is Verdict.supported
    metrics = next(tmp_path.glob("train-opd-from-rl-s1")) / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    metrics.write_text("".join(json.dumps(row | {"reward/mean": -row["reward/mean"]}) + "\n" for row in rows))
    found = judge_statement(statement, Scores(read_runs(paths)[0]))
    assert found.verdict is Verdict.premise_not_met and "in 1 of 3 seeds" in found.note
