"""Draws from logits: hand-worked cuts, and frequencies that match probabilities."""

import numpy as np
import pytest
import torch

from onpol_cli.core.config import SamplingConfig
from onpol_cli.rollout.sampling import draw, is_plain, processed_logprobs, repetition_penalty, uniforms

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


def test_uniform_number_picks_the_interval_it_falls_into():
    uniform = torch.tensor([0.0, 0.499, 0.501, 0.81, 0.96, 1 - 2**-53], dtype=torch.float64)
    tokens, logprobs = draw(LOGITS.expand(6, 4), uniform, SamplingConfig())
    assert tokens.tolist() == [0, 0, 1, 2, 3, 3]
    assert logprobs.exp().tolist() == pytest.approx([0.5, 0.5, 0.3, 0.15, 0.05, 0.05])


def test_cut_tokens_are_never_drawn_even_at_the_edges():
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 2.0, -torch.inf]]).expand(2, 5)
    tokens, _ = draw(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), SamplingConfig())
    assert tokens.tolist() == [1, 3]


def test_frequencies_match_probabilities():
    count = 20_000
    tokens, _ = draw(LOGITS.expand(count, 4), torch.from_numpy(uniforms(7, count)), SamplingConfig())
    shares = np.bincount(tokens.numpy(), minlength=4) / count
    assert shares == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.012)  # more than three standard errors


def test_rare_tokens_of_a_large_vocabulary_keep_their_mass():
    logits = torch.zeros(1, 150_001)
    logits[0, 0] = 20.0  # the other 150,000 share 3e-4 of the mass, each 2e-9: below float32's step at 1
    rare = 150_000 / (150_000 + np.exp(20.0))
    tokens, _ = draw(logits, torch.tensor([1 - rare / 2], dtype=torch.float64), SamplingConfig())
    assert abs(tokens.item() - 75_000) < 2_000


def test_greedy_ignores_the_uniform_number():
    tokens, logprobs = draw(LOGITS, torch.tensor([0.99], dtype=torch.float64), SamplingConfig(temperature=0.0))
    assert (tokens.item(), logprobs.exp().item()) == (0, pytest.approx(0.5))


def test_uniforms_are_a_stream():
    assert uniforms(5, 3).tolist() == uniforms(5, 9)[:3].tolist()
    assert uniforms(5, 3).tolist() != uniforms(6, 3).tolist()


def test_repetition_penalty_lowers_seen_tokens():
    seen = torch.tensor([[True, True, False]])
    assert repetition_penalty(torch.tensor([[2.0, -2.0, 2.0]]), seen, 2.0).tolist() == [[1.0, -4.0, 2.0]]


def test_only_the_models_own_distribution_is_plain():
    assert is_plain(SamplingConfig(max_new_tokens=5))
    assert not any(map(is_plain, (SamplingConfig(top_p=0.9), SamplingConfig(top_k=5), SamplingConfig(0.7))))
