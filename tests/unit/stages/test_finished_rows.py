"""What of a reproduction may be kept: runs of the same settings and weights."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from test_checkpoints_in_use import make_run

from onpol_cli.core.compose import compose, to_yaml
from onpol_cli.core.errors import OnpolError
from onpol_cli.runs.checkpoint import write_folder
from onpol_cli.runs.lookup import RunInfo
from onpol_cli.runs.rundir import CONFIG, RunDir, read_manifest
from onpol_cli.stages.build import model_hash
from onpol_cli.stages.finished import check_settings, check_training, other_settings
from onpol_cli.stages.reproduce import Job, ReproduceRequest, existing, plan, run_job, run_reproduction

SMALL = (
    "task.problems=2", "method.steps=1", "method.epochs=0", "method.prompts=1", "method.group=2", "method.batch=2",
    "rollout.sampling.max_new_tokens=4", "model.max_context=2048", "sandbox.workers=1", "matrix.jobs=1",
    "eval.problems=2", "eval.benches=[tiny-codegen]", "eval.temperatures=[1.0]", "eval.max_new_tokens=4",
    "eval.kl=false",
)  # fmt: skip


def jobs_of(root: Path, *words: str, only: str | None = None) -> list[Job]:
    request = ReproduceRequest("tiny", [f"paths.runs={root}", *words], only=only)
    return plan(request, compose(["experiment=tiny", *request.overrides]))


def pretend(root: Path, job: Job, status: str = "done", **facts: object) -> None:
    """Runs of `job` as its words would leave them, without any work."""
    for name in filter(None, (job.train_name, job.eval_name)):
        role = "evaluation" if name == job.eval_name else "tutor"
        with RunDir.open(root / name, resume=False) as run:
            (run.path / CONFIG).write_text(to_yaml(compose([*job.words, f"run.name={name}"])), encoding="utf-8")
            run.update_manifest(run=name, status=status, model_role=role, **facts)


def copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, dirs_exist_ok=True)


OTHER = {
    "model.path=/b": r"model\.path \(/a, now /b\)",
    "optim.lr=2e-3": r"optim\.lr \(0\.001, now 0\.002\)",
    "method.steps=9": r"method\.steps \(1, now 9\)",
}


def test_rows_of_other_settings_are_not_kept(tmp_path: Path) -> None:
    words = ("model.path=/a", "optim.lr=1e-3", "method.steps=1")
    (sft,) = jobs_of(tmp_path, *words, only="sft")
    pretend(tmp_path, sft)
    run_job(sft)
    place = re.escape(f"{tmp_path}/tiny-sft-s0")
    for word, told in OTHER.items():
        request = ReproduceRequest("tiny", [f"paths.runs={tmp_path}", *words, word], only="sft")
        with pytest.raises(OnpolError, match=rf"^{place} and 1 more: made with other settings: {told}\. .*OTHER/runs"):
            run_reproduction(request)
        with pytest.raises(OnpolError, match=rf"^{place}: made with other settings: {told}\. "):
            run_job(jobs_of(tmp_path, *words, word, only="sft")[0])


def test_unfinished_rows_are_told_of_before_any_starts(tmp_path: Path) -> None:
    (sft,) = jobs_of(tmp_path, "method.steps=1", only="sft")
    pretend(tmp_path, sft, status="interrupted")
    changed = jobs_of(tmp_path, "method.steps=9", only="sft")
    with pytest.raises(OnpolError, match=r"tiny-sft-s0 and 1 more: made with other settings: method\.steps \(1, now 9"):
        check_settings(existing(changed, tmp_path))
    check_settings(existing(jobs_of(tmp_path, "method.steps=1", "optim.lr=1e-9", only="sft"), tmp_path))


def test_what_does_not_change_a_row_does_not_forbid_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs, monitors, another spelling of the folder; evaluation for what is trained; a rate that got it going."""
    monkeypatch.chdir(tmp_path)
    words = ("optim.lr=1e-3",)
    sft, student = jobs_of(tmp_path / "runs", *words, only="opd-sft")
    for job in (sft, student):
        pretend(tmp_path / "runs", job)
    free = ("monitor.action=off", "rollout.canary_tolerance=0.9", "sandbox.workers=1", "matrix.seeds=[0,1]")
    check_settings(existing(jobs_of(Path("runs"), *words, *free, only="opd-sft"), Path("runs")))
    info = RunInfo(tmp_path / "runs" / sft.train_name, {"status": "done"})
    assert other_settings(info, compose([*sft.words, "eval.samples=4"])) == {}
    assessed = RunInfo(tmp_path / "runs" / sft.eval_name, {"status": "done", "model_role": "evaluation"})
    assert list(other_settings(assessed, compose([*sft.words, "eval.samples=4"]))) == ["eval.samples"]
    later = compose([*sft.words, "optim.lr=1e-5"])
    assert other_settings(info, later) == {"optim.lr": (1e-3, 1e-5)}
    taken = {"status": "done", "changed_on_resume": ["optim.lr: 1e-05 -> 0.001"]}
    assert other_settings(RunInfo(info.path, taken), later) == {}


