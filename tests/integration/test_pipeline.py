"""Tutor, student, evaluation, comparison: through the command line's own functions, on the shipped base."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from needed import wait_for

from onpol_cli.core.compose import compose
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.runs.rundir import read_lines, read_manifest
from onpol_cli.stages import build
from onpol_cli.stages.rollout_log import read_selected
from onpol_cli.stages.train import Workbench, train_model
from onpol_cli.training.sources import DatasetSource

SMALL = ["task.problems=24", "learner.threads=1", "sandbox.workers=1"]
POLICY = ["method.prompts=3", "method.group=2", "rollout.sampling.max_new_tokens=32"]
VOLATILE = ("time/", "memory/", "rate/")


def config(root: Path, *words: str):
    return compose([f"paths.runs={root}", *SMALL, *words])


def steady(run: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith(VOLATILE)} for row in read_lines(run / "metrics.jsonl")]


def train(root: Path, name: str, *words: str, role: str = "tutor", resume: bool = False) -> Path:
    return train_model(config(root, f"run.name={name}", *words), role=role, command=["test"], resume=resume)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def tutor(root):
    return train(root, "tutor", "method=sft", "method.steps=3", "method.epochs=0", "method.batch=4")


def test_tutor_leaves_a_complete_run(tutor):
    manifest = read_manifest(tutor)
    assert manifest["status"] == "done" and manifest["label"] == "SFT" and manifest["model_role"] == "tutor"
    assert {"config.json", "model.safetensors", "tokenizer.json", "hashes.json"} <= {
        item.name for item in (tutor / "checkpoint").iterdir()
    }
    assert [row["step"] for row in steady(tutor)] == [0, 1, 2]
    assert not any("PATH" in str(value) and "HOME" in str(value) for value in manifest.values())


def test_student_of_the_tutor(root, tutor):
    run = train(root, "student", "method=opd", "tutor=latest:sft", "method.steps=2", *POLICY, role="student")
    manifest = read_manifest(run)
    assert manifest["label"] == "OPD from SFT" and manifest["tutor"] == "tutor"
    rows = steady(run)
    assert all(row["tokens/scored"] > row["tokens/generated"] > 0 for row in rows)
    assert all(row.keys() >= {"entropy", "kl/teacher", "kl/mismatch", "reward/mean", "length/mean"} for row in rows)


WATCHED = {
    "grad_norm", "ratio/mean", "ratio/p01", "ratio/p99", "ratio/masked_share", "ratio/truncated_share",
    "signal/clipped_share", "kl/mismatch", "kl/teacher", "kl/reference", "entropy", "length/mean", "length/max",
    "rate/train_tokens_per_s", "rate/generated_tokens_per_s", "rate/mfu", "memory/peak_mb", "lr", "loss/total",
    "time/generate", "time/grade", "time/score", "time/train", "time/sync", "time/step",
    "tokens/generated", "tokens/scored", "tokens/trained", "tokens/padding_share",
}  # fmt: skip


def test_everything_that_is_to_be_watched_is_in_the_metrics(root, tutor):
    words = ["method=rl_opd", "tutor=tutor", "method.steps=1", "method.signal_clip=2", "method.reference_kl=0.1"]
    run = train(root, "watched", *words, *POLICY, role="student")
    (row,) = read_lines(run / "metrics.jsonl")
    assert row.keys() >= WATCHED
    assert 0 < row["rate/mfu"] < 1.5 and row["rate/train_tokens_per_s"] > 0 and row["rate/generated_tokens_per_s"] > 0


@pytest.mark.parametrize("method", ["rl", "opd-exact", "rl_opd", "gkd", "opsd"])
def test_every_policy_method_steps(root, tutor, method):
    run = train(
        root,
        f"m-{method}",
        f"method={method}",
        "tutor=tutor",
        "method.steps=1",
        "method.batch=4",
        *POLICY,
        role="student",
    )
    (row,) = read_lines(run / "metrics.jsonl")
    assert row["tokens/trained"] > 0 and "grad_norm" in row
    assert row["entropy"] > 0
    if row.get("mixture/on_policy", 1.0):
        assert row["kl/mismatch"] < 1e-4
    assert method == "rl" or (row["tokens/scored"] > 0 and row["time/score"] > 0 and "kl/teacher" in row)


def test_the_reference_penalty_reaches_exact_signals(root, tutor):
    words = ["method=opd-exact", "tutor=tutor", "method.steps=2", *POLICY]
    free, held = (
        steady(train(root, f"exact-{weight}", *words, f"method.reference_kl={weight}", role="student"))
        for weight in (0, 100)
    )
    assert "kl/reference" not in free[0] and free[0]["loss/total"] == free[0]["loss/divergence"]
    assert held[0]["kl/reference"] == pytest.approx(0.0, abs=1e-9), "the reference is the start"
    assert held[1]["kl/reference"] > 0
    assert held[1]["loss/reference_kl"] == pytest.approx(100 * held[1]["kl/reference"])
    assert held[1]["grad_norm"] > 2 * free[1]["grad_norm"]


@pytest.mark.parametrize("method", ["rsft", "dpo"])
def test_tutors_from_base_samples(root, method):
    words = ["task.problems=12", "method.group=4", "method.steps=2", "method.epochs=0", "method.batch=2"]
    run = train(root, f"m-{method}", f"method={method}", *words)
    rows = steady(run)
    assert [row["step"] for row in rows] == [-1, 0, 1]
    assert rows[0]["tokens/generated"] > 0


def breaking_at(last: int):
    """`DatasetSource.groups` that fails at step `last`."""
    whole = DatasetSource.groups

    def groups(self, step):
        if step == last:
            raise RunFailed("broken on purpose")
        return whole(self, step)

    return groups


@pytest.mark.parametrize(("method", "batch"), [("rsft", 4), ("dpo", 1)])
def test_what_was_selected_sets_steps_and_rates_and_is_kept_for_a_resume(root, monkeypatch, method, batch):
    """A sampler need not give the same answers again (a GPU's does not), and the run's place counts on them."""
    words = [f"method={method}", "task.problems=24", "method.group=4", "method.steps=0", "method.epochs=1"]
    words += [f"method.batch={batch}", "optim.schedule=cosine", "optim.warmup=0", "optim.lr=1e-4", "run.save_every=2"]
    whole = train(root, f"selected-{method}", *words)
    rates = [row["lr"] for row in steady(whole) if row["step"] >= 0]
    steps = read_manifest(whole)["planned_steps"]
    assert len(rates) == steps != 24 // batch, "as many as problems would prove nothing"
    assert rates == pytest.approx([1e-4 * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)])
    assert {len(group) for group in read_selected(whole, {})} == ({2} if method == "dpo" else {1})
    name = f"selected-{method}-broken"
    with monkeypatch.context() as patch, pytest.raises(RunFailed, match="broken on purpose"):
        patch.setattr(DatasetSource, "groups", breaking_at(3))
        train(root, name, *words)
    with monkeypatch.context() as patch:
        patch.setattr(Workbench, "sample", lambda *_: pytest.fail("sampled again"))
        patch.setattr(build, "engine_for", lambda *_: pytest.fail("a sampler was made for nothing"))
        resumed = train(root, name, *words, resume=True)
    assert read_manifest(resumed)["planned_steps"] == steps and steady(resumed) == steady(whole)
    assert build.model_hash(str(resumed / "checkpoint")) == build.model_hash(str(whole / "checkpoint"))


def test_same_seed_same_metrics(root, tutor):
    words = ["method=rl", "method.steps=2", *POLICY]
    first, second = (steady(train(root, f"same-{i}", *words)) for i in (1, 2))
    assert first == second
    other = steady(train(root, "same-3", *words, "seed=1"))
    assert other != first


def test_existing_run_is_refused_and_left_alone(root, tutor):
    before = (tutor / "manifest.json").read_text()
    with pytest.raises(OnpolError, match="exists already"):
        train(root, "tutor", "method=sft")
    assert (tutor / "manifest.json").read_text() == before


def test_resume_with_other_settings_is_refused(root, tutor):
    with pytest.raises(OnpolError, match=r"other settings: method\.batch"):
        train(root, "tutor", "method=sft", "method.steps=3", "method.epochs=0", "method.batch=5", resume=True)


def test_tutor_with_another_tokenizer_is_refused(root, tutor, tmp_path):
    import shutil

    foreign = tmp_path / "foreign"
    shutil.copytree(tutor / "checkpoint", foreign)
    (foreign / "hashes.json").unlink()
    file = foreign / "chat_template.jinja"
    file.write_text(file.read_text() + " ")
    with pytest.raises(OnpolError, match="chat templates differ"):
        train(root, "bad", "method=opd", f"tutor={foreign}", "method.steps=1", *POLICY, role="student")


def test_damaged_tutor_is_refused(root, tutor, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tutor / "checkpoint", broken)
    weights = broken / "model.safetensors"
    blob = bytearray(weights.read_bytes())
    blob[-100] ^= 1
    weights.write_bytes(bytes(blob))
    with pytest.raises(OnpolError, match=r"model\.safetensors does not match"):
        train(root, "bad2", "method=opd", f"tutor={broken}", "method.steps=1", *POLICY, role="student")


def test_missing_tutor_lists_those_found(root, tutor):
    with pytest.raises(OnpolError, match=r"Which tutor\?.*tutor"):
        train(root, "bad3", "method=opd", role="student")


def onpol(root: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "onpol_cli.cli", *words, f"paths.runs={root}", *SMALL]


STEPS = ["method.steps=8", "run.save_every=1", "method.epochs=0", "method.batch=4"]


def spawn(root: Path, name: str, *more: str, resume: bool = False) -> subprocess.Popen:
    words = [
        *onpol(root, "train", "tutor", "method=sft", *STEPS, f"run.name={name}", *more),
        *(["--resume"] if resume else []),
    ]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_step(process: subprocess.Popen, run: Path, step: int) -> None:
    wait_for(lambda: sum(1 for _ in read_lines(run / "metrics.jsonl")) >= step, process, 240)


@pytest.mark.parametrize("words", [["method=opd", "tutor=tutor"], ["method=sft", "run.validate_every=2"]])
def test_a_sampler_that_is_not_the_policy_stops_the_run_with_its_state(root, tutor, monkeypatch, words):
    """After the update or before a validation: the weights are right, only the sampler is not."""
    from onpol_cli.rollout import health

    real, name = health.mismatch, "unlike-" + words[0].removeprefix("method=")
    words = [*words, "method.steps=3", "method.epochs=0", "method.batch=4", *POLICY, "run.save_every=0"]
    role = "student" if "tutor=tutor" in words else "tutor"
    canaries = []

    def off(rollouts, other):
        found = real(rollouts, other)
        if max(len(rollout.completion_ids) for rollout in rollouts) > health.CANARY_TOKENS:
            return found  # what is measured besides
        canaries.append(found)
        return found if len(canaries) < 2 and role == "student" else replace(found, largest=0.5)

    monkeypatch.setattr(health, "mismatch", off)
    with pytest.raises(RunFailed, match=r"Canary after weight sync .*0\.5 nats.* The state after 2 steps is saved\."):
        train(root, name, *words, role=role)
    monkeypatch.undo()
    assert [row["step"] for row in steady(root / name)] == [0, 1]
    assert [folder.name for folder in (root / name / "state").iterdir()] == ["step-0000002"]
    train(root, name, *words, role=role, resume=True)
    assert [row["step"] for row in steady(root / name)] == [0, 1, 2]


@pytest.fixture(scope="module")
def whole(root):
    return train(root, "whole", "method=sft", *STEPS)


def same_end(run: Path, whole: Path) -> None:
    assert (run / "checkpoint/model.safetensors").read_bytes() == (whole / "checkpoint/model.safetensors").read_bytes()
    assert steady(run) == steady(whole)


def test_signals_save_and_a_run_resumed_after_them_and_a_kill_ends_alike(root, whole):
    """Kills at random moments: test_killed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        done = len(steady(root / "stopped"))
        process = spawn(root, "stopped", resume=done > 0)
        wait_for_step(process, root / "stopped", done + 1)
        os.killpg(process.pid, number) if number is signal.SIGKILL else os.kill(process.pid, number)
        _, errors = process.communicate(timeout=240)
        assert process.returncode == (-number if number is signal.SIGKILL else 130), errors
        if number is not signal.SIGKILL:
            assert read_manifest(root / "stopped")["status"] == "interrupted"
        assert len(steady(root / "stopped")) < 8, "it was over before it was stopped"
    again = spawn(root, "stopped", resume=True)
    _, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    same_end(root / "stopped", whole)


def test_json_of_a_training_run_is_one_object(root):
    words = onpol(root, "train", "tutor", "method=sft", "method.steps=1", "method.batch=2", "run.name=json", "--json")
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == "json"
