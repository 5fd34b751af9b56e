"""A resumed run goes on with the tutor, the start and the problems that it began with, or not at all."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_checkpoints_in_use import make_run

from onpol_cli.core.compose import compose
from onpol_cli.core.config import Config
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.files import write_json
from onpol_cli.runs.rundir import CONFIG, MANIFEST, RunDir, read_lines, read_manifest
from onpol_cli.stages import train
from onpol_cli.stages.build import hashes_of, model_hash
from onpol_cli.stages.evaluate import EvalRequest, evaluate
from onpol_cli.stages.session import check_same_origins
from onpol_cli.stages.train import train_model

SMALL = (
    "experiment=none", "task.problems=2", "method.steps=1", "method.prompts=1", "method.group=2", "method.batch=2",
    "run.save_every=1", "rollout.sampling.max_new_tokens=4", "model.max_context=2048", "sandbox.workers=1",
)  # fmt: skip


@pytest.fixture
def runs(tmp_path: Path, policy_folder: Path) -> Path:
    """Runs with one finished SFT tutor."""
    make_run(tmp_path, "sft-1", policy_folder)
    return tmp_path


def config(runs: Path, *words: str, name: str = "new") -> Config:
    return compose([f"paths.runs={runs}", f"run.name={name}", *SMALL, *words])


def interrupted(monkeypatch: pytest.MonkeyPatch, made: Config, role: str) -> Path:
    """A run that is stopped between its last state and its final weights."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "finish", stop)
        train_model(made, role=role, command=["test"])
    return Path(made.paths.runs) / made.run.name


