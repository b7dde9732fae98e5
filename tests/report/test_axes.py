from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.report.axes import Scale, log_ticks, spans_decade, spread_out, ticks


def test_ticks_by_hand() -> None:
    assert ticks(0, 1) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.31, 0.59, 3) == [0.4, 0.5]
    assert ticks(-1, 1, 4) == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert ticks(5, 5) == [5]


@given(st.floats(-1e9, 1e9, allow_nan=False), st.floats(1e-6, 1e9, allow_nan=False), st.integers(2, 12))
@settings(max_examples=200, deadline=None)
def test_ticks_lie_inside_are_even_and_not_too_many(low: float, width: float, count: int) -> None:
    width = max(width, abs(low) * 1e-6)  # what floats can tell apart
    high = low + width
    found = ticks(low, high, count)
    slack = 1e-3 * width
    assert len(found) <= count + 1
    assert all(low - slack <= tick <= high + slack for tick in found)
    steps = [b - a for a, b in pairwise(found)]
    assert all(math.isclose(step, steps[0], rel_tol=1e-2, abs_tol=slack) and step > 0 for step in steps)


def test_log_ticks_by_hand() -> None:
    assert log_ticks(30, 600) == [50.0, 100.0, 200.0, 500.0]
    assert log_ticks(30, 6000, 5) == [30.0, 100.0, 300.0, 1000.0, 3000.0]
    assert log_ticks(1, 1e6) == [1.0, 10.0, 100.0, 1000.0, 10000.0, 100000.0, 1000000.0]
    assert len(log_ticks(1, 1e30)) <= 7
    assert len(log_ticks(40, 45)) >= 2  # no 1-2-5 inside: linear ones


def test_a_log_axis_is_for_more_than_a_decade() -> None:
    assert spans_decade([32.9, 506.0]) and not spans_decade([32.9, 69.1])
    assert not spans_decade([0.0, 100.0]) and not spans_decade([])


@pytest.mark.parametrize("log", [False, True])
def test_scale_keeps_order_and_room(log: bool) -> None:
    scale = Scale([10, 1000], 0, 100, log)
    assert 0 < scale(10) < scale(100) < scale(1000) < 100
    assert math.isclose(scale(100), 50) is log
    assert 0 < Scale([7, 7], 0, 100, log)(7) < 100


def test_labels_are_kept_apart_and_inside() -> None:
    placed = spread_out([50, 51, 52, 199], 0, 200)
    assert placed == [50, 65, 80, 199]
    crowded = spread_out([198, 199, 200], 0, 200)
    assert crowded == [170, 185, 200]
