"""Reductions over processes."""

import pytest

from onpol_cli.core.errors import OnpolError
from onpol_cli.learner.parallel import World, interleaved
from onpol_cli.stages.completions import check_shares
from onpol_cli.training.loop import reduce_metrics


def test_one_process_changes_nothing():
    part = {"reward/mean": 0.5, "tokens/generated": 3.0}
    assert reduce_metrics([part]) is part


def test_counts_add_seconds_are_the_slowest_shares_average():
    parts = [
        {"reward/mean": 0.0, "tokens/generated": 3.0, "time/generate": 1.0, "length/max": 9.0, "memory/peak_mb": 7.0},
        {"reward/mean": 1.0, "tokens/generated": 5.0, "time/generate": 2.0, "length/max": 4.0, "canary/max_abs": 0.1},
    ]
    reduced = reduce_metrics(parts)
    expected = {"reward/mean": 0.5, "tokens/generated": 8.0, "time/generate": 2.0, "length/max": 9.0}
    assert reduced == expected | {"memory/peak_mb": 7.0, "canary/max_abs": 0.1}


def test_shares_weigh_as_many_rollouts_as_they_are_of():
    parts = [{"reward/mean": 0.0, "excess": 4.0}, {"reward/mean": 1.0}]
    assert reduce_metrics(parts, [6, 2]) == {"reward/mean": 0.25, "excess": 4.0}
    assert reduce_metrics(parts, [0, 0]) == {"reward/mean": 0.5, "excess": 4.0}


def test_a_process_without_a_share_does_not_count():
    assert reduce_metrics([{"reward/mean": 0.5}, {}]) == {"reward/mean": 0.5}


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 4, 7])
def test_interleaving_undoes_sharing(size, count):
    items = list(range(count))
    assert interleaved([World(rank, size).share(items) for rank in range(size)]) == items


def test_every_process_must_have_a_prompt():
    check_shares(4, 4)
    with pytest.raises(OnpolError, match=r"method\.prompts=4 or more"):
        check_shares(3, 4)