@pytest.mark.parametrize(
    ("word", "remedy"),
    [
        ("seed=7", r"Give matrix\.seeds=\[0,1\]\."),
        ("++seed=7", r"Give matrix\.seeds=\[0,1\]\."),
        ("method=rl", r"Choose rows by --only ROWS, or .*: 'matrix\.rows=\[\{name:rl,overrides:\[.method=rl.\]\}\]'\."),
        ("tutor=latest:sft", r"Name a row as tutor in matrix\.rows, or .*onpol distill student tutor=RUN\."),
    ],
)
def test_what_rows_say_themselves_is_refused(tmp_path: Path, word: str, remedy: str) -> None:
    for dry_run in (True, False):
        with pytest.raises(OnpolError, match=rf"^{re.escape(word)}: .* to every row\. {remedy}$"):
            run_reproduction(ReproduceRequest("tiny", [f"paths.runs={tmp_path}", word], dry_run=dry_run))
    assert list(tmp_path.iterdir()) == []


def test_what_is_advised_instead_makes_rows(tmp_path: Path) -> None:
    words = ("matrix.seeds=[3]", 'matrix.rows=[{name:rl,overrides:["method=rl"]}]')
    assert [job.train_name for job in jobs_of(tmp_path, *words)] == ["tiny-rl-s3"]


def test_an_evaluation_of_a_row_that_was_trained_again_is_not_kept(
    tmp_path: Path, policy_folder: Path, teacher_folder: Path
) -> None:
    """Done, it is refused by its row; interrupted, by the evaluation that would go on with it. A student likewise."""
    sft, student = jobs_of(tmp_path, *SMALL, f"model.path={policy_folder}", only="opd-sft")
    old = model_hash(str(policy_folder))
    for job in (sft, student):
        pretend(tmp_path, job, hashes={"model": old, "tutor": {"": old} if job.needs else None})
        write_folder(tmp_path / job.train_name / "checkpoint", lambda folder: copy(policy_folder, folder))
        run_job(job)
    write_folder(tmp_path / sft.train_name / "checkpoint", lambda folder: copy(teacher_folder, folder))
    told = rf"^{tmp_path}/eval-tiny-sft-s0 holds answers of other weights than tiny-sft-s0 has now .*Remove it, then"
    with pytest.raises(OnpolError, match=told):
        run_job(sft)
    made = rf"^{tmp_path}/tiny-opd-sft-s0 was made from other weights than {tmp_path}/tiny-sft-s0 has now"
    with pytest.raises(OnpolError, match=rf"{made} .*Remove it and {tmp_path}/eval-tiny-opd-sft-s0, then"):
        run_job(student)
    with RunDir.open(tmp_path / sft.eval_name, resume=True) as run:
        run.update_manifest(status="interrupted")
    with pytest.raises(OnpolError, match=rf"--model, changed since\. Remove {tmp_path}/eval-tiny-sft-s0, or"):
        run_job(sft)
    shutil.rmtree(tmp_path / sft.eval_name)
    run_job(sft)
    assert read_manifest(tmp_path / sft.eval_name)["hashes"]["model"] == model_hash(str(teacher_folder)) != old


def test_a_student_of_several_tutors_is_not_kept_if_one_of_them_was_trained_again(
    tmp_path: Path, policy_folder: Path, teacher_folder: Path
) -> None:
    old = model_hash(str(policy_folder))
    for name in ("first", "second"):
        make_run(tmp_path, name, policy_folder)
    tutors = ("method.tutors.tiny-edit=first", "method.tutors.tiny-codegen=second")
    words = [f"paths.runs={tmp_path}", "method=multi_opd", *tutors]
    with RunDir.open(tmp_path / "student", resume=False) as run:
        run.update_manifest(status="done", hashes={"tutor": {"tiny-edit": old, "tiny-codegen": old}})
    check_training("student", compose(words))
    write_folder(tmp_path / "second" / "checkpoint", lambda folder: copy(teacher_folder, folder))
    with pytest.raises(OnpolError, match="made from other weights than second has now"):
        check_training("student", compose(words))


def test_a_base_that_is_another_run_now_is_not_kept(
    tmp_path: Path, policy_folder: Path, teacher_folder: Path
) -> None:
    """`model.path=latest:...` is the same word for another start."""
    make_run(tmp_path, "base-1", policy_folder)
    base, sft = jobs_of(tmp_path, *SMALL, "model.path=latest:sft", only="base,sft")
    hashes = {"start": model_hash(str(policy_folder)), "model": model_hash(str(policy_folder))}
    for job in (base, sft):
        pretend(tmp_path, job, hashes=hashes)
        run_job(job)
    make_run(tmp_path, "base-2", teacher_folder)
    for job, folder in ((base, base.eval_name), (sft, sft.train_name)):
        with pytest.raises(OnpolError, match=rf"{tmp_path}/{folder} .* other weights than latest:sft has now"):
            run_job(job)
