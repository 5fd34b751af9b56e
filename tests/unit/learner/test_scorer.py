"""Frozen models: scores from kept states, and states that are computed once."""

import torch
from learner_cases import CPU, VOCAB, make_config, make_model, make_sequences

from onpol_cli.learner.scorer import LocalScorer
from onpol_cli.stages.divergences import Remembered


def make_scorer(seed=0):
    return LocalScorer(make_model(seed), VOCAB, make_config().learner, CPU)


def test_scores_from_states_are_those_of_the_sequences():
    scorer, sequences = make_scorer(), make_sequences()
    states = scorer.hidden(sequences)
    for direct, kept in zip(
        scorer.score(sequences), scorer.score_states(states, [c for _, c in sequences]), strict=True
    ):
        torch.testing.assert_close(kept.logprobs, direct.logprobs)
        torch.testing.assert_close(kept.entropy, direct.entropy)


def test_a_remembered_model_computes_states_once_and_again_for_other_sequences(monkeypatch):
    scorer, first, second = make_scorer(), make_sequences(seed=1), make_sequences(seed=2)
    asked = []
    compute = scorer.hidden
    monkeypatch.setattr(scorer, "hidden", lambda sequences: asked.append(len(asked)) or compute(sequences))
    model = Remembered(scorer)
    once, scores = model.hidden(first), model.score(list(first))
    assert asked == [0]
    again = model.hidden(second)
    assert asked == [0, 1]
    torch.testing.assert_close(once, compute(first))
    torch.testing.assert_close(again, compute(second))
    torch.testing.assert_close([s.logprobs for s in scores], [s.logprobs for s in scorer.score(first)])
