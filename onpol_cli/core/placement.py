"""On which GPUs of a machine local vLLM servers run, and how weights reach them where nothing is said.

Owns the rules alone: no machine is asked and nothing is started, so that a plan follows them as a run does.
"""

from __future__ import annotations

from collections.abc import Sequence

from onpol_cli.core.config import LoraSync, RolloutConfig, WeightTransfer
from onpol_cli.core.errors import OnpolError


def automatic_transfer(config: RolloutConfig, alone: bool, gpus: int) -> WeightTransfer:
    """What `rollout.weight_transfer=auto` means on a GPU with a vLLM that can do both.

    `ipc` for the one server that has to share the learner's GPU; servers with others go there, and several are not
    sent one export of memory: each would release it, and torch counts one release.

    Args:
        alone: the learner is one process.
        gpus: of this machine.
    """
    one = alone and gpus <= 1 and config.local_servers == 1 and config.tensor_parallel == 1
    fits = one and not config.servers and config.lora_sync is LoraSync.merged
    return WeightTransfer.ipc if fits else WeightTransfer.reload


def teachers_turn(kind: WeightTransfer, samplers: int) -> int:
    """Number of the first teacher's server among those that take free GPUs: samplers of `ipc` take none."""
    return 0 if kind is WeightTransfer.ipc else samplers


def server_gpus(
    kind: WeightTransfer, number: int, workers: int, visible: Sequence[str], learners: Sequence[int]
) -> list[str]:
    """GPUs of local server `number`: the learner's own for `ipc`, the next free ones for `nccl`.

    For `reload` the free ones as well, and after them, in turn, those of the learner's processes.

    Args:
        workers: GPUs a server needs (`rollout.tensor_parallel`).
        visible: all GPUs of this machine that may be used, by the names in CUDA_VISIBLE_DEVICES.
        learners: places of the learner's among them.

    Raises:
        OnpolError: there are too few.
    """
    own = [visible[place] for place in learners if place < len(visible)]  # fewer: each process sees its own alone
    others = [name for name in visible if name not in own]
    if kind is WeightTransfer.ipc:
        return own[:1]
    if kind is WeightTransfer.reload:
        if workers > len(visible):
            raise OnpolError(
                f"rollout.tensor_parallel={workers} wants as many GPUs for each local server; {len(visible)} are "
                f"visible. Set rollout.tensor_parallel={len(visible)}."
            )
        turn = [*others, *own]
        return [turn[(number * workers + place) % len(turn)] for place in range(workers)]
    found = others[number * workers : (number + 1) * workers]
    if len(found) < workers:
        raise OnpolError(
            f"rollout.weight_transfer=nccl wants {workers} GPU(s) for each local server beside the learner's own; "
            f"{len(visible)} are visible. Lower rollout.local_servers, or use rollout.weight_transfer=ipc."
        )
    return found


def server_places(
    config: RolloutConfig, samplers: int, teachers: int, processes: int, gpus: int, alone: bool
) -> list[int]:
    """Places of the GPUs of all local servers' workers; a GPU is named as often as it serves one.

    Args:
        samplers: local servers that sample.
        teachers: local servers that score by a teacher; they come after the samplers (`teachers_turn`).
        processes: of the learner on this machine; each computes on the GPU of its number.
        gpus: of this machine.
        alone: the learner is one process, over all machines.
    """
    kind = config.weight_transfer
    kind = automatic_transfer(config, alone, gpus) if kind is WeightTransfer.auto else kind
    # A server of more workers than there are GPUs is refused when it is started: it takes them all here.
    workers = min(config.tensor_parallel, gpus)
    names, own = [str(place) for place in range(gpus)], range(processes)
    if kind is WeightTransfer.nccl:  # too few are refused when servers start
        used = [place + processes for place in range(samplers * workers)]
    else:
        used = [int(name) for number in range(samplers) for name in server_gpus(kind, number, workers, names, own)]
    reload = WeightTransfer.reload
    first = teachers_turn(kind, samplers)
    for number in range(first, first + teachers):
        used += map(int, server_gpus(reload, number, workers, names, own))
    return used


def servers_beside(places: Sequence[int], processes: int) -> int:
    """Most servers of `server_places` that share one of the learner's GPUs."""
    return max(places.count(place) for place in range(processes))
