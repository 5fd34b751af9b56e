"""Several processes (gloo, CPU): the same losses and weights as one, through the command line's own path."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from needed import wait_for

from onpol_cli.core.processes import descendants
from onpol_cli.runs.rundir import read_lines

WORKER = Path(__file__).with_name("parallel_worker.py")
TOLERANCE = 1e-5
STEPS = 20


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def call(words: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-8000:]  # torchrun's own account of an end takes 2000


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """`recorded(case)`: folder with the examples of `STEPS` steps of the method itself, real rollouts and grades."""
    folder = tmp_path_factory.mktemp("recorded")

    def record(case: str) -> Path:
        for name in ["sft", case] if case.startswith("opd") else [case]:
            if not (folder / f"{name}.pt").is_file():
                call([sys.executable, str(WORKER), "record", name, str(folder), str(STEPS)])
        return folder

    return record


def replay(nproc: int, case: str, folder: Path, dtype: str) -> dict:
    """Curves of `case` in `dtype` on its recorded steps in `nproc` processes."""
    words = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={nproc}", "--nnodes=1"]
    words += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", str(WORKER)]
    call([*words, "replay", case, str(folder), str(STEPS), str(nproc), dtype])
    return json.loads((folder / f"{case}-{dtype}-{nproc}.json").read_text())


def assert_same_curves(case: str, folder: Path, dtype: str, tolerance: float) -> None:
    alone, *others = (replay(size, case, folder, dtype) for size in (1, 2, 4))
    assert len(set(alone["loss/total"])) > STEPS / 2, "a curve that does not move would agree with anything"
    for result in others:
        assert result["loss/total"] == pytest.approx(alone["loss/total"], rel=tolerance, abs=tolerance)
        assert result["grad_norm"] == pytest.approx(alone["grad_norm"], rel=100 * tolerance)
        assert result["norm"] == pytest.approx(alone["norm"], rel=tolerance)


@pytest.mark.full
@pytest.mark.parametrize("case", ["sft", "rl", "opd", "sft-lora", "rl-lora", "opd-lora"])
def test_two_and_four_processes_follow_one_over_twenty_steps(case, recorded):
    """Real rollouts: noise as the signal of random tokens drifts by up to 7e-5, float32 rounding that Adam grows."""
    assert_same_curves(case, recorded(case), "float32", TOLERANCE)


@pytest.mark.full
@pytest.mark.parametrize("case", ["sft", "rl", "opd"])
def test_processes_agree_where_rounding_plays_no_part(case, recorded):
    assert_same_curves(case, recorded(case), "float64", 2e-6)


def train(
    root: Path, name: str, nproc: int, *more: str, method: str = "sft", resume: bool = False, verb: str = "train tutor"
) -> list[dict]:
    words = [sys.executable, "-m", "onpol_cli.cli", *verb.split(), f"paths.runs={root}", f"run.name={name}"]
    words += [f"method={method}", "method.steps=3", "method.epochs=0", "method.batch=4", "task.problems=16"]
    words += ["learner.threads=1", "sandbox.workers=1", f"parallel.nproc={nproc}", *more]
    words += ["--resume"] if resume else []
    done = subprocess.run(words, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    return list(read_lines(root / name / "metrics.jsonl"))


def test_the_command_line_starts_processes_and_writes_one_run(tmp_path):
    from safetensors.torch import load_file

    one, two = train(tmp_path, "one", 1), train(tmp_path, "two", 2)
    assert [row["step"] for row in two] == [0, 1, 2]
    assert [row["loss/total"] for row in two] == pytest.approx([row["loss/total"] for row in one], abs=TOLERANCE)
    assert [row["tokens/trained"] for row in two] == [row["tokens/trained"] for row in one]
    weights = [load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        assert (value.float() - weights[1][name].float()).abs().max() < 1e-2


def sft(root: Path, *more: str) -> list[str]:
    words = [sys.executable, "-m", "onpol_cli.cli", "train", "tutor", f"paths.runs={root}", "method=sft"]
    words += ["method.epochs=0", "method.batch=4", "task.problems=16", "learner.threads=1", "sandbox.workers=1"]
    return [*words, *more]


def test_a_signal_stops_all_processes_with_their_state_and_the_run_goes_on(tmp_path):
    """SIGTERM to the command itself, as a scheduler sends it; the run has no name of its own."""
    words = sft(tmp_path, "method.steps=40", "parallel.nproc=2")
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(len(list(read_lines(file))) >= 2 for file in tmp_path.glob("*/metrics.jsonl")), process)
    family = descendants(process.pid)
    assert len(family) >= 4, "the command, torchrun, two processes"
    process.terminate()
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "Go on with --resume" in err, err[-2000:]
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]
    (run,) = tmp_path.glob("train-sft-*")
    seen = len(list(read_lines(run / "metrics.jsonl")))
    assert 2 <= seen < 40 and json.loads((run / "manifest.json").read_text())["status"] == "interrupted"
    assert [folder.name for folder in (run / "state").iterdir()] == [f"step-{seen:07d}"]
    again = subprocess.run([*words, "--resume"], capture_output=True, text=True, timeout=400)
    assert again.returncode == 0, again.stderr[-2000:]
    assert list(tmp_path.glob("train-sft-*")) == [run], "no second one"
    assert [row["step"] for row in read_lines(run / "metrics.jsonl")] == list(range(40))


def test_tasks_of_srun_are_one_run(tmp_path):
    """Two processes with nothing but Slurm's variables, and no number of processes configured."""
    train(tmp_path, "one", 1)
    words = sft(tmp_path, "method.steps=3")
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1", "MASTER_PORT": str(free_port())}
    tasks = [
        subprocess.Popen(words, env={**os.environ, **slurm, "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in "01"
    ]  # fmt: skip
    for task in tasks:
        _, err = task.communicate(timeout=300)
        assert task.returncode == 0, err[-2000:]
    (run,) = tmp_path.glob("train-sft-*")
    rows, alone = (list(read_lines(folder / "metrics.jsonl")) for folder in (run, tmp_path / "one"))
    assert [row["tokens/trained"] for row in rows] == [row["tokens/trained"] for row in alone]
    assert [row["loss/total"] for row in rows] == pytest.approx([row["loss/total"] for row in alone], abs=TOLERANCE)


@pytest.mark.full
@pytest.mark.parametrize("lora", [0, 4])
def test_live_rollouts_agree_at_the_first_step_and_stay_near(tmp_path, lora):
    words = ["method.prompts=4", "method.group=4", "rollout.sampling.max_new_tokens=32", f"model.lora.rank={lora}"]
    one, *others = (train(tmp_path, f"live-{n}", n, *words, "optim.lr=1e-4", method="rl") for n in (1, 2, 4))
    same = ("reward/mean", "length/mean", "tokens/generated", "tokens/trained", "entropy", "loss/total", "grad_norm")
    for rows in others:
        assert [rows[0][name] for name in same] == pytest.approx([one[0][name] for name in same], rel=1e-4, abs=1e-5)
        for row, alone in zip(rows[1:], one[1:], strict=True):  # a near tie may fall the other way in a later rollout
            assert row["entropy"] == pytest.approx(alone["entropy"], rel=0.5)
            assert row["length/mean"] == pytest.approx(alone["length/mean"], rel=0.5)
            assert row["kl/mismatch"] < 1e-4


@pytest.mark.parametrize(
    "words",
    [
        ("method=opd", "method.reference_kl=0.1"),
        pytest.param(("method=opd-exact", "method.reference_kl=0.1"), marks=pytest.mark.full),
        pytest.param(  # at another temperature, for a teacher that is the policy gives no gradient
            ("method=opd-exact", "model.lora.rank=4", "tutor=tiny", "method.teacher_temperature=2"),
            marks=pytest.mark.full,
        ),
        pytest.param(("method=opsd", "model.lora.rank=4"), marks=pytest.mark.full),
    ],
    ids=["teacher and reference", "exact", "exact, the base under adapters", "the policy itself"],
)
def test_frozen_models_are_sharded_like_the_policy(tmp_path, words):
    """One process, two that share the frozen models' shards, two with whole copies: the same numbers."""
    train(tmp_path, "tutor", 1, "optim.lr=1e-3")
    common = ["method.prompts=3", "method.group=2", "method.steps=2", "rollout.sampling.max_new_tokens=24"]
    common += ["rollout.save=true", "run.validate_every=2", "task.validation_problems=5"]
    common += ["tutor=tutor", *words[1:]]
    runs = {"one": (1, ""), "shards": (2, ""), "copies": (2, "parallel.shard_frozen=false")}
    method = words[0].removeprefix("method=")
    one, shards, copies = (
        train(tmp_path, name, nproc, *common, *filter(None, [more]), method=method, verb="distill student")
        for name, (nproc, more) in runs.items()
    )
    same = ("loss/total", "grad_norm", "kl/teacher", "tokens/generated", "kl/reference", "reward/mean", "length/mean")
    same += ("entropy", "kl/mismatch")
    names = [name for name in same if name in one[0]]
    assert "kl/teacher" in names and one[-1]["kl/teacher"] != 0
    assert [shards[0][name] for name in names] == pytest.approx([one[0][name] for name in names], rel=1e-4, abs=1e-6)
    kept = [read_lines(tmp_path / name / "rollouts.jsonl") for name in ("one", "shards")]
    kept = [[(row["problem_id"], row["completion_ids"]) for row in found if row["step"] == 0] for found in kept]
    assert kept[0] == kept[1] and len(kept[0]) == 6, "of every process, in the order of one"
    scores = [{name: row[name] for name in row if name.startswith("validation/")} for row in (one[1], shards[1])]
    assert scores[1] == pytest.approx(scores[0], rel=1e-3) and scores[0]["validation/tiny-edit/n"] == 5
    for row, other in zip(shards, copies, strict=True):
        assert [row[name] for name in names] == pytest.approx([other[name] for name in names], rel=1e-5, abs=1e-7)


def test_a_nonfinite_step_of_several_processes_stops_all_with_a_dump_each_and_the_state_before(tmp_path):
    """A rate that leaves no sound weight: the loss of the second step is none."""
    import torch

    from onpol_cli.runs.checkpoint import verify

    words = [sys.executable, "-m", "onpol_cli.cli", "train", "tutor", f"paths.runs={tmp_path}", "run.name=run"]
    words += ["method=sft", "method.steps=3", "method.epochs=0", "method.batch=4", "task.problems=16"]
    words += ["learner.threads=1", "sandbox.workers=1", "parallel.nproc=2", "optim.lr=1e30", "optim.warmup=0.0"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=400)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "at step 2 over 4 sequences in 2 micro-batches (problems" in done.stderr
    assert "The state after 1 step is saved." in done.stderr
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "failed"
    names = [f"dump-step-2-rank-{rank}.pt" for rank in (0, 1)]
    assert sorted(file.name for file in (tmp_path / "run").glob("dump-*")) == names
    dumps = [torch.load(tmp_path / "run" / name, weights_only=True)["problem_ids"] for name in names]
    assert all(len(ids) == 2 for ids in dumps) and not set(dumps[0]) & set(dumps[1])
    verify(tmp_path / "run" / "state" / "step-0000001", ["learner.pt"])


@pytest.mark.full
@pytest.mark.parametrize("nproc", [1, 2])
def test_a_run_of_four_processes_goes_on_in_fewer(tmp_path, nproc):
    import shutil

    from safetensors.torch import load_file

    rows = train(tmp_path, "four", 4, "run.save_every=1", "run.keep_last=3", "optim.lr=1e-4")
    run = tmp_path / "four"
    whole = load_file(run / "checkpoint" / "model.safetensors")
    for made in (run / "checkpoint", run / "state" / "step-0000003"):  # as if it had been stopped after step 2
        shutil.rmtree(made)
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["finished_steps"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    again = train(tmp_path, "four", nproc, "run.save_every=1", "run.keep_last=3", "optim.lr=1e-4", resume=True)
    assert [row["loss/total"] for row in again] == pytest.approx([row["loss/total"] for row in rows], abs=TOLERANCE)
    for name, value in load_file(run / "checkpoint" / "model.safetensors").items():
        assert (value.float() - whole[name].float()).abs().max() < 1e-2, name
