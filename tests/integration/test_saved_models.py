"""What a run leaves on disk: states and best weights that open as they are, and states where a run is stopped."""

import json
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from killed_worker import WORDS
from safetensors.torch import load_file
from test_killed import assert_equal, state, steady

from onpol_cli import cli
from onpol_cli.core.compose import compose
from onpol_cli.core.errors import OnpolError, RunFailed
from onpol_cli.learner.learner import Learner
from onpol_cli.learner.nonfinite import NonFinite
from onpol_cli.process import run as command_line
from onpol_cli.rollout.hf import HfEngine
from onpol_cli.runs.checkpoint import steps_saved, verify
from onpol_cli.runs.rundir import read_lines, read_manifest
from onpol_cli.sandbox import Sandbox
from onpol_cli.stages.build import find_checkpoint
from onpol_cli.stages.train import train_model

SFT = ("method=sft", "method.epochs=0", "method.batch=4", "task.problems=16", "learner.threads=1", "sandbox.workers=1")

STOPPED = r"Non-finite loss \(nan\) at step 2 over 4 .* micro-batch 1 \(problems .*The state after 1 step is saved"
SCORED = (
    *("method.steps=4", "optim.lr=1e-3", "run.validate_every=1", "run.save_every=1", "run.keep_last=4"),
    *("task.validation_problems=16", "rollout.sampling.max_new_tokens=96"),
)


def train(root: Path, name: str, *words: str, resume: bool = False) -> Path:
    """One run in this process."""
    config = compose([f"paths.runs={root}", f"run.name={name}", *words])
    return train_model(config, role="student" if config.tutor else "tutor", command=["test"], resume=resume)


