"""The knee rules on the sheet's oracles: flat then falling, a straight line, and noise of half the tolerance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from secateur.errors import BadInput, NoMatch
from secateur.evaluate.knee import RULES, chord_knee, drop_knee, knee, slope_knee

GRID = [round(0.1 * i, 1) for i in range(10)]
FLAT_THEN_FALLING = [0.9 if p <= 0.4 else 0.9 - 1.2 * (p - 0.4) for p in GRID]
STRAIGHT = [0.9 - 0.8 * p for p in GRID]


@pytest.mark.parametrize("rule", RULES)
def test_flat_to_forty_percent_is_forty_percent(rule: str) -> None:
    assert knee(GRID, FLAT_THEN_FALLING, rule) == 0.4
    loss = [3.5 - q for q in FLAT_THEN_FALLING]
    assert knee(GRID, loss, rule, higher_is_better=False) == 0.4


@pytest.mark.parametrize("rule", RULES)
def test_a_straight_line_has_no_knee(rule: str) -> None:
    assert knee(GRID, STRAIGHT, rule) is None


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(40))
def test_noise_of_half_the_tolerance_moves_it_by_at_most_one_step(rule: str, seed: int) -> None:
    noise = np.random.default_rng(seed).uniform(-0.005, 0.005, len(GRID)) * 0.9
    found = knee(GRID, [q + n for q, n in zip(FLAT_THEN_FALLING, noise, strict=True)], rule)
    assert found is not None and abs(found - 0.4) < 0.1 + 1e-9
    assert knee(GRID, [q + n for q, n in zip(STRAIGHT, noise, strict=True)], rule) is None


@pytest.mark.parametrize("rule", ("chord", "slope"))
@pytest.mark.parametrize("seed", range(20))
def test_noise_on_a_flat_curve_is_no_knee(rule: str, seed: int) -> None:
    noise = np.random.default_rng(seed).uniform(-0.005, 0.005, len(GRID))
    assert knee(GRID, list(1.0 + noise), rule) is None


def test_drop_rule_stops_at_the_first_fall() -> None:
    assert drop_knee([0, 0.1, 0.2, 0.3], [1.0, 0.995, 0.90, 0.995]) == 0.1
    assert drop_knee([0, 0.1, 0.2], [1.0, 1.0, 0.991]) == 0.2
    assert drop_knee([0, 0.1, 0.2], [1.0, 1.0, 0.95], tolerance=0.05) == 0.2
    assert drop_knee([0, 0.1, 0.2], [1.0, 0.98, 0.97]) is None


def test_chord_rule_takes_the_lowest_of_equal_gaps_and_ignores_curves_below_the_chord() -> None:
    assert chord_knee([0, 1, 2, 3], [1.0, 1.0, 0.5, 0.0]) == 1
    assert chord_knee([0, 1, 2, 3], [1.0, 0.2, 0.1, 0.0]) is None


def test_slope_rule_compares_with_the_median_so_far() -> None:
    falling = [1.0, 0.95, 0.90, 0.85, 0.65, 0.45]
    assert slope_knee(range(6), falling, k=3.0) == 3
    assert slope_knee(range(6), falling, k=5.0) is None


@pytest.mark.parametrize(
    ("sparsities", "quality"),
    [
        ([0, 0.1], [1, 1]),
        ([0, 0.1, 0.1], [1, 1, 1]),
        ([0, 0.1, 0.2], [1, math.nan, 1]),
        ([0, 0.1, 0.2], [0, 1, 1]),
        ([0, 0.1, 0.2], [1, 1]),
    ],
)
def test_bad_curves_are_refused(sparsities: list[float], quality: list[float]) -> None:
    for rule in RULES:
        with pytest.raises(BadInput):
            knee(sparsities, quality, rule)


def test_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(NoMatch, match="did you mean 'chord'"):
        knee(GRID, STRAIGHT, "cord")
