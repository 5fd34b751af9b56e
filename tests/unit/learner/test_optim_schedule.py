"""Schedules and parameter groups."""

import pytest
import torch
from learner_cases import make_config, make_examples, make_learner

from onpol_cli.core.config import OptimConfig, Schedule
from onpol_cli.core.errors import OnpolError
from onpol_cli.learner.optim import Optimiser, schedule_factor


def course(total, **settings):
    return [schedule_factor(step, total, OptimConfig(**settings)) for step in range(total)]


def test_constant_after_warmup():
    assert course(4, warmup=0.5) == [0.5, 1.0, 1.0, 1.0]


def test_linear_falls_to_final():
    assert course(4, schedule=Schedule.linear, final=0.2) == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_decay_share_keeps_a_plateau():
    assert course(8, schedule=Schedule.linear, decay=0.5) == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_cosine_is_half_in_the_middle_and_stays_after_the_end():
    config = OptimConfig(schedule=Schedule.cosine, final=0.1)
    assert schedule_factor(5, 10, config) == pytest.approx(0.55)
    assert schedule_factor(99, 10, config) == pytest.approx(0.1)


def test_muon_takes_hidden_matrices_only():
    config = make_config()
    config.optim.name = "muon"
    config.optim.lr = config.optim.matrix_lr = 1e-3
    learner = make_learner(config=config, dtype=torch.float32)
    matrices = {id(p) for group in learner.optimiser._parts[0][0].param_groups for p in group["params"]}
    names = {name for name, p in learner.model.named_parameters() if id(p) in matrices}
    assert len(names) == 2 * 7
    assert all(name.endswith("_proj.weight") for name in names)
    first, last = (learner.step(make_examples("sft"))["loss/cross_entropy"] for _ in range(2))
    assert last < first


def test_unknown_rule_is_refused():
    with pytest.raises(OnpolError, match="adamw, muon"):
        Optimiser([("w", torch.nn.Parameter(torch.zeros(2, 2)))], [], OptimConfig(name="sgd"), 1)


def test_clip_bounds_the_step_but_reports_the_norm():
    config = make_config()
    config.optim.clip = 1e-3
    learner = make_learner(config=config)
    assert learner.step(make_examples("sft"))["grad_norm"] > 1e-3
