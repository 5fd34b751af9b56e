"""Loss components against numbers worked by hand, and their gradients."""

import math

import pytest
import torch

from onpol_cli.core.config import MethodConfig, RatioMode
from onpol_cli.learner import losses


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_cross_entropy_value_and_gradient():
    policy = vector(-1.0, -2.0, -4.0).requires_grad_()
    loss = losses.cross_entropy(policy, vector(1.0, 0.0, 0.5))
    assert loss.item() == pytest.approx(3.0)
    assert torch.autograd.grad(loss, policy)[0].tolist() == [-1.0, 0.0, -0.5]


def test_advantage_adds_the_clipped_teacher_signal():
    policy = vector(-1.0, -1.0, -5.0)
    got = losses.total_advantage(vector(0.1, 0.1, 0.1), vector(2.0, 0.0, 2.0), vector(-0.5, 9.0, -1.0), policy, 3.0)
    assert got.tolist() == pytest.approx([0.1 + 2 * 0.5, 0.1, 0.1 + 2 * 3.0])


def test_policy_gradient_is_minus_ratio_times_advantage():
    policy = vector(-1.0, -2.0).requires_grad_()
    sampler, mask = vector(-1.0 - math.log(2), -2.0), vector(1.0, 1.0)
    ratios = losses.importance(policy, sampler, mask, torch.zeros(2, dtype=torch.long), MethodConfig())
    loss = losses.policy_gradient(policy, ratios.weight, vector(3.0, -1.0))
    assert ratios.ratio.tolist() == pytest.approx([2.0, 1.0])
    assert loss.item() == pytest.approx(-(2 * 3 * -1.0) - (1 * -1 * -2.0))
    assert torch.autograd.grad(loss, policy)[0].tolist() == pytest.approx([-6.0, 1.0])


def outside():
    """Ratios 0.1, 1, 9 of one sequence, 1, 1 of another, with the sequence masks wide open."""
    ratio = vector(0.1, 1.0, 9.0, 1.0, 1.0)
    return ratio.log(), torch.zeros(5, dtype=torch.float64), torch.ones(5), torch.tensor([0, 0, 0, 1, 1])


@pytest.mark.parametrize(
    ("mode", "weights", "dropped"),
    [
        (RatioMode.mask, [0, 1, 0, 1, 1], 2),
        (RatioMode.truncate, [0.125, 1, 8, 1, 1], 0),
        (RatioMode.none, [0.1, 1, 9, 1, 1], 0),
    ],
)
def test_two_sided_bounds(mode, weights, dropped):
    got = losses.importance(*outside(), MethodConfig(ratio_mode=mode))
    assert got.weight.tolist() == pytest.approx(weights)
    assert int(got.dropped.sum()) == dropped


def test_sequence_masks_take_the_whole_sequence_only():
    log_ratio = torch.log(vector(12.0, 11.0, 1.0, 101.0, 0.05, 0.02, 0.05, 1.0, 1.0))
    segments = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3])
    method = MethodConfig(ratio_mode=RatioMode.none)
    got = losses.importance(log_ratio, torch.zeros_like(log_ratio), torch.ones(9), segments, method)
    # 0: geometric mean above 10; 1: one ratio above 100; 2: geometric mean below 0.1.
    assert got.weight.tolist() == pytest.approx([0, 0, 0, 0, 0, 0, 0, 1, 1])


def test_untrained_tokens_do_not_count_in_sequence_masks():
    log_ratio = torch.log(vector(1000.0, 1.0))
    got = losses.importance(log_ratio, vector(0, 0), vector(0, 1), torch.zeros(2, dtype=torch.long), MethodConfig())
    assert got.weight.tolist() == [0.0, 1.0]
    assert got.dropped.tolist() == [False, False]


def test_infinite_ratio_is_masked_without_nan():
    policy, sampler = vector(0.0, -1.0), vector(-1e4, -1.0)
    got = losses.importance(policy, sampler, vector(1, 1), torch.tensor([0, 1]), MethodConfig())
    assert got.weight.tolist() == [0.0, 1.0]


def test_reference_kl_value_and_gradient():
    policy = vector(-1.0, -2.0).requires_grad_()
    loss = losses.reference_kl(policy, vector(-1.0 + math.log(2), -3.0), vector(1.0, 0.0))
    assert loss.item() == pytest.approx(2 - math.log(2) - 1)
    assert torch.autograd.grad(loss, policy)[0].tolist() == pytest.approx([1 - 2.0, 0.0])


def test_preference_value_gradient_and_margin():
    chosen, rejected = vector(1.0).requires_grad_(), vector(-2.0).requires_grad_()
    loss, margin = losses.preference(chosen, rejected, 0.1)
    assert margin.item() == pytest.approx(0.3)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.3)))
    slope = 0.1 / (1 + math.exp(0.3))
    grads = torch.autograd.grad(loss, [chosen, rejected])
    assert [g.item() for g in grads] == pytest.approx([-slope, slope])
