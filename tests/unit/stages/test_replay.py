"""Saved rollouts: written, read back, and recomputed under other methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from onpol_cli.core.compose import compose
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.types import Finish, Grade, Outcome, Problem, Rollout
from onpol_cli.methods.base import Sample
from onpol_cli.runs.lookup import RunInfo, find_run
from onpol_cli.runs.rundir import RunDir
from onpol_cli.stages.gradients import gradient
from onpol_cli.stages.replay import load_policy, prepare, replay, run_replay, words_of
from onpol_cli.stages.rollout_log import ROLLOUTS, has_selected, read_selected, read_steps, rows_of, write_selected

PROMPT, COMPLETION = (10, 20, 30), (40, 50, 60, 70)


def group(rewards: list[float], logprobs: list[float], prompt: tuple[int, ...] = PROMPT) -> list[Sample]:
    """Samples of one prompt with given rewards, all with the same completion."""
    samples = []
    for number, reward in enumerate(rewards):
        rollout = Rollout("p", number, prompt, COMPLETION, tuple(logprobs), Finish.STOP, "text", 3)
        outcome = Outcome.PASSED if reward > 0 else Outcome.FAILED
        samples.append(Sample(Problem("p", "", None), prompt, COMPLETION, rollout, Grade(outcome, reward)))
    return samples


def words(folder: Path, runs: Path, *more: str) -> list[str]:
    """A configuration on the small model."""
    return [
        "experiment=none", f"paths.runs={runs}", f"model.path={folder}", "task.problems=2",
        "task.validation_problems=2",
        "learner.autocast=float32", "model.max_context=2048", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def exact_logprobs(policy_folder: Path) -> list[float]:
    """Log-probs of COMPLETION under the policy itself."""
    _, learner, _ = prepare(compose(words(policy_folder, Path("unused"), "method=rl")))
    return learner.logprobs([(PROMPT, COMPLETION)])[0].tolist()


def make_run(root: Path, folder: Path, groups: list[list[Sample]]) -> RunInfo:
    """A run that saved one step."""
    with RunDir.open(root / "rl-run", resume=False) as run:
        command = ["onpol", "train", "tutor", *words(folder, root, "method=rl", "rollout.save=true", "run.name=rl-run")]
        run.update_manifest(run="rl-run", status="done", command=command)
        run.append(ROLLOUTS, rows_of(0, groups))
    return find_run("rl-run", root)


def test_a_run_of_several_processes_is_replayed_in_one(tmp_path: Path) -> None:
    old = ["method=rl", "parallel=node8", "parallel.nproc=4", "seed=3"]
    info = RunInfo(tmp_path, {"command": ["onpol", "train", "tutor", *old, "run.name=rl-run"]})
    assert words_of(info, ["method.steps=1"]) == ["method=rl", "seed=3", "method.steps=1"]


def test_rollouts_come_back_as_they_were(tmp_path: Path) -> None:
    groups = [group([0.5, -0.2], [-1.0, -2.0, -3.0, -4.0])]
    problem = Problem("p", "the statement", None)
    (tmp_path / ROLLOUTS).write_text("".join(json.dumps(row) + "\n" for row in rows_of(7, groups)))
    (found,) = read_steps(tmp_path, {"p": problem})[7]
    assert [sample.rollout for sample in found] == [sample.rollout for sample in groups[0]]
    assert [sample.grade.reward for sample in found if sample.grade] == [0.5, -0.2]
    assert found[0].problem is problem


def test_a_step_made_again_after_a_resume_counts_once(tmp_path: Path) -> None:
    rows = rows_of(0, [group([0.1, 0.2], [-1.0] * 4)]) + rows_of(0, [group([0.3, 0.4], [-1.0] * 4)])
    (tmp_path / ROLLOUTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = read_steps(tmp_path, {})[0]
    assert [sample.grade.reward for sample in found if sample.grade] == [0.3, 0.4]


def test_what_was_selected_comes_back_in_its_order(tmp_path: Path) -> None:
    """A pair is the preferred answer and the other one, whichever was sampled first."""
    first, second = group([0.5, 0.1], [-1.0] * 4), group([0.2, 0.9], [-2.0] * 4)
    groups = [first[::-1], second, first[:1]]
    assert not has_selected(tmp_path)
    write_selected(tmp_path, groups)
    found = read_selected(tmp_path, {})
    assert has_selected(tmp_path) and [[s.rollout for s in pair] for pair in found] == [
        [s.rollout for s in pair] for pair in groups
    ]


def test_a_run_without_rollouts_says_how_to_save_them(tmp_path: Path) -> None:
    with pytest.raises(OnpolError, match=r"saved no rollouts\. Train with rollout\.save=true"):
        read_steps(tmp_path, {})


def test_new_overrides_replace_those_of_the_run() -> None:
    command = ["onpol", "train", "tutor", "method=rl", "seed=3", "run.name=x", "paths.runs=/elsewhere", "--resume"]
    info = RunInfo(Path("x"), {"command": command})
    assert words_of(info, ["method=opd", "tutor=y"]) == ["seed=3", "method=opd", "tutor=y"]


def test_equal_rewards_have_no_gradient_and_unequal_ones_do(
    tmp_path: Path, policy_folder: Path, exact_logprobs: list[float]
) -> None:
    flat = make_run(tmp_path / "flat", policy_folder, [group([0.1, 0.1], exact_logprobs)])
    tilted = make_run(tmp_path / "tilted", policy_folder, [group([0.1, -0.2], exact_logprobs, (5, 6))])
    config = compose(words(policy_folder, tmp_path, "method=rl"))
    assert replay(flat, config)[0]["grad_norm"] == 0.0
    assert replay(tilted, config)[0]["loss/policy_gradient"] == pytest.approx(0.0, abs=1e-6)


def test_under_a_tutor_that_is_the_policy_nothing_is_left(
    tmp_path: Path, policy_folder: Path, exact_logprobs: list[float]
) -> None:
    info = make_run(tmp_path, policy_folder, [group([0.1, -0.2], exact_logprobs)])
    for method in ("opd", "opd-exact"):
        (row,) = replay(info, compose(words(policy_folder, tmp_path, f"method={method}", f"tutor={policy_folder}")))
        assert row["kl/teacher"] == pytest.approx(0.0, abs=1e-5) and row["grad_norm"] < 1e-4
        assert row["policy"] == "exact" and row["rollouts"] == 2 and row["tokens"] == 8


def test_under_another_tutor_the_kl_is_that_of_its_logprobs(
    tmp_path: Path, policy_folder: Path, teacher_folder: Path, exact_logprobs: list[float]
) -> None:
    info = make_run(tmp_path, policy_folder, [group([0.1, -0.2], exact_logprobs)])
    _, teacher, _ = prepare(compose(words(teacher_folder, tmp_path, "method=rl")))
    theirs = teacher.logprobs([(PROMPT, COMPLETION)])[0]
    expected = float((torch.tensor(exact_logprobs) - theirs).mean())
    (row,) = replay(info, compose(words(policy_folder, tmp_path, "method=opd", f"tutor={teacher_folder}")))
    assert row["kl/teacher"] == pytest.approx(expected, abs=1e-4) and row["grad_norm"] > 0
    assert row["kl/mismatch"] == pytest.approx(0.0, abs=1e-6) and row["ratio/mean"] == pytest.approx(1.0, abs=1e-4)


def test_replaying_does_not_change_the_weights(
    policy_folder: Path, exact_logprobs: list[float], tmp_path: Path
) -> None:
    method, learner, _ = prepare(compose(words(policy_folder, tmp_path, "method=rl")))
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    groups = [group([0.1, -0.2], exact_logprobs)]
    first = gradient(learner, method.examples(groups))[1]
    assert torch.equal(first, gradient(learner, method.examples(groups))[1])
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())


def test_kept_states_give_the_policy_that_sampled(policy_folder: Path, tmp_path: Path) -> None:
    from onpol_cli.runs.checkpoint import step_folder, write_folder

    _, learner, _ = prepare(compose(words(policy_folder, tmp_path, "method=rl")))
    start = {name: value.clone() for name, value in learner.model.state_dict().items()}
    weights = {name: value + 1.0 for name, value in learner.model.named_parameters()}
    write_folder(
        step_folder(tmp_path / "state", 2),
        lambda folder: torch.save({"weights": weights}, folder / "learner.pt"),
    )
    name = next(iter(weights))
    assert load_policy(learner, tmp_path / "state", 2, start) == "exact"
    assert torch.equal(dict(learner.model.named_parameters())[name], weights[name])
    assert load_policy(learner, tmp_path / "state", 1, start) == "start"
    assert torch.equal(learner.model.state_dict()[name], start[name])


def test_json_names_run_method_and_steps(
    tmp_path: Path, policy_folder: Path, exact_logprobs: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path, policy_folder, [group([0.1, -0.2], exact_logprobs)])
    run_replay("rl-run", words(policy_folder, tmp_path), dry_run=False, as_json=True)
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (shown["run"], shown["method"]) == ("rl-run", "rl") and [row["step"] for row in shown["steps"]] == [0]


def passing(distances: list[float]) -> list[Sample]:
    """Passing samples of one prompt with unlike completions, at these distances."""
    samples = []
    for number, distance in enumerate(distances):
        completion = (*COMPLETION, 90 + number)
        rollout = Rollout("p", number, PROMPT, completion, (-1.0,) * 5, Finish.STOP, f"text {number}", 3)
        grade = Grade(Outcome.PASSED, 0.1, excess_levenshtein=distance)
        samples.append(Sample(Problem("p", "", None), PROMPT, completion, rollout, grade))
    return samples


@pytest.mark.parametrize("method", ["dpo", "rsft"])
def test_what_is_selected_from_saved_rollouts_goes_by_their_distance(
    method: str, tmp_path: Path, policy_folder: Path
) -> None:
    info = make_run(tmp_path, policy_folder, [passing([0.4, 0.0, 0.2])])
    config = compose(words(policy_folder, tmp_path, f"method={method}"))
    chosen = prepare(config)[0].select(read_steps(info.path, {})[0])
    assert chosen[0][0].rollout is not None and chosen[0][0].rollout.text == "text 1", "the smallest edit first"
    (row,) = replay(info, config)
    assert row["rollouts"] >= 1 and row["grad_norm"] > 0


def test_a_step_with_nothing_to_select_is_said_to_be_empty(
    tmp_path: Path, policy_folder: Path, exact_logprobs: list[float]
) -> None:
    info = make_run(tmp_path, policy_folder, [group([-0.2, -0.2], exact_logprobs)])
    (row,) = replay(info, compose(words(policy_folder, tmp_path, "method=dpo")))
    assert row["rollouts"] == 0


def test_the_teacher_of_a_replay_has_its_own_temperature(tmp_path: Path, policy_folder: Path) -> None:
    more = ("method=opsd", "rollout.sampling.temperature=0.7", "method.teacher_temperature=1.3")
    method, learner, _ = prepare(compose(words(policy_folder, tmp_path, *more)))
    assert learner.engine.temperature == 0.7 and method.context.policy.temperature == 1.3