def as_if_stopped(run: Path, name: str, after: int) -> Path:
    """A copy of a finished run that looks as if it had been killed between the state of `after` and the next."""
    copy = run.with_name(name)
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoint")
    for step in steps_saved(copy / "state"):
        if step > after:
            shutil.rmtree(copy / "state" / f"step-{step:07d}")
    manifest = read_manifest(copy)
    del manifest["finished_steps"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return copy


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """SFT with a validation and a state a step."""
    return train(tmp_path_factory.mktemp("scored"), "run", *SFT, *SCORED)


def rewards(run: Path) -> list[float]:
    return [row["validation/tiny-edit/reward"] for row in read_lines(run / "metrics.jsonl")]


def test_the_best_validation_is_kept_with_its_step_and_score(scored):
    scores = rewards(scored)
    assert len(set(scores)) > 1, "scores that do not differ have no best"
    best = read_manifest(scored)["best"]
    assert best == {"step": scores.index(max(scores)) + 1, "score": max(scores)}
    verify(scored / "best")
    kept = load_file(scored / "best" / "model.safetensors")
    same = load_file(scored / "state" / f"step-{best['step']:07d}" / "model" / "model.safetensors")
    assert_equal(kept, same)


def test_best_weights_can_be_left_out(tmp_path):
    words = ("method.steps=1", "run.validate_every=1", "task.validation_problems=2", "run.keep_best=false")
    run = train(tmp_path, "run", *SFT, *words, "rollout.sampling.max_new_tokens=8")
    assert not (run / "best").exists() and "best" not in read_manifest(run)


@pytest.mark.parametrize(("step", "former"), [(1, -9.0), (1, 9.0), (3, 9.0)])
def test_a_resumed_run_compares_with_the_best_so_far(scored, step, former):
    """And not with one of the steps that it makes again."""
    again = as_if_stopped(scored, f"again{step}{former}", 2)
    manifest = read_manifest(again) | {"best": {"step": step, "score": former}}
    (again / "manifest.json").write_text(json.dumps(manifest))
    train(scored.parent, again.name, *SFT, *SCORED, resume=True)
    later = rewards(scored)[2:]
    newest = {"step": 3 + later.index(max(later)), "score": max(later)}
    expected = {"step": 1, "score": 9.0} if step == 1 and former > 0 else newest
    assert read_manifest(again)["best"] == expected
    assert_equal(state(again, 4), state(scored, 4))


def test_every_state_opens_as_a_model(scored):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = scored / "state" / "step-0000002" / "model"
    verify(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    trained = state(scored, 2)["weights"]
    assert model.dtype == torch.bfloat16 and AutoTokenizer.from_pretrained(folder).eos_token is not None
    for name, value in model.named_parameters():
        assert torch.equal(value, trained[name].bfloat16()), name
    final = load_file(scored / "state" / "step-0000004" / "model" / "model.safetensors")
    assert_equal(final, load_file(scored / "checkpoint" / "model.safetensors"))


def test_models_of_a_run_are_known_as_its_own(scored):
    config, best = compose([]), read_manifest(scored)["best"]["step"]
    for place, label, name in (
        ("checkpoint", "SFT", "run"),
        ("best", f"SFT best (step {best})", "run-best"),
        ("state/step-0000003/model", "SFT step 3", "run-step-0000003"),
    ):
        found = find_checkpoint(str(scored / place), config)
        assert (found.label, found.name) == (label, name) and found.run is not None and found.run.path == scored


def test_a_state_is_evaluated(scored, tmp_path, capsys):
    model = scored / "state" / "step-0000003" / "model"
    words = ["eval", "--bench", "tiny-edit-ood", "--model", str(model), f"paths.runs={tmp_path}", "--json"]
    words += ["eval.problems=2", "eval.temperatures=[1.0]", "eval.max_new_tokens=16", "eval.kl=false"]
    assert command_line(cli.app, [*words, "learner.threads=1", "sandbox.workers=1"]) == 0
    made = tmp_path / json.loads(capsys.readouterr().out)["run"]
    assert made.name.startswith("eval-run-step-0000003-") and read_manifest(made)["label"] == "SFT step 3"


def test_an_unfinished_run_names_what_can_be_opened(scored):
    copy = as_if_stopped(scored, "open", 3)
    with pytest.raises(OnpolError, match=r"Finish it with --resume, or name a folder of it: .*/open/best\."):
        find_checkpoint(str(copy), compose([]))
    shutil.rmtree(copy / "best")
    with pytest.raises(OnpolError, match=r"a folder of it: .*/open/state/step-0000003/model\."):
        find_checkpoint(str(copy), compose([]))


# ------------------------------------------------------------------------------------------- stopped runs


def test_a_monitor_stops_after_the_state_is_saved_and_a_resume_goes_on_bit_for_bit(tmp_path):
    words = [word for word in WORDS if not word.startswith(("method.steps", "run.save_every"))]
    words += ["method.steps=2", "monitor.entropy_floor=100"]
    whole = train(tmp_path, "whole", *words, "monitor.action=off", "run.save_every=2")
    for done in (1, 2):
        with pytest.raises(RunFailed, match=rf"Step {done - 1}: .*entropy_floor.*state after {done} steps? is saved"):
            train(tmp_path, "stopped", *words, "monitor.action=stop", resume=done > 1)
        assert steps_saved(tmp_path / "stopped" / "state")[-1] == done
    again = train(tmp_path, "stopped", *words, "monitor.action=stop", resume=True)
    assert_equal(state(again, 2), state(whole, 2))
    assert steady(again) == steady(whole)


def test_a_step_that_is_not_finite_leaves_the_state_before_it_and_a_dump_of_its_problems(tmp_path):
    words = (*SFT, "method.steps=4", "optim.lr=1e30", "optim.warmup=0.0")
    with pytest.raises(RunFailed, match=STOPPED):
        train(tmp_path, "run", *words)
    run = tmp_path / "run"
    dump = torch.load(run / "dump-step-2.pt", weights_only=True)
    assert (dump["step"], dump["what"]) == (2, "loss")
    (part,) = dump["micro_batches"]
    assert part["number"] == 1 and dump["problem_ids"] == list(dict.fromkeys(e["problem_id"] for e in part["examples"]))
    assert len(dump["problem_ids"]) > 1 and all(dump["problem_ids"])
    verify(run / "state" / "step-0000001", ["learner.pt"])
    with pytest.raises(RunFailed, match="at step 2"):  # it goes on from there, to the same end
        train(tmp_path, "run", *words, resume=True)


# ------------------------------------------------------------------------------------------- one batch ahead


def test_a_run_that_samples_one_batch_ahead_resumes_bit_for_bit(tmp_path):
    words = [word for word in WORDS if not word.startswith("method.steps")]
    words += ["method.steps=4", "rollout.max_off_policy_steps=1"]
    words += ["run.validate_every=2", "task.validation_problems=2"]  # which sends no weights again
    whole = train(tmp_path, "whole", *words)
    assert [row["rollout/staleness"] for row in read_lines(whole / "metrics.jsonl")] == [0, 1, 1, 1]
    again = as_if_stopped(whole, "again", 2)
    assert train(tmp_path, "again", *words, resume=True) == again
    assert steady(again) == steady(whole)
    assert_equal(state(again, 4), state(whole, 4))


def not_finite() -> None:
    raise NonFinite("Non-finite loss")


def second_ctrl_c() -> None:
    for _ in range(2):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("stop", "error"), [(not_finite, RunFailed), (second_ctrl_c, KeyboardInterrupt)])
def test_a_run_that_stops_closes_nothing_under_the_batch_that_is_being_made(tmp_path, monkeypatch, stop, error):
    busy, started, closed = [], threading.Event(), []
    generate, step = HfEngine.generate, Learner.step

    def slow(self, *args):
        ahead = threading.current_thread() is not threading.main_thread()
        if ahead:
            busy.append(1)
            started.set()
            time.sleep(1.0)
        rollouts = generate(self, *args)
        if ahead:
            busy.pop()
        return rollouts

    def stopped(self, examples):
        assert started.wait(60)
        stop()
        return step(self, examples)

    def watched(kind, close):
        return lambda self: (closed.append((kind.__name__, len(busy))), close(self))[1]

    monkeypatch.setattr(HfEngine, "generate", slow)
    monkeypatch.setattr(Learner, "step", stopped)
    for kind in (HfEngine, Sandbox):
        monkeypatch.setattr(kind, "close", watched(kind, kind.close))
    with pytest.raises(error):
        train(tmp_path, "run", *WORDS, "rollout.max_off_policy_steps=1")
    assert closed == [("HfEngine", 0), ("Sandbox", 0)]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("onpol-rollouts")]
