"""The prefetcher: order, staleness, hand-over of errors."""

import threading

import pytest

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
