"""Ramps: the sheet's figures, their ends, the grid, and what is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.core.schedule import SHAPES, Schedule, window
from secateur.errors import BadInput

CUBIC = [0, 0.2168, 0.3904, 0.5256, 0.6272, 0.7, 0.7488, 0.7784, 0.7936, 0.7992, 0.8]


def test_the_cubic_ramp_of_the_sheet_to_the_digit() -> None:
    ramp = Schedule("cubic", 100, 50, 10, 0.0, 0.8)
    assert [round(ramp.target(100 + 50 * j), 4) for j in range(11)] == CUBIC
    assert ramp.target(350) == pytest.approx(7 / 8 * 0.8)  # half-way
    assert ramp.target(600) == 0.8 and ramp.end == 600  # exactly, at and after the last event


@pytest.mark.parametrize("shape", SHAPES)
@given(initial=st.floats(0, 0.5), final=st.floats(0.5, 0.99), n=st.integers(1, 20), every=st.integers(1, 50))
def test_every_ramp_rises_from_its_first_to_its_last_value(
    shape: str, initial: float, final: float, n: int, every: int
) -> None:
    ramp = Schedule(shape, 7, every, n, initial, final)
    targets = [ramp.target(step) for step in range(0, ramp.end + 10)]
    assert all(a <= b + 1e-12 for a, b in pairwise(targets))
    assert targets[6] == initial and targets[-1] == final
    events = [step for step in range(ramp.end + 10) if ramp.due(step)]
    assert events == ([7] if shape == "once" else [7 + every * j for j in range(n + 1)])


def test_rounds_leave_the_same_fraction_each_time() -> None:
    ramp = Schedule("rounds", 1, 1, 10, 0.0, 1 - 0.8**10)
    assert [round(1 - ramp.target(1 + j), 4) for j in range(4)] == [1.0, 0.8, 0.64, 0.512]


def test_linear_and_cosine_by_hand() -> None:
    assert [Schedule("linear", 0, 1, 4, 0.0, 0.8).target(j) for j in range(5)] == pytest.approx(
        [0, 0.2, 0.4, 0.6, 0.8]
    )
    assert Schedule("cosine", 0, 1, 4, 0.0, 0.8).target(2) == pytest.approx(0.4)


def test_a_window_of_the_training() -> None:
    ramp = window("cubic", 1000, 0.25, 0.75, 100, 0.0, 0.9)
    assert (ramp.begin, ramp.end, ramp.events) == (250, 750, 5)
    assert window("once", 1000, 0.5, 0.5, 100).begin == 500
    assert window("linear", 100, 0.0, 1.0, 30).begin == 1  # a step that is never taken cannot be an event


@pytest.mark.parametrize(
    "asked, words",
    [
        (("cubic", 1000, 0.2, 1.2, 100), "from 0.2 to 1.2 of the training"),
        (("cubic", 50, 0.0, 0.5, 100), "hold no event every 100 steps"),
        (("cubic", 1000, 0.8, 0.2, 100), "from 0.8 to 0.2"),
        (("cubid", 1000, 0.2, 0.8, 100), "did you mean 'cubic'|cubic"),
    ],
)
def test_a_schedule_that_does_not_fit_is_one_line(asked: tuple, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        window(*asked)