def test_a_student_is_not_distilled_from_a_later_tutor(
    runs: Path, policy_folder: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("method=opd", f"model.path={policy_folder}", "tutor=latest:sft")
    run = interrupted(monkeypatch, config(runs, *words), "student")
    before, settings = read_manifest(run), (run / CONFIG).read_text()
    assert before["tutor"] == "sft-1" and before["tutors"] == {"": "sft-1"}
    make_run(runs, "sft-2", teacher_folder)
    for again in (words, (*words, "optim.lr=1e-9")):
        with pytest.raises(OnpolError) as refused:
            train_model(config(runs, *again), role="student", command=["test"], resume=True)
        assert str(refused.value) == (
            "Run new was started with other weights, problems or answers: tutor was sft-1, is sft-2. "
            "Give tutor=sft-1 run.name=new --resume, or choose another run.name."
        )
    assert read_manifest(run) == before and (run / CONFIG).read_text() == settings, "nothing was written"
    with pytest.raises(OnpolError, match=r"other settings: tutor\. "):
        train_model(config(runs, *words, "tutor=sft-2"), role="student", command=["test"], resume=True)
    train_model(config(runs, *words, "tutor=sft-1"), role="student", command=["test"], resume=True)
    after = read_manifest(run)
    assert after["status"] == "done" and after["tutor"] == "sft-1"
    assert after["hashes"] == before["hashes"] | {"model": model_hash(str(run / "checkpoint"))}


def test_adapters_do_not_land_on_a_later_base(
    runs: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("method=sft", "model.path=latest:sft", "model.lora.rank=2")
    run = interrupted(monkeypatch, config(runs, *words), "tutor")
    make_run(runs, "sft-2", teacher_folder)
    with pytest.raises(OnpolError, match=r"model\.path was sft-1, is sft-2\. Give model\.path=sft-1 run\.name=new "):
        train_model(config(runs, *words), role="tutor", command=["test"], resume=True)
    train_model(config(runs, *words, "model.path=sft-1"), role="tutor", command=["test"], resume=True)
    assert read_manifest(run)["status"] == "done"


def test_a_tutor_that_was_trained_again_under_its_name_is_another(
    runs: Path, policy_folder: Path, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("method=opd", f"model.path={policy_folder}", "tutor=sft-1")
    run = interrupted(monkeypatch, config(runs, *words), "student")
    shutil.rmtree(runs / "sft-1")
    make_run(runs, "sft-1", teacher_folder)
    told = f"problems or answers: tutor, changed since. Remove {run}, or choose another run.name."
    with pytest.raises(OnpolError, match=f"{re.escape(told)}$"):
        train_model(config(runs, *words), role="student", command=["test"], resume=True)


def test_a_finished_run_keeps_the_hash_of_its_weights_and_its_tutor(
    runs: Path, policy_folder: Path, teacher_folder: Path
) -> None:
    words = ("method=opd", f"model.path={policy_folder}", "tutor=latest:sft")
    run = train_model(config(runs, *words), role="student", command=["test"])
    before = read_manifest(run)["hashes"]
    train_model(config(runs, *words), role="student", command=["test"], resume=True)
    assert read_manifest(run)["hashes"] == before and before["model"] and before["start"] == before["tutor"][""]
    make_run(runs, "sft-2", teacher_folder)
    with pytest.raises(OnpolError, match="tutor was sft-1, is sft-2"):
        train_model(config(runs, *words), role="student", command=["test"], resume=True)


NEW = {
    "hashes": {"start": "b", "tutor": {"": "c", "math": "d"}},
    "tutors": {"": "later", "math": "m-2"},
    "start": {"path": "org/toy", "commit": "2"},
}


@pytest.mark.parametrize(
    ("old", "told"),
    [
        ({}, None),
        ({"tutor": "sft-1", "hashes": {"tutor": {"math": None}}}, None),
        ({"hashes": {"start": "b", "tutor": {"": "c", "math": "d"}, "model": "e"}}, None),
        ({"tutor": "sft-1", "hashes": {"tutor": {"": "a"}}}, r"tutor was sft-1, is later\. Give tutor=sft-1 run\.name"),
        (
            {"tutors": {"math": "m-1"}, "hashes": {"tutor": {"math": "a"}}},
            r"method\.tutors\.math was m-1, is m-2\. Give method\.tutors\.math=m-1 run\.name",
        ),
        (
            {"start": {"path": "org/toy", "commit": "1"}, "hashes": {"start": "a"}},
            r"Give model\.path=org/toy model\.revision=1 run\.name=run --resume",
        ),
        ({"hashes": {"start": "a"}}, r"model\.path, changed since\. Remove .*/run, or"),
    ],
    ids=["nothing recorded", "no weights then", "the same", "older version", "a domain's", "the hub's", "no name"],
)
def test_hashes_that_both_have_decide(tmp_path: Path, old: dict[str, Any], told: str | None) -> None:
    with RunDir.open(tmp_path / "run", resume=False) as run:
        write_json(run.path / MANIFEST, old)
        if told is None:
            check_same_origins(run, old, NEW)
        else:
            with pytest.raises(OnpolError, match=told):
                check_same_origins(run, old, NEW)


def test_a_folder_that_is_start_and_tutor_is_read_once(policy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onpol_cli.stages import build

    made = compose([f"model.path={policy_folder}"])
    read: list[str] = []
    monkeypatch.setattr(build, "model_hash", lambda path: read.append(path) or "hash")
    tutor = build.find_checkpoint(str(policy_folder), made)
    assert hashes_of(made, {"": tutor}) == {"start": "hash", "tutor": {"": "hash"}} and len(read) == 1
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert hashes_of(made, {"": tutor}) == {} and len(read) == 1, "followers record nothing"


def assess(runs: Path, model: str | None, *words: str, resume: bool = False) -> Path:
    made = config(runs, "eval.problems=2", "eval.max_new_tokens=4", "eval.kl=false", *words, name="e")
    made.eval.benches = ["tiny-codegen"]
    return evaluate(made, EvalRequest(made.eval.benches, model=model, resume=resume))[0]


def test_a_grading_goes_on_with_its_answers_only(tmp_path: Path) -> None:
    old = {"answers": "first.jsonl", "hashes": {"answers": "a"}}
    with RunDir.open(tmp_path / "run", resume=False) as run:
        told = r"answers: --answers was first\.jsonl, is second\.jsonl\. Give --answers first\.jsonl run\.name=run"
        with pytest.raises(OnpolError, match=told):
            check_same_origins(run, old, {"answers": "second.jsonl", "hashes": {"answers": "b"}})
        with pytest.raises(OnpolError, match=r"--answers, changed since\. Remove .*/run, or"):
            check_same_origins(run, old, {"answers": "first.jsonl", "hashes": {"answers": "b"}})
        check_same_origins(run, old, {"answers": "copy.jsonl", "hashes": {"answers": "a"}})


def test_an_evaluation_goes_on_with_its_model_and_problems_only(runs: Path, teacher_folder: Path) -> None:
    run = assess(runs, "latest:sft")
    before, rows = read_manifest(run), list(read_lines(run / "samples.jsonl"))
    make_run(runs, "sft-2", teacher_folder)
    for model in ("sft-2", "latest:sft"):
        with pytest.raises(OnpolError, match=r"--model was sft-1, is sft-2\. Give --model sft-1 run\.name=e --resume,"):
            assess(runs, model, resume=True)
    assert read_manifest(run) == before
    assert assess(runs, "sft-1", resume=True) == run and list(read_lines(run / "samples.jsonl")) == rows
    write_json(run / MANIFEST, before | {"hashes": before["hashes"] | {"data": {"tiny-codegen": "other"}}})
    with pytest.raises(OnpolError, match=r"problems of tiny-codegen, changed since\. Remove .*/e, or choose"):
        assess(runs, "sft-1", resume=True)
