"""Training through the command line with real vLLM servers: data parallel, one killed, teacher, adapters.

Servers take half a minute to start on a CPU; everything here is therefore `full`.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from needed import wait_for
from vllm_toys import REAL_TOKENS, TOLERANCE, UPDATES, exercise, load_toy

from onpol_cli.core.config import Engine, LoraSync, RolloutConfig
from onpol_cli.core.processes import descendants
from onpol_cli.learner.model import resolve_model_path
from onpol_cli.rollout import server_process
from onpol_cli.rollout.engine import build_engine
from onpol_cli.rollout.server_process import start_servers
from onpol_cli.runs.rundir import read_lines, read_manifest

pytestmark = pytest.mark.full
STEPS = 12
PATIENCE_S = 900
SMALL = (
    *("task.problems=24", "method.prompts=4", "method.group=2", "rollout.sampling.max_new_tokens=48"),
    *("learner.threads=1", "sandbox.workers=1", "rollout.max_context=384", "rollout.max_batch=16"),
)


def words(root, name, *more):
    return [sys.executable, "-m", "onpol_cli.cli", *more, f"run.name={name}", f"paths.runs={root}", *SMALL]


def onpol(environment, *command):
    """Run to the end; the finished process."""
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def rows(run):
    return list(read_lines(run / "metrics.jsonl")) if (run / "metrics.jsonl").is_file() else []


def processes():
    """Id, parent, process group and words of every process."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            yield int(folder.name), int(fields[1]), int(fields[2]), (folder / "cmdline").read_text().split("\0")
        except OSError:  # gone meanwhile
            continue


def servers_of(parent):
    """Process ids, which are also process groups, of the servers that `parent` started."""
    return sorted(pid for pid, owner, _, words in processes() if owner == parent and "--served-model-name" in words)


@pytest.fixture(scope="module")
def environment(vllm_here, clean_environment):
    return clean_environment | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def root(tmp_path_factory, environment):
    """A folder of runs with a tutor in it."""
    folder = tmp_path_factory.mktemp("vllm-runs")
    short = ("method=sft", "method.steps=4", "method.epochs=0", "method.batch=4")
    done = onpol(environment, *words(folder, "tutor", "train", "tutor", *short))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_a_run_outlives_a_server_and_resumes_after_the_last(root, environment):
    run = root / "parallel"
    student = ("distill", "student", "tutor=tutor", "method=opd", "run.save_every=1", f"method.steps={STEPS}")
    command = words(root, "parallel", *student, "rollout=vllm_server", "rollout.local_servers=2")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(rows(run)) >= 2, process)
    first, second = servers_of(process.pid)
    os.kill(first, signal.SIGKILL)
    seen = len(rows(run))
    wait_for(lambda: len(rows(run)) >= seen + 3, process)
    assert "going on with 1" in (run / "run.log").read_text()
    os.kill(second, signal.SIGKILL)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1 and "No vLLM server is left" in err and "--resume" in err
    before = rows(run)
    assert seen + 3 <= len(before) < STEPS, "killed too late to tell"
    again = onpol(environment, *command, "--resume")
    assert again.returncode == 0, again.stderr[-3000:]
    after = rows(run)
    assert [row["step"] for row in after] == list(range(STEPS)) and after[: len(before)] == before
    assert all(row["canary/max_abs"] < TOLERANCE for row in after), "every step was sampled with the newest weights"
    assert read_manifest(run)["status"] == "done" and (run / "checkpoint" / "config.json").is_file()
    assert not [pid for pid, _, group, _ in processes() if group in (first, second)], "no engine is left behind"


def test_each_learner_process_has_a_sampler_of_its_own(root, environment):
    student = ("distill", "student", "tutor=tutor", "method=opd", "method.steps=4")
    for name, more in (("one", ()), ("two", ("parallel.nproc=2",))):
        done = onpol(environment, *words(root, name, *student, "rollout=vllm", *more))
        assert done.returncode == 0, done.stderr[-3000:]
    pairs = list(zip(rows(root / "one"), rows(root / "two"), strict=True))
    assert len(pairs) == 4 and all(row["canary/max_abs"] < TOLERANCE for pair in pairs for row in pair)
    alone, together = pairs[0]
    assert together["tokens/scored"] == alone["tokens/scored"], "the same rollouts, each made in one of two processes"
    assert together["loss/total"] == pytest.approx(alone["loss/total"], rel=1e-3)


def served_below(parent):
    """Words of every server among the descendants of `parent`."""
    family = set(descendants(parent))
    return [words for pid, _, _, words in processes() if pid in family and "--served-model-name" in words]


