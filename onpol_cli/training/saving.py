"""What a run leaves on disk while it trains: resumable states and the best weights so far.

A state `state/step-N/` holds `learner.pt`, the same weights as a Hugging Face folder `model/` and, where batches are
made ahead, the batch that waits. `best/` holds the weights with the highest validation reward. Every process calls
every function here (gathering shards needs all of them); only the first writes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from onpol_cli.core.console import LOGGER
from onpol_cli.core.errors import RunFailed
from onpol_cli.runs.checkpoint import MODEL, STATE, latest_valid, prune, seal, step_folder, write_folder
from onpol_cli.runs.rundir import METRICS, read_lines
from onpol_cli.training.ahead import AheadSource

if TYPE_CHECKING:
    from onpol_cli.learner.learner import Learner
    from onpol_cli.training.loop import Parts
    from onpol_cli.training.sources import Metrics

PENDING = "pending.json"
BEST = "best"


def save(parts: Parts, done: int, keep: int) -> None:
    """Write the state after `done` steps, whole or not at all, and prune older ones."""
    source = parts.source
    pending = source.pending(done, parts.learner.world) if isinstance(source, AheadSource) else None

    def fill(folder: Path) -> None:
        _write_state(folder, parts.learner)
        if pending is not None:
            (folder / PENDING).write_text(json.dumps(pending), encoding="utf-8")
        write_model(folder / MODEL, parts.learner)
        seal(folder / MODEL)

    if parts.rank == 0:
        write_folder(step_folder(parts.run.state, done), fill)
        prune(parts.run.state, keep, newest=done)
    else:
        _write_state(parts.run.state, parts.learner)
        write_model(parts.run.state, parts.learner)
    parts.learner.world.gather(None)  # one that ended meanwhile would have torchrun end the one that writes


def save_before_stop(parts: Parts, done: int, saved: int, keep: int) -> str:
    """Save on the way out of a run that is stopped, unless `saved` steps are `done` steps.

    Returns:
        The sentence that says what became of it.
    """
    if done == 0:
        return "No step was finished before it: --resume begins anew."
    try:
        if saved < done:
            save(parts, done, keep)
    except RunFailed as error:
        return str(error)
    return f"The state after {done} step{'s' if done > 1 else ''} is saved."


def _write_state(folder: Path, learner: Learner) -> None:
    import torch

    state = learner.state_dict(keep=learner.world.rank == 0)
    if learner.world.rank == 0:
        with (folder / STATE).open("wb") as file:  # torch's own files hide the system's reason when a disk is full
            torch.save(state, file)


def write_model(folder: Path, learner: Learner) -> None:
    """The policy as a Hugging Face folder in bf16."""
    import torch

    learner.save_pretrained(folder, torch.bfloat16)


def score_of(metrics: Metrics) -> float | None:
    """Mean of `validation/<task>/reward` over tasks; None without a finite one."""
    rewards = [value for name, value in metrics.items() if name.startswith("validation/") and name.endswith("/reward")]
    return fmean(rewards) if rewards and math.isfinite(fmean(rewards)) else None


def save_best(parts: Parts, done: int, metrics: Metrics) -> None:
    """Write the weights after `done` steps to `best/` if no earlier validation of the run scored as high."""
    score = score_of(metrics)
    if score is None or not parts.learner.world.agreed(lambda: _is_better(parts, score)):
        return
    if parts.rank > 0:
        write_model(parts.run.path / BEST, parts.learner)
        return
    write_folder(parts.run.path / BEST, lambda folder: write_model(folder, parts.learner))
    parts.run.update_manifest(best={"step": done, "score": score})


def _is_better(parts: Parts, score: float) -> bool:
    best: dict[str, Any] | None = parts.run.manifest().get("best")
    kept = (parts.run.path / BEST / "config.json").is_file()
    return best is None or not kept or score > float(best["score"])


def restore(parts: Parts) -> int:
    """Load the newest whole state; returns the number of steps already done."""
    if not parts.run.resumed:
        return 0
    import torch

    found = parts.learner.world.agreed(lambda: latest_valid(parts.run.state))
    done = found[0] if found else 0
    if found:
        # Mapped where everything goes to a GPU anyway: the processes of a host then share one copy of the file.
        mapped = parts.learner.device.type == "cuda"
        state = torch.load(found[1] / STATE, map_location="cpu", weights_only=True, mmap=mapped)
        parts.learner.load_state_dict(state)
        if isinstance(parts.source, AheadSource) and (found[1] / PENDING).is_file():
            pending = json.loads((found[1] / PENDING).read_text(encoding="utf-8"))
            parts.source.put_back(pending, parts.learner.world)
        LOGGER.info("resumed after step %d from %s", done, found[1])
    if parts.rank == 0:
        parts.run.keep_steps_before(done)
        if ((parts.run.manifest().get("best") or {}).get("step") or 0) > done:  # of steps that are made again
            parts.run.update_manifest(best=None)
    parts.monitors.replay(parts.learner.world.agreed(lambda: list(read_lines(parts.run.path / METRICS))))
    return done
