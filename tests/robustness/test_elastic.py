from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.robustness.draws import Draws
from secateur.robustness.elastic import elastic_transform, inverse_maps
from secateur.robustness.severities import TABLES
from tests.robustness.images import floats


def draws(count: int, seed: int = 0) -> Draws:
    return Draws(seed, "test", 0, count)


def test_the_map_carries_the_moved_corners_back() -> None:
    maps = inverse_maps(draws(5), 32, 32, 2.5)
    moves = (draws(5).uniform(3, 2).astype(float) * 2 - 1) * 2.5
    corners = 16 + 10 * np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]])
    for back, move in zip(maps, moves, strict=True):
        for corner, moved in zip(corners, corners + move, strict=True):
            assert back @ [*moved, 1] == pytest.approx(corner)


@given(height=st.integers(1, 40), width=st.integers(1, 40), affine=st.floats(0, 60), seed=st.integers(0, 99))
def test_every_map_is_finite_and_turns_nothing_over(
    height: int, width: int, affine: float, seed: int
) -> None:
    maps = inverse_maps(draws(2, seed), height, width, affine)
    assert np.isfinite(maps).all() and (np.linalg.det(maps[:, :, :2]) > 0).all()


def test_no_move_and_no_displacement_is_the_identity() -> None:
    x = floats(2, 13, 18)
    assert np.abs(elastic_transform(x, draws(2), (0, 0, 0)) - x).max() < 1e-6


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("severity", [0, 1, 4])
def test_values_are_means_of_old_ones_and_images_differ(table: str, severity: int) -> None:
    x = floats(2)
    x[1] = x[0]
    found = elastic_transform(x, draws(2), TABLES[table]["elastic_transform"][severity])
    assert found.min() >= x.min() - 1e-6 and found.max() <= x.max() + 1e-6
    assert not np.array_equal(found[0], found[1]) and np.abs(found - x).mean() > 0.01


def test_the_displacement_is_alpha_pixels_at_most() -> None:
    # On a ramp the change of a pixel is its displacement.
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32)[None, None, :, None], (1, 64, 1, 3))
    for alpha in (1.0, 3.0):
        change = (elastic_transform(ramp, draws(1), (alpha, 0, 0)) - ramp)[:, :, 8:-8] * 63
        assert alpha * 0.9 < np.abs(change).max() <= alpha + 1e-3
        assert change.std() == pytest.approx(alpha / np.sqrt(3), rel=0.05)  # U(-1, 1)


def test_the_field_is_smoothed_as_scipy_does_it() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    ramp = np.tile(np.linspace(0, 1, 48, dtype=np.float32)[None, None, :, None], (1, 48, 1, 1))
    found = (elastic_transform(ramp, draws(1), (4.0, 1.5, 0)) - ramp)[0, :, 8:-8, 0] * 47
    stream = draws(1)
    stream.uniform(3, 2)  # the corners come first
    noise = stream.uniform(48, 48, 2)[0, :, :, 1].astype(float) * 2 - 1
    wanted = 4 * ndimage.gaussian_filter(noise, 1.5, mode="reflect", truncate=3)
    assert np.abs(found - wanted[:, 8:-8]).max() < 1e-4
