"""Several processes: the torchrun call, the process group, FSDP2 shards, sums over ranks.

Each rank trains on its own share of a step's examples; losses are divided by global counts, so that
the summed gradient is that of one process. Layers are FSDP2 units; embedding, final norm and output
matrix belong to the root, which is a wrapper whose forward runs forward *and* loss, since the chunked
head needs the whole output matrix. Only rank 0 reads weights; the others get them a layer at a time, and no
device ever holds more than its shards and one layer, or the ends. Owns no formula.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from onpol_cli.core.config import Dtype, LearnerConfig, ParallelConfig
from onpol_cli.core.errors import OnpolError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedModel

T = TypeVar("T")
PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables of a learner process's place among the others."""


def under_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun, or something else that sets its variables, started this process."""
    return "RANK" in environment and "WORLD_SIZE" in environment


def without_torchrun(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for a child that is no learner process: without what torchrun told this one of its place."""
    return {
        name: value
        for name, value in environment.items()
        if name not in PLACE and not name.startswith(("TORCHELASTIC_", "GROUP_", "ROLE_"))
    }


def torchrun_words(config: ParallelConfig, program: Sequence[str]) -> list[str]:
    """Command line that starts `program` (module words after `-m`) in `nproc` x `nnodes` processes.

    Args:
        config: processes per node, nodes, rendezvous.
        program: e.g. `["onpol_cli.cli", "train", "tutor", "parallel.nproc=2"]`.
    """
    words = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={config.nproc}"]
    if config.nnodes == 1:
        words.append("--standalone")
    elif not config.rendezvous:
        raise OnpolError(
            f"parallel.nnodes={config.nnodes} needs parallel.rendezvous=HOST:PORT, the address of one node "
            "that all others reach. Give the same command on every node."
        )
    else:
        words += [f"--nnodes={config.nnodes}", "--rdzv-backend=c10d", f"--rdzv-endpoint={config.rendezvous}"]
    return [*words, "-m", *program]


@dataclass(frozen=True)
class World:
    """This process among its peers; `size` 1 means alone."""

    rank: int = 0
    size: int = 1

    def share(self, items: Sequence[T]) -> list[T]:
        """Every `size`-th item, starting with this rank's: what this rank works on."""
        return list(items[self.rank :: self.size])

    def join(self, share: Sequence[T]) -> list[T]:
        """Everybody's shares in the order of one process: the inverse of `share`. A collective call."""
        return interleaved(self.gather(share))

    def agreed(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, where alone it is called; the others wait for it. A collective call."""
        return cast(T, self.gather(make() if self.rank == 0 else None)[0])

    def gather(self, value: T) -> list[T]:
        """`value` of every rank, in rank order."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, value)
        return everyone


ALONE = World()


def interleaved(parts: Sequence[Sequence[T]]) -> list[T]:
    """The first of each part, then the second of each, and so on."""
    longest = max(map(len, parts))
    return [part[place] for place in range(longest) for part in parts if place < len(part)]


def join_world(config: ParallelConfig, device: torch.device) -> World:
    """Join the process group that torchrun's variables describe; alone if one process is configured.

    Safe to call again: a process joins once.

    Raises:
        OnpolError: several processes are configured, and nothing has started this one among others.
    """
    asked = config.nproc * config.nnodes
    if asked == 1:
        return ALONE
    if not under_torchrun():
        raise OnpolError(
            f"parallel.nproc={config.nproc} and parallel.nnodes={config.nnodes} ask for {asked} processes, and this "
            "one is alone. onpol train tutor, distill student, sweep and reproduce start them; leave parallel out of "
            "other commands."
        )
    import torch
    import torch.distributed as dist

    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = config.backend
        if backend == "auto":
            backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            device_id=device if backend == "nccl" else None,
            timeout=timedelta(minutes=config.timeout_minutes),
        )
    return World(dist.get_rank(), dist.get_world_size())


def leave_world() -> None:
    """End the process group, if one was joined, at the end of a run that went well: NCCL wants it closed by hand.

    After a failure the others may be waiting in a collective call; then leaving is torchrun's business.
    """
    import torch.distributed as dist

    if under_torchrun() and dist.is_initialized():
        dist.destroy_process_group()


