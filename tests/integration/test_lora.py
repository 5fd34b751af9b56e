"""LoRA with every method, one set of weights in three roles, and the rank sweep, through the stages' own functions."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from onpol_cli.core.compose import compose
from onpol_cli.learner.model import PACKAGED_TINY
from onpol_cli.runs.rundir import read_lines
from onpol_cli.stages.train import train_model

SMALL = (
    *("task.problems=12", "learner.threads=1", "sandbox.workers=1", "method.epochs=0", "method.batch=2"),
    *("method.prompts=2", "rollout.sampling.max_new_tokens=24"),
    "method.teacher_temperature=2",  # else the base agrees with its student at the start, and there is no gradient
)
NUMBERS = ("loss/total", "kl/teacher", "kl/reference", "grad_norm", "loss/divergence", "loss/preference")


def train(root: Path, name: str, *words: str) -> list[dict]:
    """Metrics of a run with adapters."""
    settings = [f"paths.runs={root}", f"run.name={name}", "model.lora.rank=2", "optim.lr=1e-3", *SMALL, *words]
    train_model(compose(settings), role="student", command=["test"], resume=False)
    return list(read_lines(root / name / "metrics.jsonl"))


@pytest.fixture
def loads(monkeypatch):
    """Models that transformers loads while the test lasts."""
    seen: list[str] = []
    original = transformers.AutoModelForCausalLM.from_pretrained

    def counted(path, *args, **kwargs):
        seen.append(str(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", counted)
    return seen


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    """The shipped base in another folder: the same numbers, but not known to be the same model."""
    return shutil.copytree(PACKAGED_TINY, tmp_path_factory.mktemp("twin") / "base")


CHEAP = ("sft", "dpo", "opd-exact")
METHODS = ("sft", "rsft", "dpo", "rl", "opd", "opd-exact", "rl_opd", "gkd", "opsd", "multi_opd")


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in CHEAP else pytest.mark.full) for name in METHODS]
)
def test_every_method_trains_adapters_over_one_set_of_weights(tmp_path, loads, method):
    words = ["method.tutors.tiny-edit=tiny"] if method == "multi_opd" else ["tutor=tiny"]
    if method in ("rsft", "dpo", "rl"):  # they need whole answers: cut ones all fail alike
        words.append("rollout.sampling.max_new_tokens=128")
    rows = train(tmp_path, method, f"method={method}", "method.steps=2", "method.group=4", *words)
    assert rows[-1]["grad_norm"] > 0 and rows[-1]["step"] == 1
    assert len(loads) == 1, "teacher, reference and policy are one model"


@pytest.mark.parametrize(
    "words",
    [
        ("method=opd", "method.signal=sampled", "method.reference_kl=0.1"),
        pytest.param(("method=opd-exact",), marks=pytest.mark.full),
        pytest.param(("method=rl_opd",), marks=pytest.mark.full),
    ],
    ids=lambda words: words[0],
)
def test_a_shared_teacher_gives_the_numbers_of_a_separate_copy(tmp_path, loads, twin, words):
    settings = (*words, "method.steps=3", "method.group=2")
    shared = train(tmp_path, "shared", *settings, "tutor=tiny")
    assert len(loads) == 1
    apart = train(tmp_path, "apart", *settings, f"tutor={twin}")
    assert len(loads) == 3 and str(twin) in loads
    for one, other in zip(shared, apart, strict=True):
        for name in one.keys() & set(NUMBERS):
            assert one[name] == pytest.approx(other[name], abs=1e-5, rel=1e-4), name
    assert shared[-1]["kl/teacher"] != 0


@pytest.mark.full
def test_the_rank_sweep_runs(tmp_path):
    words = ["method=rl", "model.lora.rank=1,8", "method.steps=1", "method.group=2", *SMALL, f"paths.runs={tmp_path}"]
    words += ["eval.problems=2", "eval.kl=false", "eval.benches=[tiny-codegen]", "eval.temperatures=[1.0]", "--json"]
    command = [sys.executable, "-m", "onpol_cli.cli", "sweep", "train tutor", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    ranks = {int(line.split("rank:")[1]) for file in tmp_path.glob("train-rl-*/config.yaml")
             for line in file.read_text().splitlines() if line.strip().startswith("rank:")}  # fmt: skip
    assert ranks == {1, 8}
