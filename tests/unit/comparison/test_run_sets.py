"""Reading run directories, refusing bad sets, costs, forgetting."""

import json
from pathlib import Path

import pytest
from comparison_runs import write_all, write_eval, write_lines, write_train

from onpol_cli.comparison.compare import compare
from onpol_cli.comparison.compatible import check_compatible
from onpol_cli.comparison.forgetting import forgetting
from onpol_cli.comparison.ledger import by_label, costs, course
from onpol_cli.comparison.records import read_runs, read_train
from onpol_cli.comparison.scores import Scores
from onpol_cli.core.errors import OnpolError


def change_manifest(path: Path, key: str, value: object) -> None:
    """Set one dotted entry of a manifest."""
    manifest = json.loads((path / "manifest.json").read_text())
    place = manifest
    *above, last = key.split("/")
    for name in above:
        place = place[name]
    place[last] = value
    (path / "manifest.json").write_text(json.dumps(manifest))


def two(tmp_path: Path) -> list[Path]:
    """Base and RL."""
    return [write_eval(tmp_path, label, 0, problems=6, steps=12) for label in ("base", "RL")]


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("eval_settings/max_new_tokens", 512, "max_new_tokens: 192 in eval-base-s0, 512 in eval-rl-s0"),
        ("eval_settings/seed", 1, "seed: 1234"),
        ("eval_settings/top_p", 0.8, "top_p: None in eval-base-s0, 0.8"),
        ("hashes/data/tiny-codegen", "zz", "data of tiny-codegen: bb"),
    ],
)
def test_differences_are_refused_by_name(tmp_path: Path, key: str, value: object, named: str) -> None:
    paths = two(tmp_path)
    change_manifest(paths[1], key, value)
    with pytest.raises(OnpolError, match=named) as caught:
        compare(paths)
    assert "--force" in str(caught.value)
    forced = compare(paths, force=True)
    assert any(named.split(":")[0] in warning for warning in forced.warnings)


def test_which_benches_were_run_may_differ(tmp_path: Path) -> None:
    paths = two(tmp_path)
    change_manifest(paths[1], "eval_settings/benches", ["tiny-edit-ood"])
    assert check_compatible(read_runs(paths)[0]) == []


def test_interrupted_evaluation_and_doubles_are_refused(tmp_path: Path) -> None:
    paths = two(tmp_path)
    rows = (paths[1] / "samples.jsonl").read_text().splitlines()
    (paths[1] / "samples.jsonl").write_text("\n".join(rows[:-1]) + "\n")
    with pytest.raises(OnpolError, match="answers of tiny-codegen: 6 problems, 6 answers"):
        compare(paths)
    change_manifest(paths[1], "evaluates/label", "base")
    with pytest.raises(OnpolError, match="evaluated twice: eval-base-s0 and eval-rl-s0"):
        compare(paths)
    assert [run.name for run in compare(paths, force=True).scores.runs] == ["eval-rl-s0"]


def test_unusable_paths(tmp_path: Path) -> None:
    with pytest.raises(OnpolError, match="not a run directory"):
        compare([tmp_path / "nowhere"])
    with pytest.raises(OnpolError, match="Nothing to compare"):
        compare([write_train(tmp_path, "RL", 0, 5)])
    path = write_eval(tmp_path, "base", 0, problems=2)
    rows = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
    write_lines(path / "samples.jsonl", [{**rows[0], "outcome": "maybe"}])
    with pytest.raises(OnpolError, match=r"line 1: outcome 'maybe'; allowed: error, failed"):
        compare([path])
    del rows[0]["reward"]
    write_lines(path / "samples.jsonl", rows)
    with pytest.raises(OnpolError, match="line 1: no reward"):
        compare([path])
    write_lines(path / "samples.jsonl", [])
    with pytest.raises(OnpolError, match="no graded answers"):
        compare([path])


def test_unknown_format(tmp_path: Path) -> None:
    with pytest.raises(OnpolError, match="Unknown format 'xlsx'; allowed: csv"):
        compare(two(tmp_path), formats=["xlsx"])


def test_training_run_is_found_beside_a_moved_evaluation(tmp_path: Path) -> None:
    old = tmp_path / "old"
    write_eval(old, "RL", 0, problems=3)
    old.rename(tmp_path / "new")
    runs, _ = read_runs([tmp_path / "new" / "eval-rl-s0"])
    assert runs[0].train is not None
    assert runs[0].train.path == tmp_path / "new" / "train-rl-s0"


def test_ledger_sums_and_means(tmp_path: Path) -> None:
    runs, extra = read_runs(
        [*write_all(tmp_path, seeds=(0, 1), problems=8, steps=20), write_train(tmp_path, "RL", 9, 4)]
    )
    found = costs(Scores(runs), extra)
    assert [cost.run for cost in found][-1] == "train-rl-s9"
    table = {row["model"]: row for row in by_label(found)}
    assert table["OPD from SFT"]["tokens_scored"] == 20 * 12000
    assert table["RL"]["runs"] == 3
    assert table["RL"]["steps"] == pytest.approx((20 + 20 + 4) / 3)
    assert table["SFT"]["tokens_scored"] == 0
    assert table["OPD from SFT"]["seconds_train"] == pytest.approx(16.0)
    assert table["SFT"]["reached_tutor"] is None
    assert table["OPD from RL"]["reached_tutor"] in ("0/2", "1/2", "2/2")


def test_course_accumulates(tmp_path: Path) -> None:
    path = course(read_train(write_train(tmp_path, "OPD from RL", 0, 11)).metrics, "tiny-edit-ood")
    assert list(path["step"]) == [0, 5, 10]
    assert list(path["generated"]) == [12000, 72000, 132000]
    assert path["seconds"][0] == pytest.approx(2.85)


def test_forgetting_names_problems(tmp_path: Path) -> None:
    base, trained = (write_eval(tmp_path, label, 0, problems=5, train=False) for label in ("base", "SFT"))
    for path, passes in ((base, {0, 1, 2}), (trained, {0, 4})):
        rows = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
        for row in rows:
            ok = int(row["problem_id"].rsplit("/", 1)[1]) in passes
            row["outcome"] = "passed" if ok else "failed"
        write_lines(path / "samples.jsonl", rows)
    (found,) = forgetting(Scores(read_runs([base, trained])[0]))
    assert found.lost == ("tiny-codegen/1", "tiny-codegen/2")
    assert found.won == ("tiny-codegen/4",)
    assert found.change.estimate.value == pytest.approx(-0.2)
    assert found.change.test == "exact McNemar"
