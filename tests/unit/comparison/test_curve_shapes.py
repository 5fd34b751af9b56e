"""Steps to half of the entropy fall, largest share of the reward rise, association."""

import math

import numpy as np
import pytest

from onpol_cli.comparison.curves import association, half_fall_step, largest_rise_share, series
from onpol_cli.comparison.ledger import course


def rows(name: str, values: list[float]) -> list[dict[str, float]]:
    """One metric by step."""
    return [{"step": step, name: value} for step, value in enumerate(values)]


def test_half_of_a_straight_fall() -> None:
    assert half_fall_step(rows("entropy", [1.0, 0.8, 0.6, 0.4, 0.2, 0.0])) == pytest.approx(2.5)


def test_half_of_a_sudden_fall_is_interpolated() -> None:
    assert half_fall_step(rows("entropy", [1.0, 0.0, 0.0, 0.0])) == pytest.approx(0.5)


def test_no_fall_no_number() -> None:
    assert half_fall_step(rows("entropy", [0.5, 0.6, 0.7])) is None
    assert half_fall_step(rows("entropy", [1.0, 0.0])) is None
    assert half_fall_step([{"step": 0}, {"loss": 3.0}]) is None


def test_rise_share_of_line_and_jump() -> None:
    line = largest_rise_share(rows("reward/mean", [i / 100 for i in range(101)]))
    jump = largest_rise_share(rows("reward/mean", [0.0] * 20 + [1.0] * 20))
    assert line == pytest.approx(0.05, abs=0.01)
    assert jump == pytest.approx(1.0)
    assert largest_rise_share(rows("reward/mean", [1.0] * 30)) is None
    assert largest_rise_share(rows("reward/mean", [0.0, 1.0])) is None


def test_gaps_in_steps_are_respected() -> None:
    sparse = [{"step": step, "reward/mean": step / 100} for step in range(0, 101, 4)]
    assert largest_rise_share(sparse) == pytest.approx(0.04, abs=0.01)


def test_association_of_a_clear_order() -> None:
    x = np.arange(10.0)
    rho, low, high, p, need = association(x, x**2)
    assert (rho, high) == (pytest.approx(1.0), pytest.approx(1.0))
    assert low > 0.9
    assert p < 0.01
    assert need is not None and need <= 10
    flat = association(x, np.ones(10))
    assert np.isnan(flat[0])


def test_the_samples_that_a_data_set_was_selected_from_are_no_step() -> None:
    rows = [{"step": -1, "reward/mean": 0.4}, *({"step": step, "reward/mean": step / 10} for step in range(3))]
    steps, values = series(rows, "reward/mean")
    assert steps.tolist() == [0, 1, 2] and values.tolist() == [0.0, 0.1, 0.2]
    assert len(series(rows[:1], "reward/mean")[0]) == 0
    spent = course([{**row, "tokens/generated": 10} for row in rows], "reward/mean")
    assert spent["step"].tolist() == [0, 1, 2] and spent["generated"].tolist() == [20, 30, 40], "its tokens are a cost"


def test_the_interval_of_a_rank_correlation_is_bonett_and_wrights() -> None:
    x = np.arange(7.0)
    rho, low, high, p, _ = association(x, np.array([0.0, 2, 1, 3, 5, 4, 6]))
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / 4)
    assert (low, high) == pytest.approx((math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)))
    turned = association(x, -np.array([0.0, 2, 1, 3, 5, 4, 6]))
    assert turned[:3] == pytest.approx((-rho, -high, -low)) and turned[3] == pytest.approx(p, abs=0.01)
