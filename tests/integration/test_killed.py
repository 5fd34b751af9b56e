"""Kill -9 at random moments of a run (rollout, backward, parts of a write): the resumed run ends bit for bit alike."""

import multiprocessing
import random
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from killed_worker import Kill, run_training

from onpol_cli.runs.rundir import read_lines, read_manifest

VOLATILE = ("time/", "memory/", "rate/")
KILLS = {"rollout": 3, "backward": 3, "checkpoint": 4, "seal": 2, "prune": 2, "best": 2, "final": 2, "step": 2}
"""Kills in each phase."""
ROWS = {"prune": 6, "best": 5, "final": 6}
"""Steps logged before phases that come once: only the last state has one to prune before it."""
FEW = ("rollout", "backward", "checkpoint")


def kills() -> list:
    """Twenty moments, spread evenly over each phase; one of each of `FEW` in every test run."""
    draw = random.Random(20)
    found = []
    for phase, count in KILLS.items():
        parts = draw.sample(range(count), count)
        for place, part in enumerate(parts):
            kill = Kill(phase, ROWS.get(phase, draw.randint(0, 4)), (part + draw.random()) / count)
            marks = () if phase in FEW and place == 0 else pytest.mark.full
            found.append(pytest.param(kill, marks=marks, id=f"{len(found)}-{phase}-{kill.rows}-{kill.moment:.0%}"))
    return found


@pytest.fixture(scope="module")
def server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed_worker"])  # libraries are loaded once, not forty times
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # this process's own path is not handed on by 3.11
        forkserver.ensure_running()
    return context


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("killed")


def run(
    server, root: Path, name: str, resume: bool = False, kill: Kill | None = None, timed: bool = False
) -> int:
    process = server.Process(target=run_training, args=(root, name, resume, kill, timed))
    process.start()
    process.join(300)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode


@pytest.fixture(scope="module")
def whole(server, root):
    assert run(server, root, "whole", timed=True) == 0
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
    assert (root / f"{name}.note").read_text().startswith(kill.phase)
    assert run(server, root, name, resume=True) == 0
    again = root / name
    assert steady(again) == steady(whole)
    assert_equal(state(again, 6), state(whole, 6))
    for folder in ("checkpoint", "best"):
        weights = [(path / folder / "model.safetensors").read_bytes() for path in (again, whole)]
        assert weights[0] == weights[1], folder
    assert read_manifest(again)["best"] == read_manifest(whole)["best"]
    assert rollouts(again) == rollouts(whole)
    assert not list(again.rglob(".*.tmp")) and not list(again.rglob(".*.old")), "a half-written folder stays behind"


def test_the_run_that_all_are_held_to_does_train(whole):
    first, last = state(whole, 4)["weights"], state(whole, 6)["weights"]
    assert any(not torch.equal(first[name], last[name]) for name in first)
