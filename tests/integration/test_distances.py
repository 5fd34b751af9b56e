"""Distances to the base on real kinds of data: a model trained on one file of edits and evaluated on another."""

import hashlib
import json
from pathlib import Path

import pytest
from edit_pool import POOL

from onpol_cli.core.compose import compose
from onpol_cli.stages.data import PrepareRequest, prepare_data
from onpol_cli.stages.evaluate import EvalRequest, evaluate
from onpol_cli.stages.train import train_model

COMMON = [
    *("experiment=none", "model.max_context=1024", "learner.threads=1", "sandbox.workers=1", "optim.lr=1e-2"),
    *("rollout.sampling.max_new_tokens=12", "eval.max_new_tokens=12", "eval.problems=2", "eval.kl_problems=2"),
]


def for_validation(prefix: str, count: int) -> list[str]:
    """Ids that fall into the validation split of a file of edits."""
    names = (f"{prefix}/{number}" for number in range(1000))
    return [name for name in names if hashlib.sha256(name.encode()).digest()[0] % 10 == 0][:count]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    """Edits to evaluate, and others to train on, of which two are held out."""
    folder = tmp_path_factory.mktemp("edits")
    (folder / "pool.json").write_text(json.dumps(POOL))
    bench, train = folder / "bench.jsonl", folder / "train.jsonl"
    data = str(folder / "pool.json")
    prepare_data(PrepareRequest("minimal-edit", "mbpp", bench, data=data, families="all", as_json=True))
    rows = [json.loads(line) for line in bench.read_text().splitlines()]
    assert len(rows) == 4
    for row, name in zip(rows, [*for_validation("held", 2), "learnt/a", "learnt/b"], strict=True):
        row |= {"problem_id": name, "source_id": name}
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return bench, train


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory) -> Path:
    """A run directory: two steps of sft on edits."""
    runs = tmp_path_factory.mktemp("runs")
    words = ["method=sft", "method.steps=2", "method.epochs=0", "method.batch=2", "run.name=sft"]
    words += ["task=minimal-edit", f"task.data={files[1]}", "task.families=all"]
    return train_model(compose([*COMMON, f"paths.runs={runs}", *words]), role="tutor", command=["test"])


def distances(trained: Path, name: str, *words: str, **data: Path) -> tuple[dict, dict, dict]:
    """kl.json, update.json and summary.json of the trained model's evaluation on the benches of `data`."""
    files = [f"eval.data.{bench.replace('_', '-')}={path}" for bench, path in data.items()]
    config = compose([*COMMON, f"paths.runs={trained.parent}", f"run.name={name}", *files, *words])
    config.eval.benches = [bench.replace("_", "-") for bench in data]
    run, _ = evaluate(config, EvalRequest(config.eval.benches, model="sft"))
    return tuple(json.loads((run / f"{file}.json").read_text()) for file in ("kl", "update", "summary"))


def test_they_are_measured_on_held_out_edits_and_not_on_benches_that_have_no_others(files, trained, data_dir):
    bench, train = files
    programs = data_dir / "humaneval" / "HumanEval.jsonl.gz"
    words = ["task=minimal-edit", f"task.data={train}", "task.families=all"]
    divergence, update, summary = distances(trained, "both", *words, minimal_edit=bench, humaneval=programs)
    assert set(divergence) == {"minimal-edit"} and set(summary) == {"minimal-edit", "humaneval"}
    assert divergence["minimal-edit"]["model_base"] > 0 and divergence["minimal-edit"]["n_tokens"] > 2
    assert update["minimal-edit"]["forced_n"] == 2 and 0 <= update["low_prob_share"] <= 1


@pytest.mark.parametrize("same", [True, False])
def test_evaluated_problems_are_left_alone(files, trained, same):
    """The file trained on is the evaluated one, or nothing says what was trained on."""
    held = files[1]
    words = ["task=minimal-edit", f"task.data={held}", "task.families=all"] if same else []
    divergence, update, summary = distances(trained, f"alone-{same}", *words, minimal_edit=held)
    assert divergence == update == {} and summary["minimal-edit"]
