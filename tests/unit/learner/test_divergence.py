"""Exact divergences: values, gradients, zero at equality, and what the sampled estimator estimates."""

import math

import pytest
import torch

from onpol_cli.core.config import OpdSignal
from onpol_cli.core.errors import OnpolError
from onpol_cli.learner.divergence import DivergenceSettings, token_divergence, token_divergence_logprobs
from onpol_cli.learner.head import HeadOptions
from onpol_cli.learner.logprobs import token_logprobs_entropy

KINDS = [kind for kind in OpdSignal if kind is not OpdSignal.sampled]
EYE3 = torch.eye(3, dtype=torch.float64)


def from_probs(q, p, settings, vocab=3):
    """Divergence and its gradient by the logits of q, for explicit distributions q, p."""
    logits = torch.tensor([q], dtype=torch.float64).log().requires_grad_()
    teacher = torch.tensor([p], dtype=torch.float64).log()
    value = token_divergence(logits, EYE3, (teacher, EYE3), settings, HeadOptions(vocab))
    return value.item(), torch.autograd.grad(value.sum(), logits)[0][0]


def kl(a, b):
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))


Q, P = [0.5, 0.3, 0.2], [0.25, 0.25, 0.5]


def test_reverse_by_hand():
    value, grad = from_probs(Q, P, DivergenceSettings(OpdSignal.reverse))
    expected = 0.5 * math.log(2) + 0.3 * math.log(1.2) + 0.2 * math.log(0.4)
    assert value == pytest.approx(expected, abs=1e-12)
    by_hand = [q * (math.log(q / p) - expected) for q, p in zip(Q, P, strict=True)]
    assert grad.tolist() == pytest.approx(by_hand, abs=1e-12)


def test_forward_by_hand():
    value, grad = from_probs(Q, P, DivergenceSettings(OpdSignal.forward))
    assert value == pytest.approx(0.25 * math.log(0.5) + 0.25 * math.log(5 / 6) + 0.5 * math.log(2.5), abs=1e-12)
    assert grad.tolist() == pytest.approx([0.25, 0.05, -0.3], abs=1e-12)


def test_jsd_by_hand():
    beta = 0.3
    mix = [beta * p + (1 - beta) * q for q, p in zip(Q, P, strict=True)]
    value, grad = from_probs(Q, P, DivergenceSettings(OpdSignal.jsd, beta))
    assert value == pytest.approx(beta * kl(P, mix) + (1 - beta) * kl(Q, mix), abs=1e-12)
    slope = [0.7 * math.log(q / m) for q, m in zip(Q, mix, strict=True)]
    centre = sum(q * s for q, s in zip(Q, slope, strict=True))
    assert grad.tolist() == pytest.approx([q * (s - centre) for q, s in zip(Q, slope, strict=True)], abs=1e-12)


def test_jsd_at_its_ends_is_forward_and_reverse():
    forward, _ = from_probs(Q, P, DivergenceSettings(OpdSignal.jsd, 0.0))
    reverse, _ = from_probs(Q, P, DivergenceSettings(OpdSignal.jsd, 1.0))
    assert forward == pytest.approx(kl(P, Q), abs=1e-12)
    assert reverse == pytest.approx(kl(Q, P), abs=1e-12)


def drawn(seed):
    """States [6, 4] and output matrix [9, 4] of a policy, both with gradient; states and matrix [8, 3] of a teacher."""
    torch.manual_seed(seed)
    states = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(6, 3, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)
    return states, weight, teacher


