"""`onpol bench estimators`: the measures themselves, on a model of the smallest size."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from onpol_cli.core.compose import compose
from onpol_cli.core.config import MethodConfig, OpdSignal
from onpol_cli.core.errors import OnpolError
from onpol_cli.stages import build
from onpol_cli.stages.estimators import (
    FORWARD,
    K3,
    REVERSE,
    SAMPLED,
    Coverage,
    Frozen,
    against,
    estimators,
    examples_of,
    freeze,
    gradient_of,
    measure,
    run_estimators,
)


def words(policy: Path, teacher: Path) -> list[str]:
    """Four prompts, four short rollouts each."""
    return [
        "experiment=none", f"model.path={policy}", f"tutor={teacher}", "method=opd",
        "method.prompts=2", "method.group=4",
        "rollout.sampling.max_new_tokens=6", "model.max_context=2048", "task.problems=2", "learner.autocast=float32",
        "task.validation_problems=2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def frozen(policy_folder: Path, teacher_folder: Path) -> Frozen:
    """One batch of the policy, and the teacher."""
    config = compose(words(policy_folder, teacher_folder))
    with ExitStack() as stack:
        return freeze(config, build.find_checkpoint(str(teacher_folder), config), stack)


@pytest.fixture(scope="module")
def rows(frozen: Frozen) -> dict[str, dict[str, float]]:
    """All measures by name."""
    return {row["name"]: row for row in measure(frozen, compose(["method=opd"]))}


def test_the_exact_reverse_kl_is_the_yardstick(rows: dict[str, dict[str, float]]) -> None:
    assert rows[REVERSE]["cosine"] == pytest.approx(1.0) and rows[REVERSE]["norm"] == pytest.approx(1.0)
    assert rows[FORWARD]["cosine_forward"] == pytest.approx(1.0) and rows[FORWARD]["covered"] == 1.0


def test_more_of_the_vocabulary_covers_more(rows: dict[str, dict[str, float]]) -> None:
    masses = [rows[f"top-{k} reverse + tail"]["covered"] for k in (4, 16, 64)]
    assert 0 < masses[0] < masses[1] < masses[2] < 1


def test_the_sampled_token_is_noisier_and_lighter_than_the_exact_divergence(rows: dict[str, dict[str, float]]) -> None:
    assert rows[SAMPLED]["variance"] > rows[REVERSE]["variance"] >= 0
    assert rows[SAMPLED]["signal_mb"] < rows[REVERSE]["signal_mb"]


def test_top_k_of_the_whole_vocabulary_is_the_exact_divergence(frozen: Frozen) -> None:
    plain = MethodConfig(name="opd", teacher_coef=1.0)
    chosen = {item.name: item for item in estimators(plain)}
    exact = gradient_of(chosen[REVERSE], frozen, examples_of(chosen[REVERSE], frozen, frozen.groups))
    top = next(item for item in estimators(plain) if item.method.signal is OpdSignal.topk_reverse)
    top.method.topk = 10_000
    near = gradient_of(top, frozen, examples_of(top, frozen, frozen.groups))
    assert against(near, {REVERSE: exact, FORWARD: exact})["cosine"] == pytest.approx(1.0, abs=1e-3)


def test_k3_as_a_loss_trains_on_the_teachers_logprobs(frozen: Frozen) -> None:
    k3 = next(item for item in estimators(MethodConfig()) if item.name == K3)
    (example, *_) = examples_of(k3, frozen, frozen.groups)
    assert example.teacher_coef == 0 and example.reference_logprobs is not None and example.advantages is not None
    assert torch.equal(example.advantages, torch.zeros(len(example.completion_ids)))


def test_coverage_of_the_sampled_token_is_its_mean_probability(frozen: Frozen) -> None:
    pairs = [sample.ids for group in frozen.groups for sample in group]
    expected = float(torch.cat(frozen.learner.logprobs(pairs)).exp().mean())
    assert Coverage(frozen).of(MethodConfig(signal=OpdSignal.sampled)) == pytest.approx(expected)


def test_groups_that_cannot_be_split_are_refused(policy_folder: Path, teacher_folder: Path) -> None:
    overrides = [word for word in words(policy_folder, teacher_folder) if "group" not in word]
    with pytest.raises(OnpolError, match=r"method\.group=6 cannot be split: use a multiple of 4"):
        run_estimators([*overrides, "method.group=6"], dry_run=False, as_json=False)


def test_without_a_tutor_it_says_which_there_are(policy_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OnpolError, match="Which tutor"):
        run_estimators([f"paths.runs={tmp_path}"], dry_run=True, as_json=True)


def test_dry_run_prints_the_configuration(
    policy_folder: Path, teacher_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_estimators(words(policy_folder, teacher_folder), dry_run=True, as_json=True)
    assert json.loads(capsys.readouterr().out)["config"]["method"]["group"] == 4
