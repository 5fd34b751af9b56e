"""Micro-batches of the padded route."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_cases import CPU

from onpol_cli.learner.batch import lay_out, plan


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


def test_predicting_positions_by_hand():
    layout = lay_out([([1, 2], [3, 4]), ([5], [6])], CPU)
    assert layout.input_ids.tolist() == [[1, 2, 3, 4], [5, 6, 0, 0]]
    assert layout.predict.tolist() == [1, 2, 4]
    assert layout.targets.tolist() == [3, 4, 6]
    assert layout.segments.tolist() == [0, 0, 1]
    assert layout.sizes == [2, 1]