@pytest.mark.parametrize("more", [("model.lora.rank=4", "optim.lr=0.003"), ()], ids=["lora", "full"])
def test_learner_processes_share_servers_of_policy_and_teacher(root, environment, more):
    """One server of each, started by the first process; the second samples and scores by them too."""
    student = ("distill", "student", "tutor=tutor", "method=opd", "method.steps=4", "run.validate_every=2", *more)
    served = ("rollout=vllm_server", "method.scorer=vllm_server", "rollout.save=true", "task.validation_problems=5")
    name = f"shared-{len(more)}"
    for run, nproc in ((f"{name}-1", 1), (f"{name}-2", 2)):
        command = words(root, run, *student, *served, f"parallel.nproc={nproc}")
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(lambda run=run: len(rows(root / run)) >= 1, process)
        started = served_below(process.pid)
        _, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, err[-3000:]
        assert len(started) == 2, "one of the policy, one of the teacher"
    pairs = list(zip(rows(root / f"{name}-1"), rows(root / f"{name}-2"), strict=True))
    assert len(pairs) == 4 and all(row["canary/max_abs"] < TOLERANCE for pair in pairs for row in pair)
    alone, together = pairs[0]
    assert {key: together[key] for key in COMPARED} == pytest.approx({key: alone[key] for key in COMPARED}, rel=1e-3)
    kept = [list(read_lines(root / f"{name}-{n}" / "rollouts.jsonl"))[:8] for n in (1, 2)]
    kept = [[(row["step"], row["problem_id"], row["sample"], row["completion_ids"]) for row in found] for found in kept]
    assert kept[0] == kept[1], "both processes' rollouts of the first step are kept, in the order of one"
    for pair in pairs[1::2]:
        assert [row["validation/tiny-edit/n"] for row in pair] == [5.0, 5.0]


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_signal_while_servers_start_leaves_none_of_them(root, environment, nproc):
    """They are in sessions of their own, so that nobody else would end them."""
    student = ("distill", "student", "tutor=tutor", "method=opd", "method.steps=4", f"parallel.nproc={nproc}")
    command = words(root, f"ended-{nproc}", *student, "rollout=vllm_server", "rollout.local_servers=2")
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(served_below(process.pid)) == 2, process)
    family = descendants(process.pid)
    process.terminate()
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, err[-3000:]
    assert not [words for pid, _, _, words in processes() if pid in family]
    assert read_manifest(root / f"ended-{nproc}")["status"] == "interrupted"


COMPARED = ("loss/total", "kl/teacher", "grad_norm", "entropy", "reward/mean", "length/mean", "tokens/scored")


def test_a_server_scores_like_the_learner(root, environment):
    student = ("distill", "student", "tutor=tutor", "method=opd", "method.steps=4")
    for scorer in ("learner", "vllm_server"):
        done = onpol(environment, *words(root, scorer, *student, f"method.scorer={scorer}"))
        assert done.returncode == 0, done.stderr[-3000:]
    pairs = list(zip(rows(root / "learner"), rows(root / "vllm_server"), strict=True))
    assert len(pairs) == 4
    for local, served in pairs:
        assert {key: served[key] for key in COMPARED} == pytest.approx({key: local[key] for key in COMPARED}, rel=1e-3)


@contextmanager
def servers(environment, count, config, folder):
    """The user's own servers of a model folder, on loopback; yields their URLs."""
    with pytest.MonkeyPatch.context() as patch:
        for name in set(os.environ) - set(environment):
            patch.delenv(name)
        patch.setenv("OMP_NUM_THREADS", "1")
        names = [f"test-own-{number}" for number in range(count)]
        started = start_servers(Path(folder), config, min(384, config.max_context or 384), 0, names)
    try:
        yield [server.url for server in started]
    finally:
        for server in started:
            server.stop()


def test_servers_of_the_user_take_adapters_or_merged_weights(root, environment):
    config = RolloutConfig(engine=Engine.vllm_server, lora_sync=LoraSync.adapter, max_batch=16, max_lora_rank=8)
    opd = ("distill", "student", "tutor=tutor", "method=opd", "method.steps=4", "rollout=vllm_server")
    with servers(environment, 2, config, resolve_model_path("tiny")) as urls:
        given = f"rollout.servers={json.dumps(urls)}"
        for sync, nproc in (("adapter", 1), ("merged", 1), ("adapter", 2)):
            lora = ("model.lora.rank=4", "optim.lr=0.003", f"rollout.lora_sync={sync}", "rollout.max_lora_rank=8")
            done = onpol(environment, *words(root, f"{sync}-{nproc}", *opd, given, *lora, f"parallel.nproc={nproc}"))
            assert done.returncode == 0, done.stderr[-3000:]
    runs = [rows(root / name) for name in ("adapter-1", "merged-1", "adapter-2")]
    assert [len(found) for found in runs] == [4, 4, 4]
    assert all(row["canary/max_abs"] < TOLERANCE and row["kl/mismatch"] < 1e-6 for found in runs for row in found)
    assert all(row["grad_norm"] > 0 for found in runs for row in found), "adapters that do not change prove nothing"
    adapter, *others = ({key: found[1][key] for key in COMPARED} for found in runs)  # the first sampled after a sync
    assert all(other == pytest.approx(adapter, rel=0.02) for other in others)


def test_a_users_server_with_padded_rows_and_hostile_defaults(environment, real_toy, monkeypatch):
    # served as it is on disk: its padded rows would win every draw, its generation_config.json cuts every other
    arguments = server_process.server_arguments
    hidden = {"--generation-config", "vllm"}
    monkeypatch.setattr(server_process, "server_arguments", lambda *a: [w for w in arguments(*a) if w not in hidden])
    model, tokenizer = load_toy(real_toy)
    config = RolloutConfig(engine=Engine.vllm_server, max_batch=64, max_context=256)
    with servers(environment, 1, config, real_toy) as urls:
        config.servers = urls
        with build_engine(config, str(real_toy), tokenizer, 0, "cpu", model) as engine:
            record = exercise(engine, model, tokenizer)
    assert record["largest_id"] < REAL_TOKENS and len({tuple(ids) for ids in record["first"]}) == 9
    assert max(record["gap_before"], record["gap_after_updates"], record["greedy_gap"]) < TOLERANCE
    assert record["version"] == UPDATES and "Canary after weight sync 20" in record["stale"]