def test_topk_puts_the_rest_into_one_bucket():
    reverse, _ = from_probs(Q, P, DivergenceSettings(OpdSignal.topk_reverse, topk=1))
    forward, _ = from_probs(Q, P, DivergenceSettings(OpdSignal.topk_forward, topk=1))
    assert reverse == pytest.approx(kl([0.5, 0.5], [0.25, 0.75]), abs=1e-12)  # the policy's first token
    # The teacher's first token is the third one: 0.5 against 0.2.
    assert forward == pytest.approx(kl([0.5, 0.5], [0.2, 0.8]), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_the_derivative_of_the_value(kind):
    states, weight, teacher = drawn(5)
    settings = DivergenceSettings(kind, 0.3, 3, 1.3)

    def value(a, b):
        return token_divergence(a, b, teacher, settings, HeadOptions(7, 4, 0.8))

    assert torch.autograd.gradcheck(value, (states, weight))


@pytest.mark.parametrize("kind", KINDS)
def test_zero_with_zero_gradient_where_teacher_is_student(kind):
    torch.manual_seed(6)
    states = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    settings = DivergenceSettings(kind, 0.3, 3)
    value = token_divergence(states, weight, (states, weight), settings, HeadOptions(9))
    grads = torch.autograd.grad(value.sum(), [states, weight])
    assert value.abs().max() < 1e-12
    assert all(grad.abs().max() < 1e-12 for grad in grads)


def test_padded_vocabularies_of_different_size_are_cut_to_the_real_one():
    torch.manual_seed(7)
    states, weight = torch.randn(2, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    teacher_weight = torch.cat([weight[:7], torch.full((6, 4), 1e3, dtype=torch.float64)])
    value = token_divergence(
        states, weight, (states, teacher_weight), DivergenceSettings(OpdSignal.reverse), HeadOptions(7)
    )
    assert value.abs().max() < 1e-12


def test_sampled_signal_is_refused():
    with pytest.raises(OnpolError, match=r"signal=sampled.*reverse"):
        from_probs(Q, P, DivergenceSettings(OpdSignal.sampled))


EXTREME = [  # logits of policy and teacher over five tokens
    ([0, -100, -1, -2, -3], [0, 0, 0, 0, 0]),
    ([0, 0, 0, 0, 0], [0, -100, -1, 100, -3]),
    ([100, 0, 0, -100, 0], [-100, 0, 0, 100, 0]),
    ([0, -1e4, -1, -1e4, 2], [-1, 0, -1e4, -1e4, 2]),
    ([-1e4, 0, -1e4, -1e4, -1e4], [0, -1e4, -1e4, -1e4, -1e4]),
    ([0, -16, -17, -18, -19], [-1e4, 0, -1, -2, -3]),
    ([0, -1, -22, -22, -23], [0, 0, -3, -3, -4]),
    ([0, 0, -3, -3, -4], [0, -1, -22, -22, -23]),
    ([0, -1, -200, -220, -200], [0, -1, -200, -200, -220]),
]


def by_definition(logits, teacher, kind, beta, topk):
    """The module's formulas in float64 with autograd's own derivative."""
    logits = logits.double().requires_grad_()
    q, p = logits.log_softmax(1), teacher.double().log_softmax(1)
    if kind in (OpdSignal.topk_reverse, OpdSignal.topk_forward):
        first = (q if kind is OpdSignal.topk_reverse else p).detach().topk(topk, dim=1).indices
        rest = torch.ones_like(p).scatter(1, first, 0.0).bool()
        q, p = (
            torch.cat([x.gather(1, first), x[rest].view(len(x), -1).logsumexp(1, keepdim=True)], 1) for x in (q, p)
        )
    if kind in (OpdSignal.reverse, OpdSignal.topk_reverse):
        value = (q.exp() * (q - p)).sum(1)
    elif kind is OpdSignal.jsd and beta not in (0.0, 1.0):
        mix = torch.logaddexp(p + math.log(beta), q + math.log1p(-beta))
        value = beta * (p.exp() * (p - mix)).sum(1) + (1 - beta) * (q.exp() * (q - mix)).sum(1)
    else:
        one, other = (q, p) if beta == 1.0 else (p, q)
        value = (one.exp() * (one - other)).sum(1)
    return value.detach(), torch.autograd.grad(value.sum(), logits)[0]


CASES = [(OpdSignal.reverse, 0.5, 2), (OpdSignal.forward, 0.5, 2)]
CASES += [(OpdSignal.jsd, beta, 2) for beta in (0.0, 1e-3, 0.1, 0.5, 0.9, 0.999, 1.0)]
CASES += [(kind, 0.5, k) for kind in (OpdSignal.topk_reverse, OpdSignal.topk_forward) for k in (1, 2, 4)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "beta", "topk"), CASES)
def test_extreme_logits_give_the_value_and_gradient_of_the_definition(kind, beta, topk, dtype):
    """Unlikely tokens by e^-100 and e^-10000 on either side, tails below a float's rounding, padded vocabularies."""
    states, teacher = (torch.tensor(side).to(dtype) for side in zip(*EXTREME, strict=True))
    states.requires_grad_()
    weight = torch.cat([torch.eye(5), torch.full((3, 5), 1e3)]).to(dtype)
    own = token_divergence(states, weight, (teacher, weight[:7]), DivergenceSettings(kind, beta, topk), HeadOptions(5))
    grad = torch.autograd.grad(own.sum(), states)[0]
    value, slope = by_definition(states.detach(), teacher, kind, beta, topk)
    assert torch.allclose(own.double(), value, rtol=1e-5 if dtype != torch.float64 else 1e-9, atol=1e-6)
    near = {torch.float64: 1e-8, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    for row, wanted in zip(grad.double(), slope, strict=True):
        assert (row - wanted).abs().max() <= near * wanted.abs().max() + 1e-2 * near


@pytest.mark.parametrize("kind", [OpdSignal.topk_reverse, OpdSignal.topk_forward])
@pytest.mark.parametrize("topk", [5, 64])
def test_no_tail_left_is_the_whole_divergence(kind, topk):
    torch.manual_seed(8)
    states, teacher = torch.randn(2, 4, 5, dtype=torch.float64)
    states.requires_grad_()
    eye = torch.eye(5, dtype=torch.float64)
    settings = DivergenceSettings(kind, topk=topk)
    own = token_divergence(states, eye, (teacher, eye), settings, HeadOptions(5))
    value, slope = by_definition(states.detach(), teacher, OpdSignal(kind.value.removeprefix("topk_")), 0.5, topk)
    assert torch.allclose(own, value, atol=1e-12)
    assert torch.allclose(torch.autograd.grad(own.sum(), states)[0], slope, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probs_and_entropies_of_the_same_pass(kind):
    states, weight, teacher = drawn(9)
    settings, options = DivergenceSettings(kind, 0.3, 3), HeadOptions(7, 4, 0.8)
    targets = torch.tensor([0, 6, 1, 2, 3, 6])
    wanted = [token_divergence(states, weight, teacher, settings, options)]
    wanted += token_logprobs_entropy(states, weight, targets, options)

    def watched(a, b):
        return token_divergence_logprobs(a, b, targets, teacher, settings, options, token_grad=True)[:2]

    got = token_divergence_logprobs(states, weight, targets, teacher, settings, options)
    assert [value.requires_grad for value in got] == [True, False, False]
    for one, other in zip(got, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-12)
    plain, same = (torch.autograd.grad(value.sum(), [states, weight]) for value in (wanted[0], got[0]))
    assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(plain, same, strict=True))
    assert torch.autograd.gradcheck(watched, (states, weight))
