"""Models of the hub at a revision: all parts of a run take the same one. The hub's cache stands in for the hub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants

from onpol_cli.core.compose import compose
from onpol_cli.core.errors import OnpolError
from onpol_cli.learner import model
from onpol_cli.stages import build
from onpol_cli.stages.launch import check

NAME = "org/toy"
COMMITS = {"main": "a" * 40, "old": "b" * 40}


def keep(home: Path, revision: str, source: Path) -> Path:
    """`source` in the cache as the hub's client lays it out: contents by hash, links by commit, commits by name."""
    repository = home / "hub" / f"models--{NAME.replace('/', '--')}"
    folder = repository / "snapshots" / COMMITS[revision]
    for part in (folder, repository / "blobs", repository / "refs"):
        part.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(COMMITS[revision])
    for file in source.iterdir():
        content = file.read_bytes()
        blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (folder / file.name).symlink_to(Path("..", "..", "blobs", blob.name))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, policy_folder: Path, foreign_folder: Path) -> Path:
    """A cache with two revisions of one model that differ in weights, tokens and chat template."""
    home = tmp_path_factory.mktemp("home")
    keep(home, "old", policy_folder)
    keep(home, "main", foreign_folder)
    return home


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process reads that cache and has no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model.hub_folder.cache_clear()
    return home / "hub" / "models--org--toy" / "snapshots"


WHOLE_WAY = """
import json, sys
from pathlib import Path
from onpol_cli.core.compose import compose
from onpol_cli.runs.rundir import read_lines
from onpol_cli.stages.evaluate import EvalRequest, evaluate
from onpol_cli.stages.train import train_model

runs, tutor, same = sys.argv[1:]
words = ["experiment=none", f"paths.runs={runs}", "model.path=org/toy", "model.revision=old", "model.max_context=2048",
         "task.problems=2", "task.validation_problems=2", "learner.autocast=float32", "eval.problems=2",
         "eval.kl_problems=2", "eval.max_new_tokens=6", "rollout.sampling.max_new_tokens=6", "sandbox.workers=1"]
own = ["method=opd", f"tutor={tutor}", "method.steps=1", "method.prompts=1", "method.group=2", "optim.lr=0"]
train_model(compose([*words, *own, "run.name=run"]), role="student", command=["test"])

def answers(name, model, *more):
    config = compose([*words, *more, f"run.name={name}"])
    config.eval.benches = ["tiny-codegen"]
    path, _ = evaluate(config, EvalRequest(config.eval.benches, model=model))
    return [(row["problem_id"], row["completion"]) for row in read_lines(path / "samples.jsonl")]

told = [answers("base", None, "eval.kl=false"), answers("folder", same, "eval.kl=false"), answers("moved", "run")]
print(json.dumps(told))
"""


def test_training_evaluation_and_distances_take_the_revision(home: Path, tmp_path: Path, teacher_folder: Path) -> None:
    """A student of the old revision at rate 0: it is the base that it is compared with."""
    old = home / "hub" / "models--org--toy" / "snapshots" / COMMITS["old"]
    words = [sys.executable, "-c", WHOLE_WAY, str(tmp_path), str(teacher_folder), str(old)]
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    base, folder, _ = json.loads(done.stdout.splitlines()[-1])
    assert len(base) == 2 and base == folder
    saved = tmp_path / "run" / "checkpoint"
    assert (saved / "chat_template.jinja").read_text() == (old / "chat_template.jinja").read_text()
    (distance,) = json.loads((tmp_path / "moved" / "kl.json").read_text()).values()
    assert abs(distance["base_model"]) < 1e-3 and distance["n_tokens"] > 0
    run, base_run = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("run", "base"))
    named = {"path": NAME, "revision": "old", "commit": COMMITS["old"]}
    assert run["start"] == named and named.items() <= base_run["evaluates"].items()
    assert base_run["label"] == f"{NAME}@old" and base_run["evaluates"]["method"] == "base"
    assert base_run["hashes"]["model"] == hashlib.sha256((old / "model.safetensors").read_bytes()).hexdigest()[:16]


def test_a_name_stands_for_one_folder_in_all_parts(here: Path) -> None:
    words = [f"model.path={NAME}", "model.revision=old", f"tutor={NAME}"]
    config = compose(words)
    policy, tutor = build.policy_config(config), build.find_checkpoint(NAME, config)
    assert policy.path == tutor.path == str(here / COMMITS["old"]) and policy.revision is None
    assert build.policy_config(compose([*words, "model.random_weights=true"])).path == policy.path
    other = build.find_checkpoint(NAME, compose([]))
    assert (other.path, other.label) == (str(here / COMMITS["main"]), NAME), "a tutor has a revision of its own"


def test_plans_and_dry_runs_fetch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*_: object) -> str:
        raise AssertionError("a download")

    monkeypatch.setattr(model, "hub_folder", fetched)
    config = compose([f"model.path={NAME}", "model.revision=old", f"tutor={NAME}", "method=opd"])
    check(config, "student")
    policy = build.policy_config(config, fetch=False)
    assert (policy.path, policy.revision) == (NAME, "old")


def test_processes_find_what_was_fetched_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy, and tutors that are of the hub; not those of running servers, of which only tokens are read."""
    fetched = []
    monkeypatch.setattr(model, "hub_folder", lambda *asked: fetched.append(asked) or "folder")
    words = [f"model.path={NAME}", "model.revision=old", "method=opd"]
    build.fetch_hub_models(compose([*words, "tutor=org/tutor"]))
    build.fetch_hub_models(compose([*words, "tutor=no-such-run"]))
    served = ["method.scorer=vllm_server", "rollout.teacher_servers=[http://a:1]"]
    build.fetch_hub_models(compose([*words, "tutor=org/tutor", *served]))
    policy = (NAME, "old", True)
    assert fetched == [policy, ("org/tutor", None, True), policy, policy, ("org/tutor", None, False)]


@pytest.mark.parametrize("path", ["tiny", "folder"])
def test_a_revision_of_what_is_no_hub_model_is_refused(path: str, policy_folder: Path) -> None:
    path = str(policy_folder) if path == "folder" else path
    with pytest.raises(OnpolError, match=r"model\.revision=old is for models of the hub, and model\.path=.* is none"):
        build.policy_config(compose([f"model.path={path}", "model.revision=old"]))


def test_what_the_cache_lacks_is_an_error_in_one_line(here: Path) -> None:
    for words in ([f"model.path={NAME}", "model.revision=lost"], ["model.path=org/lost"]):
        where = r"org/(toy at revision lost|lost)"
        with pytest.raises(OnpolError, match=rf"^Cannot load the model at '{where}': Cannot find"):
            build.policy_config(compose(words))
