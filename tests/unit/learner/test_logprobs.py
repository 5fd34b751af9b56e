"""Chunked log-probs and entropies against hand-worked values and plain autograd."""

import math

import pytest
import torch

from onpol_cli.learner import logprobs as module
from onpol_cli.learner.head import HeadOptions
from onpol_cli.learner.logprobs import token_logprobs, token_logprobs_entropy, weighted_nll


def case(tokens=7, hidden=5, rows=11):
    torch.manual_seed(3)
    states = torch.randn(tokens, hidden, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(rows, hidden, dtype=torch.float64, requires_grad=True)
    return states, weight


def test_logprob_and_entropy_by_hand():
    # One hidden unit, weights log 1, log 2, log 5: probabilities 1/8, 2/8, 5/8.
    states = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[0.0], [math.log(2)], [math.log(5)]], dtype=torch.float64, requires_grad=True)
    logprobs, entropy = token_logprobs_entropy(states, weight, torch.tensor([1]), HeadOptions(3))
    assert logprobs.item() == pytest.approx(math.log(0.25), abs=1e-12)
    by_hand = -(math.log(1 / 8) / 8 + math.log(2 / 8) * 2 / 8 + math.log(5 / 8) * 5 / 8)
    assert entropy.item() == pytest.approx(by_hand, abs=1e-12)
    logprobs.sum().backward()
    assert torch.allclose(weight.grad.flatten(), torch.tensor([-1 / 8, 6 / 8, -5 / 8], dtype=torch.float64))


@pytest.mark.parametrize(("tokens", "vocab"), [(4096, 151_669), (4096, 151_936), (1, 151_669), (10**6, 300)])
def test_blocks_start_at_multiples_of_64_and_cover_the_vocabulary_once(tokens, vocab):
    blocks = list(module._blocks(tokens, torch.empty(0), HeadOptions(vocab)))
    assert [block.start for block in blocks[1:]] == [block.stop for block in blocks[:-1]]
    assert (blocks[0].start, blocks[-1].stop) == (0, vocab)
    assert all(block.start % 64 == 0 for block in blocks)
    assert len(blocks) > 1 or tokens == 1


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_value_and_gradient_equal_log_softmax(chunk, temperature, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 1)  # else a vocabulary of 9 is always one block
    monkeypatch.setattr(module, "ALIGNED", 1)
    monkeypatch.setattr(module, "TILE", 4)
    states, weight = case()
    targets = torch.tensor([0, 3, 8, 1, 1, 7, 2])
    upstream = torch.linspace(-1, 1, 14, dtype=torch.float64).view(7, 2)
    options = HeadOptions(9, chunk, temperature)
    both = torch.stack(token_logprobs_entropy(states, weight, targets, options, entropy_grad=True), 1)
    grads = torch.autograd.grad((both * upstream).sum(), [states, weight])
    logp = ((states @ weight[:9].T) / temperature).log_softmax(1)
    plain = torch.stack([logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(1)], 1)
    expected = torch.autograd.grad((plain * upstream).sum(), [states, weight])
    assert torch.allclose(both, plain, atol=1e-12)
    for got, wanted in zip(grads, expected, strict=True):
        assert torch.allclose(got, wanted, atol=1e-12)


def test_padded_rows_have_no_effect_and_no_gradient():
    states, weight = case()
    targets = torch.zeros(7, dtype=torch.long)
    before = token_logprobs(states, weight, targets, HeadOptions(9))
    with torch.no_grad():
        weight[9:] = 1e6
    after = token_logprobs(states, weight, targets, HeadOptions(9))
    after.sum().backward()
    assert torch.equal(before, after)
    assert torch.equal(weight.grad[9:], torch.zeros_like(weight[9:]))


def test_watched_entropy_carries_no_gradient():
    states, weight = case()
    logprobs, entropy = token_logprobs_entropy(states, weight, torch.zeros(7, dtype=torch.long), HeadOptions(9))
    assert not entropy.requires_grad
    alone = token_logprobs(states, weight, torch.zeros(7, dtype=torch.long), HeadOptions(9))
    for got, wanted in zip(
        torch.autograd.grad(logprobs.sum(), [states, weight]),
        torch.autograd.grad(alone.sum(), [states, weight]),
        strict=True,
    ):
        assert torch.allclose(got, wanted, atol=1e-12)


def test_extreme_logits_stay_finite():
    states = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [-1.0]], requires_grad=True)
    logprobs, entropy = token_logprobs_entropy(states, weight, torch.tensor([0, 2]), HeadOptions(3), True)
    (logprobs.sum() + entropy.sum()).backward()
    assert torch.allclose(logprobs, torch.zeros(2))
    assert torch.isfinite(states.grad).all()
    assert torch.isfinite(weight.grad).all()


def test_frozen_output_matrix_gets_no_gradient_buffer():
    states, weight = case()
    frozen = weight.detach()
    token_logprobs(states, frozen, torch.zeros(7, dtype=torch.long), HeadOptions(9)).sum().backward()
    assert frozen.grad is None
    assert states.grad is not None


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_weighted_sum_equals_the_general_route(chunk, temperature, monkeypatch):
    monkeypatch.setattr(module, "SMALL", 1)
    states, weight = case()
    targets = torch.tensor([0, 3, 8, 1, 1, 7, 2])
    weights = torch.linspace(-1, 1, 7, dtype=torch.float64)
    options = HeadOptions(9, chunk, temperature)
    total, logprobs = weighted_nll(states, weight, targets, weights, options)
    general = token_logprobs(states, weight, targets, options)
    assert torch.allclose(logprobs, general, atol=1e-12)
    expected = torch.autograd.grad(-3 * (weights * general).sum(), [states, weight])
    assert total.item() == pytest.approx(-(weights * general).sum().item())
    for got, wanted in zip(torch.autograd.grad(3 * total, [states, weight]), expected, strict=True):
        assert torch.allclose(got, wanted, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_give_log_probs_and_entropies_of_the_definition(dtype, monkeypatch):
    """Tokens unlikely by e^-100 and e^-10000, in one block and in many, the likely one first or last."""
    monkeypatch.setattr(module, "SMALL", 1)
    row = torch.zeros(200)
    row[[3, 70, 199]] = torch.tensor([100.0, -100.0, -1e4])
    rows = torch.stack([row, -row, row.flip(0), torch.where(row == 0, -1e4, row)]).to(dtype)
    weight = torch.cat([torch.eye(200), torch.full((3, 200), 1e3)]).to(dtype)
    targets = torch.tensor([3, 70, 0, 199])
    wide = rows.double().requires_grad_()
    logp = wide.log_softmax(1)
    wanted = logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(1)
    slope = torch.autograd.grad(wanted[0].sum() + wanted[1].sum(), wide)[0]
    for chunk in (1, 1000):
        narrow = rows.clone().requires_grad_()
        own = token_logprobs_entropy(narrow, weight, targets, HeadOptions(200, chunk), entropy_grad=True)
        for got, value in zip(own, wanted, strict=True):
            assert torch.allclose(got.double(), value, rtol=1e-6, atol=1e-6)
        grad = torch.autograd.grad(own[0].sum() + own[1].sum(), narrow)[0]
        assert torch.allclose(grad.double(), slope, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6)
