"""What the sampled distillation signal estimates, by enumerating every completion of a tiny model.

The policy is a table: logits of each next token given the prefix, over a vocabulary of 3 and two
positions. No masks, no truncation, before normalisation.
"""

import itertools

import torch

from onpol_cli.core.config import MethodConfig, OpdSignal
from onpol_cli.learner import losses
from onpol_cli.learner.divergence import DivergenceSettings, token_divergence
from onpol_cli.learner.head import HeadOptions

V = 3
PREFIXES = [(), *((token,) for token in range(V))]
COMPLETIONS = list(itertools.product(range(V), repeat=2))
FREE = MethodConfig(ratio_low=0.0, ratio_high=float("inf"), sequence_ratio_low=0.0, sequence_ratio_high=float("inf"))


def tables():
    generator = torch.Generator().manual_seed(11)
    policy = torch.randn(len(PREFIXES), V, generator=generator, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(len(PREFIXES), V, generator=generator, dtype=torch.float64).log_softmax(1)
    sampler = torch.randn(len(PREFIXES), V, generator=generator, dtype=torch.float64).log_softmax(1)
    return policy, teacher, sampler


def rows(completion):
    return torch.tensor([0, PREFIXES.index(completion[:1])])


def sampled_gradient(policy, teacher, sampler, completion, to_go=False):
    """Gradient of the learner's loss for one sampled completion."""
    logp = policy.log_softmax(1)
    where, tokens = rows(completion), torch.tensor(completion)
    mine, theirs = logp[where, tokens], sampler[where, tokens]
    advantage = losses.total_advantage(
        torch.zeros(2), torch.ones(2), teacher[where, tokens], mine, 0.0
    )
    if to_go:
        advantage = advantage.flip(0).cumsum(0).flip(0)
    ratios = losses.importance(mine, theirs, torch.ones(2), torch.zeros(2, dtype=torch.long), FREE)
    return torch.autograd.grad(losses.policy_gradient(mine, ratios.weight, advantage), policy)[0]


def expectation(values, probabilities):
    return sum(p * v for p, v in zip(probabilities, values, strict=True))


def probability(table, completion):
    return table[rows(completion), torch.tensor(completion)].sum().exp().item()


def test_sampled_signal_equals_exact_reverse_kl_at_each_position_given_its_prefix():
    policy, teacher, sampler = tables()
    eye = torch.eye(V, dtype=torch.float64)
    for row in range(len(PREFIXES)):
        exact = token_divergence(
            policy[row : row + 1], eye, (teacher[row : row + 1], eye), DivergenceSettings(OpdSignal.reverse),
            HeadOptions(V),
        )  # fmt: skip
        wanted = torch.autograd.grad(exact.sum(), policy)[0][row]
        got = torch.zeros(V, dtype=torch.float64)
        for token in range(V):  # drawn from the *sampler*: the ratio must correct for it
            mine = policy.log_softmax(1)[row, token : token + 1]
            theirs = sampler[row, token : token + 1]
            advantage = losses.total_advantage(
                torch.zeros(1), torch.ones(1), teacher[row, token : token + 1], mine, 0.0
            )
            ratios = losses.importance(mine, theirs, torch.ones(1), torch.zeros(1, dtype=torch.long), FREE)
            loss = losses.policy_gradient(mine, ratios.weight, advantage)
            got += theirs.exp().item() * torch.autograd.grad(loss, policy)[0][row]
        assert torch.allclose(got, wanted, atol=1e-12)


def sequence_kl_gradient(policy, teacher):
    """Gradient of KL(policy || teacher) over whole completions, differentiated through the sampling."""
    logp = policy.log_softmax(1)
    total = policy.new_zeros(())
    for completion in COMPLETIONS:
        where, tokens = rows(completion), torch.tensor(completion)
        mine, theirs = logp[where, tokens].sum(), teacher[where, tokens].sum()
        total = total + mine.exp() * (mine - theirs)
    return torch.autograd.grad(total, policy)[0]


def test_return_to_go_gives_the_sequence_level_gradient_and_the_per_token_form_does_not():
    policy, teacher, _ = tables()
    own = policy.detach().log_softmax(1)
    chances = [probability(own, completion) for completion in COMPLETIONS]
    wanted = sequence_kl_gradient(policy, teacher)
    to_go = expectation([sampled_gradient(policy, teacher, own, c, True) for c in COMPLETIONS], chances)
    per_token = expectation([sampled_gradient(policy, teacher, own, c) for c in COMPLETIONS], chances)
    assert torch.allclose(to_go, wanted, atol=1e-12)
    assert (per_token - wanted).abs().max() > 1e-2


def test_per_token_form_is_the_gradient_of_the_summed_conditional_divergences():
    policy, teacher, _ = tables()
    own = policy.detach().log_softmax(1)
    chances = [probability(own, completion) for completion in COMPLETIONS]
    got = expectation([sampled_gradient(policy, teacher, own, c) for c in COMPLETIONS], chances)
    eye = torch.eye(V, dtype=torch.float64)
    exact = token_divergence(policy, eye, (teacher, eye), DivergenceSettings(OpdSignal.reverse), HeadOptions(V))
    visits = torch.cat([torch.ones(1, dtype=torch.float64), own[0].exp()])
    assert torch.allclose(got, torch.autograd.grad((visits * exact).sum(), policy)[0], atol=1e-12)
