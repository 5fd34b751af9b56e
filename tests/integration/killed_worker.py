"""Run in processes of its own by test_killed: trains, and may kill itself with SIGKILL in a phase. Not a test itself.

The phase is read off the main thread's stack by a second thread, so that nothing of the run is changed.
"""

import os
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from transformers.models.qwen3 import modeling_qwen3  # noqa: F401 - loaded once, in the server that forks the runs

from onpol_cli.core.compose import compose
from onpol_cli.runs.rundir import read_lines
from onpol_cli.stages import train
from onpol_cli.training import loop  # noqa: F401

WORDS = (
    # At another temperature the base is a teacher that disagrees with itself: there is something to learn.
    *("method=rl_opd", "tutor=tiny", "method.teacher_temperature=2.0", "method.steps=6", "method.prompts=2"),
    *("method.group=2", "optim.lr=1e-3"),
    *("rollout.sampling.max_new_tokens=24", "rollout.save=true", "run.save_every=2", "task.problems=24"),
    *("learner.threads=1", "sandbox.workers=1"),
)
LONGEST_S = 0.02
"""A kill comes at most this long after its phase was seen, if the phase lasts."""


@dataclass(frozen=True)
class Kill:
    """When to die: inside `phase`, once `rows` steps are logged, at a moment drawn from `seed`."""

    phase: str
    rows: int
    seed: int


def inside(phase: str, stack: list[tuple[str, str]]) -> bool:
    """Whether a stack of (file, function), innermost first, is in `phase`."""
    if phase == "rollout":
        return any("/onpol_cli/rollout/" in file and name == "generate" for file, name in stack)
    if phase == "backward":
        return any(file.endswith("torch/_tensor.py") and name == "backward" for file, name in stack)
    if phase == "checkpoint":
        return any(file.endswith("/runs/checkpoint.py") and name == "write_folder" for file, name in stack)
    return any(file.endswith("/training/loop.py") for file, name in stack)


def stack_of(thread: int) -> list[tuple[str, str]]:
    """(file, function) of a thread's frames, innermost first."""
    frame, found = sys._current_frames().get(thread), []
    while frame is not None:
        found.append((frame.f_code.co_filename, frame.f_code.co_name))
        frame = frame.f_back
    return found


def die_in(kill: Kill, run: Path, thread: int) -> None:
    """SIGKILL to this process at the wanted moment; leaves a note of where the run was."""
    draw = random.Random(kill.seed)
    while sum(1 for _ in read_lines(run / "metrics.jsonl")) < kill.rows:
        time.sleep(0.002)
    while True:
        if inside(kill.phase, stack_of(thread)):
            time.sleep(draw.uniform(0, LONGEST_S))
            if inside(kill.phase, stack := stack_of(thread)):
                run.with_name(f"{run.name}.note").write_text(" < ".join(name for _, name in stack))
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(draw.uniform(0, 0.001))


def run_training(root: Path, name: str, resume: bool, kill: Kill | None = None) -> None:
    """One run of the command line's own function."""
    if kill is not None:
        arguments = (kill, root / name, threading.get_ident())
        threading.Thread(target=die_in, args=arguments, daemon=True).start()
    config = compose([f"paths.runs={root}", f"run.name={name}", *WORDS])
    train.train_model(config, role="student", command=["test"], resume=resume)
