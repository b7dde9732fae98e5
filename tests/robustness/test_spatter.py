from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.robustness.draws import Draws
from secateur.robustness.severities import TABLES
from secateur.robustness.spatter import MUD, distance, edges, equalised, relief, spatter
from tests.robustness.images import floats


def draws(count: int) -> Draws:
    return Draws(0, "test", 0, count)


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), height=st.integers(1, 30), width=st.integers(1, 30))
def test_distance_is_to_the_nearest_and_at_most_twenty(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    found = rng.random((2, height, width)) < 0.01
    result = distance(found)
    ys, xs = np.mgrid[:height, :width]
    for image, far in zip(found, result, strict=True):
        points = np.argwhere(image)
        wanted = np.full((height, width), 20.0)
        for y, x in points:
            wanted = np.minimum(wanted, np.hypot(ys - y, xs - x))
        assert np.abs(far - wanted).max() < 1e-5


def test_a_step_has_one_line_of_edges() -> None:
    image = np.zeros((1, 12, 12), np.float32)
    image[:, :, 6:] = 200
    found = edges(image, 50, 150)
    assert found[0].sum(1).tolist() == [1] * 12 and set(np.nonzero(found)[2].tolist()) <= {5, 6}
    assert np.array_equal(edges(image.transpose(0, 2, 1), 50, 150), found.transpose(0, 2, 1))


def test_a_weak_edge_counts_only_where_it_touches_a_strong_one() -> None:
    image = np.zeros((2, 12, 12), np.float32)
    image[:, :, 6:] = 20  # gradient 80: between the two thresholds
    image[1, :6, 6:] = 60  # and 240 on the upper half of the second
    found = edges(image, 50, 150)
    assert not found[0].any() and found[1].any(1)[5:8].all() and found[1].sum() >= 12


def test_equalised_spreads_from_0_to_255_and_keeps_one_value() -> None:
    image = np.array([[10, 10, 20, 30], [7, 7, 7, 7]], np.uint8).reshape(2, 2, 2, 1)
    found = equalised(image).reshape(2, 4)
    assert found[0].tolist() == [0, 0, 128, 255] and found[1].tolist() == [7] * 4


def test_a_film_without_drops_gives_an_even_light() -> None:
    assert len(np.unique(relief(np.zeros((1, 16, 16, 1), np.float32)))) == 1


@pytest.mark.parametrize("table", TABLES)
def test_water_brightens_and_mud_browns(table: str) -> None:
    x = floats(4)
    for c in TABLES[table]["spatter"]:
        found = spatter(x, draws(4), c)
        wet = np.abs(found - x).max(-1) > 1e-3
        assert 0.0005 < wet.mean() < 0.9
        if c[5] == 0:
            assert (found >= x - 1e-6).all()
            assert found.max() <= x.max() + c[4] * 238 / 255 + 1e-5
        else:
            thick = np.abs(found - MUD).max(-1) < 0.2 + 1e-3
            assert thick[wet].mean() > 0.99, "where there is mud, at least 0.8 of the colour is mud's"


def test_without_liquid_nothing_changes() -> None:
    x = floats(2)
    assert np.array_equal(spatter(x, draws(2), (0.1, 0.01, 1, 0.7, 0.5, 0)), x)
    assert np.array_equal(spatter(x, draws(2), (0.1, 0.01, 1, 0.7, 0.5, 1)), x)
