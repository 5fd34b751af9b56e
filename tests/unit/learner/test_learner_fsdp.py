"""FSDP2 over gloo: the same curve as one process, and states that move between process counts.

The cheap run of two processes for every change is `tests/integration/test_parallel.py`.
"""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from fsdp_worker import base_first, build
from learner_cases import CPU, make_config, make_examples, make_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from onpol_cli.core.config import ModelConfig, ParallelConfig
from onpol_cli.core.errors import OnpolError
from onpol_cli.learner.model import empty_model, pick_device
from onpol_cli.learner.optim import Optimiser
from onpol_cli.learner.parallel import World, check_alike, hand_out, join_world, leave_world, torchrun_words

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def launch(folder, size, *cases):
    """Run the worker in `size` processes."""
    paths = [str(ROOT), str(HERE)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        environment.pop(name, None)
    words = [sys.executable]
    if size > 1:
        # --standalone lets torchrun choose a free port.
        words += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
    words += [str(HERE / "fsdp_worker.py"), str(folder), str(size), *cases]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def work(folder, size):
    """Run the worker in `size` processes; returns its curves."""
    launch(folder, size)
    return json.loads((folder / f"curves-{size}.json").read_text())


def compare(one, many, steps):
    for name, alone in one.items():
        for wanted, got in zip(alone["losses"][-steps:], many[name]["losses"][-steps:], strict=True):
            assert got == pytest.approx(wanted, abs=1e-5, rel=1e-5), name
        assert many[name]["scores"] == pytest.approx(alone["scores"], abs=1e-4), name


def saved_weights(folder, name, size):
    return AutoModelForCausalLM.from_pretrained(folder / f"{name}-{size}").state_dict()


def check(folder, size):
    straight, sharded, moved = (folder / part for part in ("one", "many", "moved"))
    for part in (straight, sharded, moved):
        part.mkdir()
    one, many = work(straight, 1), work(sharded, size)
    compare(one, many, 20)
    for name in one:  # plain Hugging Face folders, whoever wrote them
        wanted, got = saved_weights(straight, name, 1), saved_weights(sharded, name, size)
        assert wanted.keys() == got.keys()
        assert all(torch.allclose(wanted[key], got[key], atol=2e-4) for key in wanted), name
        after_scoring = saved_weights(sharded, name, f"{size}-scored")
        assert all(torch.equal(after_scoring[key], got[key]) for key in got), name
    for half in sharded.glob("*-half.pt"):
        half.rename(moved / half.name)
    compare(one, work(moved, 1), 10)
    return moved, one


@pytest.mark.full
def test_two_processes_train_as_one_and_their_state_loads_in_one(tmp_path):
    check(tmp_path, 2)


@pytest.mark.full
def test_four_processes_train_as_one_and_their_state_loads_in_one_and_two(tmp_path):
    moved, one = check(tmp_path, 4)
    compare(one, work(moved, 2), 10)


def test_a_step_without_any_sequence_that_fits_ends_all_processes_alike(tmp_path):
    """And one that fits somewhere does not."""
    launch(tmp_path, 2, "too-long")
    one, other = (json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(2))
    assert one == other and one[0] == [3.0, 1] and one[2] == [0.0, 2]
    longest = max(map(len, make_examples("sft", count=4)))
    assert f"(longest {longest}, 4 in all). Raise model.max_context" in one[1]


def test_adapters_train_in_float32_although_the_base_under_them_was_scored_first(tmp_path):
    """FSDP keeps the formats of what it finds trainable at its first forward, bf16 gathered from float32 shards."""
    base_first(tmp_path, 1)
    launch(tmp_path, 2, "base-first")
    one, two = (json.loads((tmp_path / f"base-first-{size}.json").read_text()) for size in (1, 2))
    assert two["base"] == pytest.approx(one["base"], rel=1e-2)
    assert two["losses"] == pytest.approx(one["losses"], rel=2e-2) and len(set(one["losses"])) == 3


def test_shares_cover_everything_once():
    items = list(range(11))
    shares = [World(rank, 3).share(items) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == items
    assert World().share(items) == items


def test_torchrun_call():
    words = torchrun_words(ParallelConfig(nproc=8), ["onpol_cli.cli", "train", "tutor"])
    assert words[1:] == [
        "-m", "torch.distributed.run", "--nproc-per-node=8", "--standalone", "-m", "onpol_cli.cli", "train", "tutor",
    ]  # fmt: skip
    nodes = torchrun_words(ParallelConfig(nproc=8, nnodes=2, rendezvous="node0:29400"), ["onpol_cli.cli"])
    assert "--nnodes=2" in nodes
    assert "--rdzv-endpoint=node0:29400" in nodes
    with pytest.raises(OnpolError, match=r"parallel\.rendezvous"):
        torchrun_words(ParallelConfig(nproc=8, nnodes=2), ["onpol_cli.cli"])


def test_each_process_has_a_gpu_of_its_own_or_the_one_it_sees(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    for count, place in ((8, 3), (1, 0)):  # Slurm's --gpus-per-task=1 shows each task one, as number 0
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert pick_device(ModelConfig()) == torch.device("cuda", place)


@pytest.fixture
def one_process(monkeypatch):
    """torchrun's variables of a group of one process."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)


def test_processes_wait_for_each_other_as_long_as_configured(one_process, monkeypatch):
    """What torch was told, and that leaving ends the group."""
    told = {}
    begin = dist.init_process_group
    monkeypatch.setattr(dist, "init_process_group", lambda *words, **more: (told.update(more), begin(*words, **more)))
    config = ParallelConfig(nproc=2, backend="gloo", timeout_minutes=90)
    try:
        assert join_world(config, CPU) == join_world(config, CPU) == World(0, 1)
        assert told["timeout"] == timedelta(minutes=90)
    finally:
        leave_world()
    assert not dist.is_initialized()
    leave_world()  # nothing to leave


@pytest.mark.parametrize("more", [{"nproc": 2}, {"nnodes": 2}])
def test_a_process_that_is_to_be_one_of_several_does_not_go_on_alone(monkeypatch, more):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OnpolError, match=r"ask for 2 processes, and this one is alone\. onpol train tutor, "):
        join_world(ParallelConfig(**more), CPU)
    assert join_world(ParallelConfig(), CPU) == World(0, 1)


def test_a_process_ends_with_its_status_output_and_exit_handlers():
    code = "import atexit, sys; from onpol_cli.learner.parallel import end_process; "
    code += "atexit.register(print, 'handled'); sys.stdout.write('said '); end_process(7); print('not reached')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (7, "said handled\n")


KEPT_TO_THE_END = """
import atexit, sys
from onpol_cli import cli

class Kept:
    def __del__(self):
        print("torn down")

sys.modules["kept"] = Kept()
atexit.register(print, "exit handler")
sys.argv = ["onpol", "runs", "list", "paths.runs=nowhere", "--json"]
cli.main()
"""


def test_the_command_line_ends_learner_processes_like_that():
    """The interpreter is not taken down, while threads of gloo could abort the process."""
    for learner, last in (({}, "torn down"), ({"RANK": "0", "WORLD_SIZE": "2"}, "exit handler")):
        done = subprocess.run(
            [sys.executable, "-c", KEPT_TO_THE_END],
            capture_output=True, text=True, timeout=120, env={**os.environ, **learner},
        )  # fmt: skip
        assert done.stdout.strip().splitlines()[-1] == last, done.stderr


def test_a_rank_that_does_not_write_keeps_no_tensors():
    learner = build("sft", False, 1)
    learner.step(make_examples("sft"))
    kept, passed = learner.state_dict(), learner.state_dict(keep=False)
    weights = dict(learner.model.named_parameters())
    assert kept["weights"].keys() == passed["weights"].keys()
    assert set(passed["weights"].values()) == {None}
    assert all(value is None for of in passed["optimiser"]["parts"][0]["state"].values() for value in of.values())
    for name, value in kept["weights"].items():  # copies: later steps do not change what is being written
        assert torch.equal(value, weights[name]) and value.data_ptr() != weights[name].data_ptr()


def test_weights_are_handed_to_models_without_any(one_process):
    """Tied weights stay one, buffers arrive too. What arrives in several processes, the integration tests show."""
    model, twin = make_model(dtype=torch.float32), make_model(dtype=torch.float32)
    join_world(ParallelConfig(nproc=2, backend="gloo"), CPU)
    try:
        hand_out(list(twin.modules()), CPU)
        assert twin.lm_head.weight is twin.model.embed_tokens.weight
        assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(), strict=True))
        empty = empty_model(model.config, torch.float32)
        assert all(value.is_meta for value in (*empty.parameters(), *empty.buffers()))
        hand_out(list(empty.modules()), CPU)
    finally:
        leave_world()
    assert empty.lm_head.weight is empty.model.embed_tokens.weight
    assert not any(value.is_meta for value in (*empty.parameters(), *empty.buffers()))
    assert [p.shape for p in empty.parameters()] == [p.shape for p in model.parameters()]
    assert [p.requires_grad for p in empty.parameters()] == [p.requires_grad for p in model.parameters()]


def test_shards_are_stepped_by_the_fused_kernel_as_whole_tensors_are(one_process):
    config = make_config()
    whole, sharded = make_model(dtype=torch.float32), make_model(dtype=torch.float32)
    join_world(ParallelConfig(nproc=2, backend="gloo"), CPU)
    try:
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        optimisers = [Optimiser(list(model.named_parameters()), [], config.optim, 3) for model in (whole, sharded)]
        for _ in range(3):
            for model, optimiser in zip((whole, sharded), optimisers, strict=True):
                model(input_ids=torch.arange(20)[None]).logits.square().sum().backward()
                optimiser.step()
        groups = [group for optimiser in optimisers for group in optimiser._parts[0][0].param_groups]
        assert [group["fused"] for group in groups] == [True] * 4
        for one, shard in zip(whole.parameters(), sharded.parameters(), strict=True):
            assert isinstance(shard, DTensor) and torch.equal(shard.full_tensor(), one)
    finally:
        leave_world()


def test_models_that_differ_between_processes_are_refused(monkeypatch):
    one, other = make_model(tied=True), make_model(tied=False)

    def gathered(everyone, own):
        everyone[:] = [own, [*own[:-1], ("model.odd", (1,), "torch.float32")]]

    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", gathered)
    with pytest.raises(OnpolError, match="process 1 is not that of process 0"):
        check_alike(one)
    names = [{name for name, _ in model.named_parameters()} for model in (one, other)]
    assert names[0] ^ names[1] == {"lm_head.weight"}  # what is compared shows ties
