"""A damaged checkpoint of ours is refused wherever it is used, before anything starts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from onpol_cli.core.compose import compose
from onpol_cli.core.config import Config
from onpol_cli.core.errors import OnpolError
from onpol_cli.core.files import sha256_file
from onpol_cli.runs.checkpoint import recorded_hash, write_folder
from onpol_cli.runs.rundir import RunDir
from onpol_cli.stages.build import find_checkpoint, model_hash, verify_all
from onpol_cli.stages.evaluate import EvalRequest, evaluate
from onpol_cli.stages.train import train_model


def make_run(root: Path, name: str, source: Path, damage: bool = False) -> Path:
    """A finished run with the weights of `source`, a bit of them flipped if `damage`."""
    with RunDir.open(root / name, resume=False) as run:
        run.update_manifest(run=name, status="done", label="SFT", method_choice="sft", model_role="tutor")
        write_folder(run.checkpoint, lambda folder: shutil.copytree(source, folder, dirs_exist_ok=True) and None)
        if damage:
            flip(run.checkpoint / "model.safetensors")
    return root / name


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)


@pytest.fixture
def runs(tmp_path: Path, policy_folder: Path) -> Path:
    """A whole and a damaged run of the same weights."""
    make_run(tmp_path, "whole", policy_folder)
    make_run(tmp_path, "flipped", policy_folder, damage=True)
    return tmp_path


def config(runs: Path, *words: str) -> Config:
    small = ("experiment=none", "task.problems=2", "method.steps=1", "rollout.sampling.max_new_tokens=4")
    return compose([f"paths.runs={runs}", "run.name=new", *small, "model.max_context=2048", *words])


def start(runs: Path, *words: str) -> None:
    train_model(config(runs, *words), role="student", command=["test"])


def assess(runs: Path, *words: str) -> None:
    request = EvalRequest(["tiny-edit-ood"], model="flipped" if "flipped" in words else "whole")
    made = config(runs, "eval.problems=2", *(word for word in words if "=" in word))
    made.eval.benches = ["tiny-edit-ood"]
    evaluate(made, request)


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (start, ["method=sft", "model.path=flipped"]),
        (start, ["method=rl", "method.reference_kl=0.1", "model.path={runs}/flipped/checkpoint"]),
        (start, ["method=opd", "tutor=flipped", "model.path=whole"]),
        (assess, ["flipped"]),
        (assess, ["model.path=flipped"]),
    ],
    ids=["start", "reference", "tutor", "evaluated", "what distances start from"],
)
def test_a_flipped_bit_is_refused(runs: Path, use: Callable[..., None], words: list[str]) -> None:
    with pytest.raises(OnpolError, match=r"flipped/checkpoint: model\.safetensors does not match its hash"):
        use(runs, *(word.replace("{runs}", str(runs)) for word in words))
    assert sorted(item.name for item in runs.iterdir()) == ["flipped", "whole"], "nothing was started"


def test_a_run_whose_hashes_are_gone_is_refused_and_a_foreign_folder_is_not(runs: Path, policy_folder: Path) -> None:
    verify_all(config(runs, f"model.path={policy_folder}"), {"": find_checkpoint("whole", config(runs))})
    (runs / "whole" / "checkpoint" / "hashes.json").unlink()
    with pytest.raises(OnpolError, match="it was not finished"):
        verify_all(config(runs, "model.path=whole"), {})


def test_a_models_hash_is_the_one_recorded_with_it(runs: Path, policy_folder: Path) -> None:
    assert model_hash(str(runs / "whole" / "checkpoint")) == model_hash(str(policy_folder)) is not None
    assert recorded_hash(policy_folder / "model.safetensors") is None
    read = sha256_file(policy_folder / "model.safetensors")
    assert recorded_hash(runs / "whole" / "checkpoint" / "model.safetensors") == read