def end_process(status: int) -> NoReturn:
    """End a learner process with `status`: exit handlers run and output is flushed, the interpreter is not taken down.

    While it is, threads of gloo that still want its lock are unwound by force, and C++ aborts the process ("terminate
    called without an active exception", signal 6), long after all is done.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def check_alike(model: PreTrainedModel) -> None:
    """Refuse models that differ from rank to rank, which would wait for each other for ever. A collective call."""
    import torch.distributed as dist

    tensors = [*model.named_parameters(), *model.named_buffers()]
    own = [(name, tuple(value.shape), str(value.dtype)) for name, value in tensors]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    for rank, theirs in enumerate(everyone):
        if theirs != everyone[0]:
            unlike = sorted(set(theirs) ^ set(everyone[0]))[:1]
            raise OnpolError(f"The model of process {rank} is not that of process 0 (first difference: {unlike}).")


def hand_out(modules: Sequence[nn.Module], device: torch.device) -> None:
    """Rank 0's weights and buffers of `modules` on every rank's `device`, in place. A collective call.

    Args:
        modules: the same on every rank in the same order, without children that others hand out. Those of rank 0 hold
            values; what others hold is replaced, and may be on the meta device.
        device: of this rank.
    """
    import torch
    import torch.distributed as dist

    placed: dict[int, tuple[Tensor, Tensor]] = {}  # by identity, with what it was: tied weights stay one
    for module in modules:
        for own in (module._parameters, module._buffers):
            for name, value in own.items():
                if value is None:
                    continue
                if id(value) not in placed:
                    there = torch.empty_like(value, device=device) if value.is_meta else value.detach().to(device)
                    if isinstance(value, torch.nn.Parameter):
                        there = torch.nn.Parameter(there, requires_grad=value.requires_grad)
                    dist.broadcast(there.detach(), src=0)
                    placed[id(value)] = value, there
                own[name] = placed[id(value)][1]  # type: ignore[assignment, index]


def shard(model: PreTrainedModel, config: LearnerConfig, device: torch.device) -> Callable[[Callable[[], T]], T]:
    """Shard `model` in place over all ranks.

    Args:
        model: policy or frozen scorer; rank 0's holds the weights, those of others may be on the meta device.
        config: bf16 autocast gathers the layers' weights in bf16.
        device: of the shards.

    Returns:
        A function that runs a closure with the root's weights gathered; forward passes go through it.
    """
    import torch
    from torch import nn
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    class Root(nn.Module):
        """Owns the model, so that FSDP's hooks surround whatever closure is run."""

        def __init__(self) -> None:
            super().__init__()
            self.policy = model

        def forward(self, closure: Callable[[], Any]) -> Any:
            return closure()

    layers = getattr(model.base_model, "layers", None)
    if layers is None:
        raise OnpolError(f"{type(model).__name__} has no list of layers to shard; use parallel.nproc=1 for it.")
    check_alike(model)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    reduced = torch.bfloat16 if config.autocast is Dtype.bfloat16 and model.dtype == torch.float32 else None
    narrow = MixedPrecisionPolicy(param_dtype=reduced, reduce_dtype=torch.float32, cast_forward_inputs=False)
    exact = MixedPrecisionPolicy(cast_forward_inputs=False)
    inside = set()
    for layer in layers:
        inside |= {id(module) for module in layer.modules()}
        hand_out(list(layer.modules()), device)
        fully_shard(layer, mesh=mesh, mp_policy=narrow if reduced else exact)
    root = Root()
    hand_out([module for module in root.modules() if id(module) not in inside], device)
    # Without a backward pass nothing else would give the gathered ends back.
    frozen = not any(parameter.requires_grad for parameter in model.parameters())
    fully_shard(root, mesh=mesh, mp_policy=exact, reshard_after_forward=frozen)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            # Losses carry the global count already: gradients are summed, not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return root


def whole(value: Tensor) -> Tensor:
    """A detached, unsharded copy or view of a parameter. A collective call for shards."""
    from torch.distributed.tensor import DTensor

    value = value.detach()
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_state(state: Any, keep: bool = True) -> Any:
    """Nested containers with every shard made whole, copied to the CPU. A collective call.

    With `keep` false tensors are only passed through and None stands in their place: for ranks that take part but do
    not write, lest each holds a copy of everything on one host.
    """
    import torch

    if isinstance(state, dict):
        return {name: whole_state(value, keep) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(whole_state(value, keep) for value in state)
    if not isinstance(state, torch.Tensor):
        return state
    value = whole(state)
    if not keep:
        return None
    return value.clone() if value.device.type == "cpu" else value.cpu()


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """`value` cut up as `parameter` is (unchanged where that is whole or of another shape)."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
    return value
