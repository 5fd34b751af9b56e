"""Run in processes of its own by test_killed: trains, and may kill itself with SIGKILL in a phase. Not a test itself.

The phase is read off the main thread's stack by a second thread, so that nothing of the run is changed. How long each
lasts is measured so in a run that is not killed.
"""

import faulthandler
import json
import os
import re
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

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
BEST = ("run.validate_every=6", "task.validation_problems=1")
"""Further words of the runs that are killed: they keep their best weights, those of the last step."""
STATE = ("/training/saving.py", "save")
PHASES = {
    "rollout": [("/onpol_cli/rollout/", "generate"), ("/stages/train.py", "sample"), ("", "sample_groups")],
    "backward": [("torch/_tensor.py", "backward")],
    "checkpoint": [STATE],
    "seal": [("/runs/checkpoint.py", "seal"), ("/runs/checkpoint.py", "write_folder"), STATE],
    "prune": [("/runs/checkpoint.py", "prune"), STATE],
    "best": [("/training/saving.py", "save_best")],
    "final": [("/stages/train.py", "finish")],
    "step": [("/training/loop.py", "")],
}
"""Calls, innermost first and each made by the next, that tell a phase: a part of the file's path, the function.

`seal` is the second of a state's two, that of the whole; `step` is any moment of the loop.
"""
LASTS = "lasts.json"
"""Beside the runs: seconds of each phase, the median of its times; of `step`, those of the loop over its steps."""
EVERY_S = 0.001
LOADED_BY = os.getpid()


@dataclass(frozen=True)
class Kill:
    """When to die: the first time in `phase` after `rows` steps are logged, at `moment` (0 to 1) of its duration."""

    phase: str
    rows: int
    moment: float


def inside(phase: str, stack: list[tuple[str, str]]) -> bool:
    """Whether a stack of (file, function), innermost first, is in `phase`."""
    wanted = PHASES[phase]
    return any(
        all(name in ("", found) and part in file for (part, name), (file, found) in zip(wanted, calls, strict=True))
        for calls in zip(*(stack[place:] for place in range(len(wanted))), strict=False)
    )


def stack_of(thread: int) -> list[tuple[str, str]]:
    """(file, function) of a thread's frames, innermost first, at most a hundred.

    By faulthandler, which reads them in one go while no other thread runs: a walk by `f_back` from here can take hold
    of a frame that its thread is just leaving (seen once: `f_code` was a dictionary).
    """
    with open(os.memfd_create("stacks"), "r+b", buffering=0) as file:
        faulthandler.dump_traceback(file, all_threads=True)
        text = os.pread(file.fileno(), 1 << 20, 0).decode()
    of_thread = re.search(rf"hread 0x0*{thread:x} .*\n((?: .*\n)*)", text)
    return re.findall(r'  File "(.*)", line \d+ in (.*)', of_thread[1]) if of_thread else []


def measure(thread: int, ended: threading.Event, lasts: dict[str, list[float]]) -> None:
    """Seconds of each time in a phase that was seen, into `lasts`."""
    since: dict[str, float] = {}
    over = False
    while not over:
        over = ended.wait(10 * EVERY_S)
        stack, now = stack_of(thread), time.perf_counter()
        seen = {phase: since.get(phase, now) for phase in PHASES if inside(phase, stack)}
        for phase in since.keys() - seen.keys():
            lasts.setdefault(phase, []).append(now - since[phase])
        since = seen


def die_in(kill: Kill, run: Path, thread: int, ended: threading.Event) -> None:
    """SIGKILL to this process at the wanted moment, or when the phase is over sooner; leaves a note of where it was."""
    wait = kill.moment * json.loads((run.parent / LASTS).read_text()).get(kill.phase, 0.0)
    while sum(1 for _ in read_lines(run / "metrics.jsonl")) < kill.rows:
        time.sleep(0.002)
    while not (seen := inside(kill.phase, stack_of(thread))) and not ended.is_set():
        time.sleep(EVERY_S)
    end = time.perf_counter() + wait
    while time.perf_counter() < end and inside(kill.phase, stack_of(thread)):
        time.sleep(EVERY_S)
    names = " < ".join(name for _, name in stack_of(thread))
    run.with_name(f"{run.name}.note").write_text(f"{kill.phase if seen else 'missed'} after {wait:.3f} s: {names}")
    os.kill(os.getpid(), signal.SIGKILL)


def run_training(root: Path, name: str, resume: bool, kill: Kill | None = None, timed: bool = False) -> None:
    """One run of the command line's own function.

    Args:
        timed: whether to measure the phases.
    """
    assert os.getppid() == LOADED_BY, "the server of processes did not load this module, so that each run does"
    ended, watcher = threading.Event(), None
    lasts: dict[str, list[float]] = {}
    if kill is not None:
        arguments = (kill, root / name, threading.get_ident(), ended)
        watcher = threading.Thread(target=die_in, args=arguments, daemon=True)
    elif timed:
        watcher = threading.Thread(target=measure, args=(threading.get_ident(), ended, lasts), daemon=True)
    if watcher is not None:
        watcher.start()
    config = compose([f"paths.runs={root}", f"run.name={name}", *WORDS, *BEST])
    train.train_model(config, role="student", command=["test"], resume=resume)
    ended.set()
    if watcher is not None:
        watcher.join()
    if timed:
        lasts["step"] = [lasts["step"][0] / config.method.steps]
        (root / LASTS).write_text(json.dumps({phase: median(found) for phase, found in lasts.items()}))
