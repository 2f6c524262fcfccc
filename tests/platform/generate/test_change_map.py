"""The change per year: a planted slope comes back, and the order of ages counts where there are enough."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from neuroray.platform.generate.ages import GenerationError
from neuroray.platform.generate.change_map import map_change
from neuroray.platform.generate.sweep import AgeSweep

SHAPE = (5, 6, 4)


def make_sweep(ages: list[float], draw: Any, *, now: float = 60.0) -> AgeSweep:
    """A sweep whose brains are drawn by a function of age."""
    brain = np.ones(SHAPE, bool)
    brain[0] = False
    made = [SimpleNamespace(age_years=age, values=(draw(age) * brain).astype(np.float32)) for age in ages]
    volumes = {age: {"fluid": 20 + 0.5 * (age - 60), "grey": float("nan")} for age in [now, *ages]}
    regions = SimpleNamespace(ages={age: volumes[age] for age in ages}, reconstruction=volumes[now])
    return cast(
        AgeSweep,
        SimpleNamespace(
            asked=SimpleNamespace(age_years=now),
            brain=brain,
            made=made,
            reconstruction=(draw(now) * brain).astype(np.float32),
            regions=regions,
        ),
    )


def test_a_planted_slope_comes_back_with_all_of_it_on_lines() -> None:
    slope = np.random.default_rng(1).normal(0, 3, SHAPE)
    ages = [67.5, 63.0, 72.0, 60.0, 80.0]
    found = map_change(make_sweep(ages, lambda age: 100 + slope * (age - 60)))
    # float32 values of hundreds.
    np.testing.assert_allclose(found.values[1:], slope[1:], atol=1e-4)
    assert not found.values[0].any()
    assert found.linear_share == pytest.approx(1, abs=1e-6)
    assert found.orders_as_linear == 0
    assert found.regions_ml_per_year["fluid"] == pytest.approx(0.5)
    assert found.ages_years == (60.0, 63.0, 67.5, 72.0, 80.0)
    assert found.to_json()["regions_ml_per_year"]["grey"] is None


def test_brains_that_do_not_follow_age_are_told_apart() -> None:
    generator = np.random.default_rng(2)
    drawn = {age: generator.normal(100, 3, SHAPE) for age in (60.0, 63.0, 67.5, 72.0, 80.0)}
    found = map_change(make_sweep(list(drawn), lambda age: drawn[age]))
    assert found.linear_share < 0.6
    assert found.orders_as_linear is not None
    assert found.orders_as_linear > 0.05


def test_of_one_age_it_is_the_change_by_the_gap() -> None:
    slope = np.random.default_rng(3).normal(0, 3, SHAPE)
    found = map_change(make_sweep([60.0, 70.0], lambda age: slope * (age - 60)))
    np.testing.assert_allclose(found.values[1:], slope[1:], atol=1e-5)
    assert found.orders_as_linear is None


def test_one_age_alone_has_no_slope() -> None:
    with pytest.raises(GenerationError, match="needs another age"):
        map_change(make_sweep([60.0], lambda age: np.full(SHAPE, age)))
