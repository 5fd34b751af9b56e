"""Micro-batches of the padded route."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_cases import CPU

from onpol_cli.learner.batch import FEW, lay_out, plan


@given(st.lists(st.integers(2, 300), min_size=1, max_size=60), st.integers(1, 2000))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_every_unit_once_within_budget(lengths, budget):
    batches = plan([[size] for size in lengths], budget)
    assert sorted(unit for batch in batches for unit in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[unit] for unit in batch) <= budget


def test_padding_stays_below_five_percent_on_a_long_tailed_batch():
    generator = torch.Generator().manual_seed(0)
    lengths = (200 + 3000 * torch.rand(512, generator=generator) ** 3).long().tolist()
    batches = plan([[size] for size in lengths], 16384)
    padded = sum(len(batch) * max(lengths[unit] for unit in batch) for batch in batches)
    assert 1 - sum(lengths) / padded < 0.05


def padding_of(units, budget):
    """Share of padding and number of micro-batches."""
    batches = plan(units, budget)
    padded = sum(
        sum(len(units[unit]) for unit in batch) * max(max(units[unit]) for unit in batch) for batch in batches
    )
    return 1 - sum(map(sum, units)) / padded, len(batches)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("count", "low", "high", "budget"), [(16, 100, 1000, 8192), (8, 300, 3000, 16384), (3, 50, 4000, 8192)]
)
def test_padding_of_small_steps_stays_below_five_percent(count, low, high, budget, seed):
    drawn = random.Random(seed)
    units = [[drawn.randint(low, high)] for _ in range(count)]
    share, batches = padding_of(units, budget)
    assert batches <= count
    assert share <= 0.05 or share / (1 - share) * sum(map(sum, units)) <= FEW
    assert share <= 0.05 or sum(map(sum, units)) < 20 * FEW


def test_few_tokens_are_not_cut_into_many_passes():
    share, batches = padding_of([[20 + 5 * number] for number in range(16)], 8192)
    assert batches <= 3 and share < 0.25


def test_equal_lengths_fill_the_budget():
    assert padding_of([[100]] * 16, 800) == (0.0, 2)


def test_a_pair_is_padded_to_its_longer_side():
    share, batches = padding_of([[100, 80], [900, 500]], 8192)
    assert batches == 2 and share == pytest.approx(1 - 1580 / 2000)
    _, batches = padding_of([[900, 500], [890, 600], [880, 450], [905, 880]], 8192)
    assert batches == 1  # more would spare nothing


def test_predicting_positions_by_hand():
    layout = lay_out([([1, 2], [3, 4]), ([5], [6])], CPU)
    assert layout.input_ids.tolist() == [[1, 2, 3, 4], [5, 6, 0, 0]]
    assert layout.predict.tolist() == [1, 2, 4]
    assert layout.targets.tolist() == [3, 4, 6]
    assert layout.segments.tolist() == [0, 0, 1]
    assert layout.sizes == [2, 1]
