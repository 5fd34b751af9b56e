"""Monitors warn once, or stop."""

import logging

import pytest

from onpol_cli.core.config import GuardAction, MonitorConfig
from onpol_cli.core.errors import RunFailed
from onpol_cli.training.monitors import Monitors

QUIET = {"loss/total": 1.0, "length/mean": 40.0, "outcome/truncated": 0.0, "entropy": 0.5}


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"entropy": 0.01}, "entropy_floor"),
        ({"length/mean": 200.0}, "length_factor"),
        ({"outcome/truncated": 0.9}, "truncated_share"),
        ({"reward/pass_below_fail": 0.5}, "pass_below_fail_share"),
        ({"loss/total": 50.0}, "loss_spike"),
    ],
)
def test_each_monitor_stops(change, kind):
    monitors = Monitors(MonitorConfig(action=GuardAction.stop, entropy_floor=0.05))
    for step in range(6):
        monitors.check(step, QUIET)
    with pytest.raises(RunFailed, match=kind):
        monitors.check(6, {**QUIET, **change})


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
