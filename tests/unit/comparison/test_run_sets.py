"""Reading run directories, refusing bad sets, costs, forgetting."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from comparison_runs import write_all, write_eval, write_lines, write_train

from onpol_cli.comparison.compare import compare
from onpol_cli.comparison.compatible import check_compatible
from onpol_cli.comparison.forgetting import forgetting
from onpol_cli.comparison.ledger import by_label, costs, course, towards_tutor, trained_bench
from onpol_cli.comparison.records import read_runs, read_train
from onpol_cli.comparison.scores import Scores
from onpol_cli.comparison.significance import compare_pair
from onpol_cli.core.errors import OnpolError
from onpol_cli.stages.compare import CompareRequest, chosen


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


def test_gpu_seconds_count_the_gpus_of_the_run_where_it_says_so(tmp_path: Path) -> None:
    def gpu_seconds(**facts: object) -> float | None:
        path = write_train(tmp_path, "RL", 0, 4)
        file = path / "manifest.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "wall_s": 10.0, **facts}))
        (cost,) = costs(Scores([]), [read_train(path)])
        return cost.gpu_seconds

    eight = {"gpus": [f"card {number}" for number in range(8)]}
    assert gpu_seconds() is None and gpu_seconds(hardware={"gpus": []}) is None
    assert gpu_seconds(hardware=eight) == 80.0, "as runs before gpus_used were counted"
    assert gpu_seconds(hardware=eight, gpus_used=3) == 30.0
    assert gpu_seconds(hardware=eight, gpus_used=0) is None, "a run on the CPU of a machine with GPUs"


def test_the_way_to_the_tutor_is_validation_where_there_is_one_else_reward(tmp_path: Path) -> None:
    runs, _ = read_runs(write_all(tmp_path, problems=20, steps=40))
    found = {cost.label: cost.course for cost in costs(Scores(runs))}
    student, tutor = found["OPD from RL"], found["RL"]
    assert tutor is None and student is not None and student.measure == "validation Pass@1"
    assert student.goal == pytest.approx(0.7 + 0.12 * (1 - 2.718281828 ** (-0.08 * 35)))
    # 0.7 + 0.12 (1 - e^(-0.5 step)) passes that at the second validation after the first.
    assert student.reached is not None and student.reached["step"] == 10
    assert student.reached["scored"] == 11 * 12000
    for path in tmp_path.glob("train-*"):
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        write_lines(path / "metrics.jsonl", [{k: v for k, v in row.items() if "validation" not in k} for row in rows])
    again = Scores(read_runs(tmp_path.glob("eval-*"))[0])
    by_reward = {cost.label: cost.course for cost in costs(again)}["OPD from RL"]
    tutors = [a.reward for run in again.runs if run.label == "RL" for a in run.answers if a.bench == "tiny-edit-ood"]
    assert by_reward is not None and by_reward.measure == "reward"
    assert by_reward.goal == pytest.approx(sum(tutors) / len(tutors))


def test_without_a_bench_of_the_trained_task_nothing_is_said(tmp_path: Path) -> None:
    runs, _ = read_runs(write_all(tmp_path, problems=8))
    assert runs[3].train is not None
    config, metrics = "task:\n  families: all\n  name: elsewhere\n", [{"step": 0, "reward/mean": 1}]
    train = replace(runs[3].train, config=config, metrics=metrics)
    assert towards_tutor(replace(runs[3], train=train), Scores(runs)) is None
    known = replace(train, config="seed: 0\ntask:\n  data: null\n  name: tiny-codegen\nmodel:\n  name: x\n")
    assert trained_bench(known, Scores(runs)) == "tiny-codegen"


def test_pairing_does_not_depend_on_the_order_of_the_runs(tmp_path: Path) -> None:
    paths = write_all(tmp_path, seeds=(0, 1, 2), problems=20, train=False)
    scores = [Scores(read_runs(order)[0]) for order in (paths, paths[::-1])]
    straight, turned = (one.column("tiny-edit-ood", 1.0, "pass@1") for one in scores)
    assert straight is not None and turned is not None
    assert turned.seeds("RL") == [0, 1, 2]
    pairs = [compare_pair(column, "RL", "SFT") for column in (straight, turned)]
    assert pairs[0].p_seeds == pytest.approx(pairs[1].p_seeds) and pairs[0].p_seeds is not None
    assert pairs[0].estimate.by_seed == pairs[1].estimate.by_seed


def test_course_accumulates(tmp_path: Path) -> None:
    path = course(read_train(write_train(tmp_path, "OPD from RL", 0, 11)).metrics, "validation/tiny-edit/pass@1")
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


def test_problems_without_an_answer_count_as_not_solved(tmp_path: Path) -> None:
    path = write_eval(tmp_path, "SFT", 0, problems=10)
    rows = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
    kept = [row for row in rows if row["problem_id"] not in ("tiny-edit-ood/0", "tiny-edit-ood/1")]
    (path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    column = Scores(read_runs([path])[0]).column("tiny-edit-ood", 1.0, "pass@1")
    assert column is not None and column.counted("SFT") == 10
    passed = sum(row["outcome"] == "passed" for row in kept if row["bench"] == "tiny-edit-ood")
    assert column.num.sum() == passed and column.den.sum() == 10
    excess = Scores(read_runs([path])[0]).column("tiny-edit-ood", 1.0, "excess_levenshtein")
    assert excess is not None and excess.den.sum() == passed


def test_an_earlier_checkpoint_costs_what_was_spent_until_then(tmp_path: Path) -> None:
    path = write_eval(tmp_path, "RL", 0, problems=8, steps=30)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["evaluates"]["step"] = 10
    (path / "manifest.json").write_text(json.dumps(manifest))
    (cost,) = costs(Scores(read_runs([path])[0]))
    assert cost.steps == 10 and cost.tokens["generated"] == 10 * 12000
    assert cost.seconds["wall"] == pytest.approx(10 * (1.5 + 0.3 + 0.8 + 0.05))


def test_graded_answers_of_a_file_are_no_training_run(tmp_path: Path) -> None:
    own, file = write_eval(tmp_path, "RL", 0, problems=8), write_eval(tmp_path, "SFT", 0, problems=8)
    manifest = json.loads((file / "manifest.json").read_text())
    del manifest["evaluates"]
    (file / "manifest.json").write_text(json.dumps({**manifest, "answers": "answers.jsonl"}))
    with pytest.raises(OnpolError, match=r"graded answers of a file .* Leave it out"):
        read_runs([own, file])
    assert chosen(CompareRequest(runs_dir=tmp_path)) == [own]
