"""Monitors warn once, or stop."""

import logging
import random

import pytest

from onpol_cli.core.config import GuardAction, MonitorConfig
from onpol_cli.core.errors import RunFailed
from onpol_cli.training.monitors import Monitors

QUIET = {"loss/total": 1.0, "length/mean": 40.0, "length/limit_share": 0.0, "entropy": 0.5}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"entropy": 0.01}, "entropy_floor"),
        ({"length/mean": 200.0}, "length_factor"),
        ({"length/limit_share": 0.9}, "truncated_share"),
        ({"length/limit_share": None, "outcome/truncated": 0.9}, "truncated_share"),
        ({"reward/pass_below_fail": 0.5}, "pass_below_fail_share"),
        ({"loss/total": 50.0}, "loss_spike"),
    ],
)
def test_each_monitor_stops(change, kind):
    monitors = Monitors(MonitorConfig(action=GuardAction.stop, entropy_floor=0.05))
    for step in range(6):
        monitors.check(step, QUIET)
    with pytest.raises(RunFailed, match=kind):
        monitors.check(6, {name: value for name, value in {**QUIET, **change}.items() if value is not None})


def test_off_never_stops():
    monitors = Monitors(MonitorConfig(action=GuardAction.off, entropy_floor=1.0))
    monitors.check(0, QUIET)
    assert monitors.warned == set()


def test_warns_once_a_kind(monkeypatch):
    from onpol_cli.core.console import LOGGER

    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    LOGGER.addHandler(handler)
    try:
        monitors = Monitors(MonitorConfig(action=GuardAction.warn, entropy_floor=1.0))
        monitors.check(0, QUIET)
        monitors.check(1, QUIET)
    finally:
        LOGGER.removeHandler(handler)
    assert len([text for text in seen if "entropy_floor" in text]) == 1


def stopping(limit=None, **settings):
    return Monitors(MonitorConfig(action=GuardAction.stop, **settings), limit)


def run_of(monitors, rows):
    for step, row in enumerate(rows):
        monitors.check(step, row)


def test_a_collapse_of_entropy_fires_by_default():
    with pytest.raises(RunFailed, match=r"entropy 0\.0000 .*entropy_floor"):
        run_of(stopping(), [{"entropy": 0.5}, {"entropy": 0.0}])
    with pytest.raises(RunFailed, match=r"under 10% of the first step's 0\.5000 .*entropy_share"):
        run_of(stopping(), [{"entropy": 0.5}, {"entropy": 0.3}, {"entropy": 0.04}])
    run_of(stopping(), [{"entropy": value} for value in (0.124, 0.06, 0.031, 0.026)])  # the tiny experiment's course


@pytest.mark.parametrize(
    ("usual", "spike"),
    [
        ([0.02] * 6, 0.9),  # distillation
        ([0.002, -0.003, 0.001, -0.002, 0.0, 0.003], -0.4),  # policy gradient: either sign
        ([2.0, 2.1, 1.9, 2.05, 1.95, 2.0], 9.0),  # cross-entropy: below ten times its median
    ],
)
def test_spikes_of_losses_of_every_size_fire_by_default(usual, spike):
    monitors = stopping()
    run_of(monitors, [{"loss/total": value} for value in usual])
    with pytest.raises(RunFailed, match="loss_spike"):
        monitors.check(len(usual), {"loss/total": spike})


@pytest.mark.parametrize("noise", ["policy gradient", "few informative steps", "cross-entropy of small batches", "ups"])
def test_ordinary_losses_are_no_spikes(noise):
    generator = random.Random(noise)
    draw = {
        "policy gradient": lambda step: generator.gauss(0.0, 0.01),
        "few informative steps": lambda step: generator.gauss(0.0, 0.02) if generator.random() < 0.2 else 0.0,
        "cross-entropy of small batches": lambda step: 0.1 + 2.0 * 0.98**step * generator.uniform(0.5, 1.5),
        "ups": lambda step: 0.02 + 0.002 * step + generator.gauss(0.0, 0.005),
    }[noise]
    for _ in range(50):
        monitors = Monitors(MonitorConfig(action=GuardAction.warn))
        run_of(monitors, [{"loss/total": draw(step)} for step in range(200)])
        assert monitors.warned == set()


