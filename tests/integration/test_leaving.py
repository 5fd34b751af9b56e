"""A dead learner process must not hold the others' GPUs for as long as a checkpoint may take."""

import os
import subprocess
import sys
import time

STUCK = """
import ctypes, os, signal, sys, time
from pathlib import Path
from onpol_cli.learner.leaving import leave_when_left

leave_when_left(patience=1.0)
rank, scenario = int(os.environ["RANK"]), sys.argv[1]

def say(word):  # in one write: under PYTHONUNBUFFERED print makes four, and pieces of both ranks mix
    os.write(1, f"{word} {rank}\\n".encode())

signal.signal(signal.SIGTERM, lambda *_: say("asked"))
ready = Path(sys.argv[0]).parent
(ready / f"ready-{rank}").touch()
while len(list(ready.glob("ready-*"))) < 2:  # a signal before its handler is there would end a process
    time.sleep(0.05)
if scenario == "dies" and rank == 1:
    time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)
if scenario == "told":
    if rank == 1:
        os.kill(os.getppid(), signal.SIGTERM)
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline:
        time.sleep(0.05)
    say("saved")
    os._exit(0)
libc = ctypes.CDLL(None)
libc.sleep(60)
libc.sleep(60)
"""


def run(tmp_path, scenario: str) -> tuple[str, float]:
    script = tmp_path / "stuck.py"
    script.write_text(STUCK)
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script), scenario]
    environment = {**os.environ, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "300", "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, timeout=280, env=environment)
    return done.stdout + done.stderr, time.monotonic() - start


def test_a_process_stuck_in_a_call_ends_when_its_peer_has_died(tmp_path):
    out, seconds = run(tmp_path, "dies")
    assert "this one still waits for it" in out
    assert seconds < 55, "the call that it is stuck in takes 60 and more"


def test_a_signal_with_all_peers_alive_leaves_them_their_time(tmp_path):
    out, _ = run(tmp_path, "told")
    assert {"saved 0", "saved 1", "asked 0", "asked 1"} <= set(out.splitlines())
    assert "still waits" not in out
