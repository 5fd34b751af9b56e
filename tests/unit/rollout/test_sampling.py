"""Draws from logits: hand-worked cuts, and frequencies that match probabilities."""

import numpy as np
import pytest
import torch

from onpol_cli.core.config import SamplingConfig
from onpol_cli.rollout.sampling import (
    draw,
    draw_keys,
    exponentials,
    is_plain,
    processed_logprobs,
    repetition_penalty,
)

LOGITS = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()


@pytest.mark.parametrize(
    ("sampling", "want"),
    [
        (SamplingConfig(), [0.5, 0.3, 0.15, 0.05]),
        (SamplingConfig(top_k=2), [0.625, 0.375, 0, 0]),
        (SamplingConfig(top_p=0.7), [0.625, 0.375, 0, 0]),
        (SamplingConfig(top_p=0.1), [1, 0, 0, 0]),
        (SamplingConfig(min_p=0.25), [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        (SamplingConfig(temperature=0.5), [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        (SamplingConfig(temperature=0.0), [0.5, 0.3, 0.15, 0.05]),
    ],
)
def test_processed_distribution(sampling, want):
    assert processed_logprobs(LOGITS, sampling).exp()[0].tolist() == pytest.approx(want, abs=1e-6)


def keys(seed, count):
    return torch.from_numpy(draw_keys(seed, count))


def test_exponentials_are_standard_and_uncorrelated():
    found = exponentials(keys(3, 400), 500).double()
    assert found.mean().item() == pytest.approx(1.0, abs=0.01)  # standard error 0.0022
    assert found.std().item() == pytest.approx(1.0, abs=0.015)
    assert (found > 1).double().mean().item() == pytest.approx(np.exp(-1), abs=0.005)
    between_rows = np.corrcoef(found[:40].numpy())[np.triu_indices(40, 1)]
    between_columns = np.corrcoef(found[:, :40].T.numpy())[np.triu_indices(40, 1)]
    for pairs in (between_rows, between_columns):
        assert abs(pairs.mean()) < 0.01 and abs(pairs).max() < 0.25


def test_small_exponentials_are_fine_grained():
    found = exponentials(keys(4, 100), 20_000).flatten()
    assert len(found[found < 1e-3].unique()) > 0.99 * (found < 1e-3).sum()
    assert found.min() > 0 and found.isfinite().all()


def test_a_draw_depends_on_its_own_row_alone():
    rows = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    together, logprobs = draw(rows, keys(1, 6), SamplingConfig())
    for row in range(6):
        alone, logprob = draw(rows[row : row + 1], keys(1, 6)[row : row + 1], SamplingConfig())
        assert (alone.item(), logprob.item()) == (together[row].item(), pytest.approx(logprobs[row].item()))


def test_cut_tokens_are_never_drawn():
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 2.0, -torch.inf]]).expand(2000, 5)
    assert set(draw(logits, keys(2, 2000), SamplingConfig())[0].tolist()) == {1, 3}


def test_frequencies_match_probabilities():
    count = 20_000
    tokens, logprobs = draw(LOGITS.expand(count, 4), keys(7, count), SamplingConfig())
    shares = np.bincount(tokens.numpy(), minlength=4) / count
    assert shares == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.012)  # more than three standard errors
    assert torch.equal(logprobs, LOGITS.log_softmax(-1)[0][tokens])


def test_rare_tokens_keep_their_mass():
    logits = torch.full((4000, 2001), -np.log(2000.0 * 9))
    logits[:, 0] = 0.0  # 0.9 of the mass; two thousand others share 0.1
    tokens, _ = draw(logits, keys(8, 4000), SamplingConfig())
    rare = tokens[tokens > 0]
    assert len(rare) / 4000 == pytest.approx(0.1, abs=0.016)
    assert len(rare.unique()) > 0.8 * len(rare)
    assert rare.double().mean().item() == pytest.approx(1000, abs=100)


def test_greedy_ignores_the_random_numbers():
    tokens, logprobs = draw(LOGITS, keys(9, 1), SamplingConfig(temperature=0.0))
    assert (tokens.item(), logprobs.exp().item()) == (0, pytest.approx(0.5))


def test_keys_are_a_stream():
    assert draw_keys(5, 3).tolist() == draw_keys(5, 9)[:3].tolist()
    assert draw_keys(5, 3).tolist() != draw_keys(6, 3).tolist()


def test_repetition_penalty_lowers_seen_tokens():
    seen = torch.tensor([[True, True, False]])
    assert repetition_penalty(torch.tensor([[2.0, -2.0, 2.0]]), seen, 2.0).tolist() == [[1.0, -4.0, 2.0]]


def test_only_the_models_own_distribution_is_plain():
    assert is_plain(SamplingConfig(max_new_tokens=5))
    assert not any(map(is_plain, (SamplingConfig(top_p=0.9), SamplingConfig(top_k=5), SamplingConfig(0.7))))
