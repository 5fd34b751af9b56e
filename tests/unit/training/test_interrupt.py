"""Signals: a run of several processes stops as one, and what a command holds is closed in order."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from needed import wait_for

from onpol_cli.core.config import RunConfig
from onpol_cli.training import loop
from onpol_cli.training.interrupt import Interrupted, StopRequest, ended_in_order

COMMAND = """
import pathlib, sys, time
import typer
from onpol_cli.core.errors import RunFailed
from onpol_cli.process import run

app = typer.Typer()
folder = pathlib.Path(sys.argv[1])

class Held:
    def __enter__(self):
        (folder / "open").touch()
    def __exit__(self, *_):
        (folder / "closing").touch()
        time.sleep(1.5)
        (folder / "closed").touch()

@app.command()
def work(fails: bool = False):
    with Held():
        if fails:
            raise RunFailed("It broke.")
        while True:
            time.sleep(0.01)

@app.command()
def other():
    pass

sys.exit(run(app, sys.argv[2:]))
"""


def start(folder: Path, *words: str, before: str = "") -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", before + COMMAND, str(folder), "work", *words], stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_ended_closes_what_it_holds(tmp_path, number):
    """Even if it is told again while it closes."""
    process = start(tmp_path, before="import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n")
    wait_for((tmp_path / "open").exists, process)
    process.send_signal(number)
    wait_for((tmp_path / "closing").exists, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and f"Ended by {number.name}" in err
    assert (tmp_path / "closed").exists()


def test_a_failure_is_not_cut_short(tmp_path):
    """torchrun sends SIGTERM to the processes that still close when the first one has failed."""
    process = start(tmp_path, "--fails")
    wait_for((tmp_path / "closing").exists, process)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "It broke." in err and (tmp_path / "closed").exists()


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_in_order(), StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.asked and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with ended_in_order(), StopRequest():
        pass
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


@dataclass
class Rank:
    """One of two threads that stand for learner processes; `gather` waits for both."""

    rank: int
    barrier: threading.Barrier
    values: list = field(default_factory=lambda: [None, None])
    size: int = 2

    def gather(self, value):
        self.values[self.rank] = value
        self.barrier.wait(timeout=20)
        found = list(self.values)
        self.barrier.wait(timeout=20)
        return found


@pytest.mark.parametrize("told", [{0}, {1}, {0, 1}])
def test_processes_that_are_told_while_one_reports_save_the_same_step(monkeypatch, told):
    """Rank 0 is told after rank 1 has reported already: both stop after the same step, whoever was told."""
    barrier, values, saved, ends = threading.Barrier(2), [None, None], [], []
    own = threading.local()

    class Asked:
        def __enter__(self):
            self.asked = False
            own.stop = self
            return self

        def __exit__(self, *_):
            return None

    def save(parts, done, keep):
        parts.learner.world.gather(None)
        saved.append((parts.rank, done))

    monkeypatch.setattr(loop, "StopRequest", Asked)
    monkeypatch.setattr(loop, "save", save)
    monkeypatch.setattr(loop, "restore", lambda parts: 0)
    monkeypatch.setattr(loop, "try_step", lambda parts, step: (parts.learner.world.gather(None), {}, [], None)[1:])
    reported = threading.Event()

    def run(rank):
        world = Rank(rank, barrier, values)

        def report(step, metrics, groups):
            if step == 1 and rank == 1:
                own.stop.asked = rank in told
                reported.set()
            elif step == 1:
                reported.wait(20)
                own.stop.asked = rank in told

        quiet = SimpleNamespace(check=lambda step, metrics: None)
        learner = SimpleNamespace(world=world)
        run = SimpleNamespace(log=lambda row: None)
        parts = loop.Parts(run, None, learner, None, quiet, steps=5, on_step=report)
        try:
            loop.train(parts, RunConfig(save_every=0))
        except (Interrupted, threading.BrokenBarrierError) as error:
            ends.append(type(error))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == [Interrupted, Interrupted]
    assert sorted(saved) == [(0, 2), (1, 2)]