def test_an_explosion_of_length_fires_below_the_token_limit():
    rows = [{"length/mean": 51.0}, {"length/mean": 115.0}]
    run_of(stopping(), rows)  # 2.3 times the first
    with pytest.raises(RunFailed, match=r"115 tokens \(limit 128\), 2\.3 x .*length_factor"):
        run_of(stopping(128), rows)
    run_of(stopping(128), [{"length/mean": 51.0}, {"length/mean": 105.0}])
    with pytest.raises(RunFailed, match=r"240 tokens \(limit 256\), 1\.6 x .*length_factor"):
        run_of(stopping(256), [{"length/mean": 150.0}, {"length/mean": 240.0}])


@pytest.mark.parametrize(
    ("limit", "first", "later"), [(256, 240.0, 253.0), (256, 200.0, 243.0), (256, 200.0, 256.0), (24, 23.5, 24.0)]
)
def test_a_few_tokens_more_near_the_limit_are_no_explosion(limit, first, later):
    run_of(stopping(limit), [{"length/mean": first}, {"length/mean": later}])
    with pytest.raises(RunFailed, match="truncated_share"):  # what watches there
        stopping(limit).check(0, {"length/mean": limit, "outcome/truncated": 0.6})


def test_a_smaller_length_factor_is_obeyed_near_the_limit():
    rows = [{"length/mean": 220.0}, {"length/mean": 254.0}]
    run_of(stopping(256, length_factor=1.2), rows)  # the limit itself is only 1.16 times the first
    with pytest.raises(RunFailed, match="length_factor"):
        run_of(stopping(256, length_factor=1.1), rows)
    with pytest.raises(RunFailed, match=r"1\.3 x"):
        run_of(stopping(256, length_factor=1.25), [{"length/mean": 200.0}, {"length/mean": 252.0}])


def test_underpaid_passes_are_counted_among_the_passes():
    row = {"outcome/passed": 0.2, "reward/pass_below_fail": 0.18}
    with pytest.raises(RunFailed, match="90% of the passing rollouts"):
        stopping().check(0, row)
    stopping().check(0, {"outcome/passed": 0.61, "reward/pass_below_fail": 0.28})  # a tiny run's first step


def test_reward_that_rises_while_passes_fall_is_hacked():
    good = {"reward/mean": -0.1, "outcome/passed": 0.7}
    hacked = {"reward/mean": 0.2, "outcome/passed": 0.5}
    with pytest.raises(RunFailed, match=r"passes fell from 70% to 50% .*pass_drop"):
        run_of(stopping(), [good] * 5 + [hacked] * 5)
    run_of(stopping(), [good] * 5 + [hacked | {"reward/mean": -0.2}] * 9)  # got worse, honestly
    run_of(stopping(), [good] * 5 + [hacked | {"outcome/passed": 0.6}] * 9)


def test_a_resumed_run_knows_what_the_first_part_was_like():
    whole = stopping()
    rows = [{**QUIET, "loss/total": 0.02, "length/mean": 40.0 + 5 * step} for step in range(8)]
    resumed = stopping()
    resumed.replay([{"step": -1, "length/mean": 1.0}, *({"step": step, **row} for step, row in enumerate(rows))])
    run_of(whole, rows)
    for monitors in (whole, resumed):
        assert monitors.warned == set()
        with pytest.raises(RunFailed, match=r"loss 0\.9 "):
            monitors.check(8, {**rows[-1], "loss/total": 0.9})
        with pytest.raises(RunFailed, match=r"3\.2 x the first step's"):
            monitors.check(9, {**rows[-1], "length/mean": 130.0})


def test_resuming_feeds_the_logged_steps_to_the_monitors(tmp_path):
    import torch

    from onpol_cli.core.compose import compose
    from onpol_cli.learner.learner import Learner
    from onpol_cli.learner.model import load_model, load_tokenizer
    from onpol_cli.runs.rundir import RunDir
    from onpol_cli.training.loop import Parts, restore, save

    config = compose(["model.path=tiny", "model.lora.rank=1"])
    learner = Learner(load_model(config.model), load_tokenizer("tiny"), config, 3, torch.device("cpu"))

    def parts(run):
        return Parts(run, None, learner, None, Monitors(config.monitor), 4)

    with RunDir.open(tmp_path / "run", resume=False) as run:
        for step in range(3):
            run.log({"step": step, "length/mean": 40.0 + step, "loss/total": 0.5})
        save(parts(run), 2, 1)
    with RunDir.open(tmp_path / "run", resume=True) as run:
        again = parts(run)
        assert restore(again) == 2
    assert again.monitors.first == {"length": 40.0} and list(again.monitors.losses) == [0.5, 0.5]
