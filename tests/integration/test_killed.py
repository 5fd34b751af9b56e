"""Kill -9 at random moments of a run (rollout, backward, checkpoint write): the resumed run ends bit for bit alike."""

import multiprocessing
import random
from pathlib import Path

import pytest
import torch
from killed_worker import Kill, run_training

from onpol_cli.runs.rundir import read_lines

VOLATILE = ("time/", "memory/", "rate/")
PHASES = ("rollout", "backward", "checkpoint", "anywhere")


def kills() -> list:
    """Twenty moments, the first three (one a phase) in every test run."""
    draw = random.Random(20)
    found = [Kill(PHASES[number % 4], draw.randint(0, 4), number) for number in range(20)]
    few = {PHASES.index(phase) for phase in ("rollout", "backward", "checkpoint")}
    return [
        pytest.param(kill, marks=() if number in few else pytest.mark.full, id=f"{number}-{kill.phase}-{kill.rows}")
        for number, kill in enumerate(found)
    ]


@pytest.fixture(scope="module")
def server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed_worker"])  # libraries are loaded once, not forty times
    return context


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("killed")


def run(server, root: Path, name: str, resume: bool = False, kill: Kill | None = None) -> int:
    process = server.Process(target=run_training, args=(root, name, resume, kill))
    process.start()
    process.join(300)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


@pytest.fixture(scope="module")
def whole(server, root):
    assert run(server, root, "whole") == 0
    return root / "whole"


def steady(path: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if not k.startswith(VOLATILE)} for row in read_lines(path / "metrics.jsonl")]


def rollouts(path: Path) -> dict:
    """The newest rollout of each place, as readers take them; weight versions count the syncs of one process."""
    rows = list(read_lines(path / "rollouts.jsonl"))
    return {(r["step"], r["group"], r["sample"]): {**r, "weight_version": None} for r in rows}


def state(path: Path, step: int) -> dict:
    return torch.load(path / "state" / f"step-{step:07d}" / "learner.pt", weights_only=True)


def assert_equal(first, second, where: str = "state") -> None:
    """Nested containers with equal tensors, bit for bit."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_equal(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for place, pair in enumerate(zip(first, second, strict=True)):
            assert_equal(*pair, f"{where}[{place}]")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, where


@pytest.mark.parametrize("kill", kills())
def test_a_killed_run_resumes_to_the_same_end(server, root, whole, kill, request):
    name = request.node.callspec.id
    assert run(server, root, name, kill=kill) == -9
    assert (root / f"{name}.note").read_text()
    assert run(server, root, name, resume=True) == 0
    again = root / name
    assert steady(again) == steady(whole)
    assert_equal(state(again, 6), state(whole, 6))
    weights = [(path / "checkpoint" / "model.safetensors").read_bytes() for path in (again, whole)]
    assert weights[0] == weights[1]
    assert rollouts(again) == rollouts(whole)
    assert not list(again.rglob(".*.tmp")) and not list(again.rglob(".*.old")), "a half-written folder stays behind"


def test_the_run_that_all_are_held_to_does_train(whole):
    first, last = state(whole, 4)["weights"], state(whole, 6)["weights"]
    assert any(not torch.equal(first[name], last[name]) for name in first)
