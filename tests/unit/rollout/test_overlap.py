"""The prefetcher: order, staleness, hand-over of errors."""

import logging
import subprocess
import sys
import threading
import time

import pytest
import torch

from onpol_cli.core.console import LOGGER
from onpol_cli.core.errors import RunFailed
from onpol_cli.rollout.overlap import Prefetcher


class Weights:
    version = 0


def test_without_overlap_every_batch_is_fresh():
    weights = Weights()
    with Prefetcher(lambda step: (step, weights.version), lambda: weights.version, steps=3, ahead=0) as batches:
        for step in range(3):
            got = batches.take(step)
            assert (got.value, got.staleness, got.waited) == ((step, step), 0, True)
            batches.settle()
            weights.version += 1


def test_with_overlap_batches_are_one_update_old_after_the_first():
    weights, main = Weights(), threading.get_ident()
    produced_in = []

    def produce(step):
        produced_in.append(threading.get_ident())
        return step, weights.version

    with Prefetcher(produce, lambda: weights.version, steps=4) as batches:
        for step in range(4):
            got = batches.take(step)
            assert got.value == (step, max(0, step - 1))
            assert (got.staleness, got.version) == (min(step, 1), max(0, step - 1))
            batches.settle()
            weights.version += 1
    assert produced_in[0] == main and all(thread != main for thread in produced_in[1:])
    assert len(produced_in) == 4, "nothing is produced beyond the last step"


def test_batches_are_made_on_the_device_of_the_thread_that_takes_them(monkeypatch):
    current = threading.local()  # as CUDA has it
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: getattr(current, "device", 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: setattr(current, "device", device))
    torch.cuda.set_device(3)
    with Prefetcher(lambda step: torch.cuda.current_device(), lambda: 0, steps=3) as batches:
        assert [batches.take(step).value for step in range(3)] == [3, 3, 3]


def test_a_device_that_is_gone_is_told_where_the_batch_is_taken(monkeypatch):
    def gone(device):
        raise RuntimeError(f"no device {device}")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", gone)
    with pytest.raises(RuntimeError, match="no device 1"), Prefetcher(lambda step: step, lambda: 0, steps=3) as batches:
        batches.take(0)
        batches.take(1)


def test_settle_waits_for_the_batch_under_way():
    go, log = threading.Event(), []

    def produce(step):
        if step == 1:
            assert go.wait(30)
        log.append(step)
        return step

    with Prefetcher(produce, lambda: 0, steps=2) as batches:
        batches.take(0)
        threading.Timer(0.05, go.set).start()
        batches.settle()
        assert log == [0, 1]


def test_a_failure_in_the_background_is_raised_where_the_batch_is_taken():
    def produce(step):
        if step == 1:
            raise RunFailed("no server is left")
        return step

    with Prefetcher(produce, lambda: 0, steps=3) as batches:
        batches.take(0)
        with pytest.raises(RunFailed, match="no server"):
            batches.take(1)


def test_a_batch_that_never_comes_ends_the_run():
    stuck = threading.Event()
    batches = Prefetcher(lambda step: stuck.wait(30) if step else step, lambda: 0, steps=2, timeout_s=0.05)
    batches.take(0)
    with pytest.raises(RunFailed, match=r"within 0 s"):
        batches.take(1)
    stuck.set()
    batches.close()


def test_a_batch_waited_for_in_vain_is_not_waited_for_again():
    stuck, began = threading.Event(), time.monotonic()
    with (
        pytest.raises(RunFailed, match="within 0 s"),
        Prefetcher(lambda step: stuck.wait(60) if step else step, lambda: 0, steps=2, timeout_s=0.05) as batches,
    ):
        batches.take(0)
        batches.take(1)
    assert time.monotonic() - began < 30
    stuck.set()


@pytest.mark.parametrize("fails", [False, True])
def test_the_end_waits_for_the_batch_under_way_and_keeps_the_first_error(fails):
    go, log, said = threading.Event(), [], []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]

    def produce(step):
        if step == 1:
            assert go.wait(30)
            if fails:
                raise RunFailed("no server is left")
        log.append(step)
        return step

    LOGGER.addHandler(handler)
    try:
        with pytest.raises(ValueError, match="the first"), Prefetcher(produce, lambda: 0, steps=3) as batches:
            batches.take(0)
            threading.Timer(0.1, go.set).start()
            raise ValueError("the first")
    finally:
        LOGGER.removeHandler(handler)
    assert log == ([0] if fails else [0, 1])
    assert said == (["the batch of step 1 failed: RunFailed: no server is left"] if fails else [])


def test_a_failure_that_ended_the_run_is_not_told_twice(caplog):
    def produce(step):
        if step == 1:
            raise RunFailed("no server is left")

    LOGGER.addHandler(caplog.handler)
    try:
        with pytest.raises(RunFailed, match="no server"), Prefetcher(produce, lambda: 0, steps=3) as batches:
            batches.take(0)
            batches.settle()
    finally:
        LOGGER.removeHandler(caplog.handler)
    assert caplog.records == []


ENDLESS = """
import os, signal, sys, threading, time
from onpol_cli.rollout import overlap
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets its commands in the background ignore it
overlap.PATIENCE_S = 0.1
def waits(line):
    print(line, flush=True)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

overlap.say = waits
with overlap.Prefetcher(lambda step: time.sleep(600 * step), lambda: 0, steps=2) as batches:
    batches.take(0)
    if sys.argv[1:]:
        raise ValueError("the first")
print("not reached")
"""
"""A run whose batch ahead takes ten minutes; Ctrl-C comes when it says that it waits."""


@pytest.mark.parametrize("error", [(), ("error",)])
def test_ctrl_c_ends_the_wait_and_the_process(error):
    done = subprocess.run([sys.executable, "-c", ENDLESS, *error], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["Waiting for the batch that is being sampled and graded. Ctrl-C ends the wait."]
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == ("ValueError: the first" if error else "KeyboardInterrupt")
