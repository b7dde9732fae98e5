from __future__ import annotations

import numpy as np
import pytest

from secateur.robustness import blur, filters
from secateur.robustness.draws import Draws
from secateur.robustness.severities import TABLES
from tests.robustness.images import floats


def draws(count: int, seed: int = 0) -> Draws:
    return Draws(seed, "test", 0, count)


@pytest.mark.parametrize("table", TABLES)
def test_disks_are_even_positive_and_keep_the_light(table: str) -> None:
    for radius, alias in TABLES[table]["defocus_blur"]:
        kernel = blur.disk(radius, alias)
        assert (kernel >= 0).all() and kernel.shape[0] == kernel.shape[1] and kernel.shape[0] % 2 == 1
        assert np.allclose(kernel, kernel[::-1]) and np.allclose(kernel, kernel.T)
        # From radius 8 on the disk touches the border of its grid, where the published smoothing mirrors it.
        assert kernel.sum() == pytest.approx(1, abs=1e-9 if radius < 8 else 0.02)


def test_a_radius_below_one_is_only_the_small_gaussian() -> None:
    kernel = blur.disk(0.3, 0.4)
    taps = np.array(filters.gaussian_taps(0.4, 1))
    assert kernel.shape == (3, 3) and np.allclose(kernel, np.outer(taps, taps))


def test_a_disk_of_three_covers_what_lies_within_three() -> None:
    kernel = blur.disk(3, 0.1)
    rows, columns = np.mgrid[-3:4, -3:4]
    assert kernel.shape == (7, 7)
    assert np.array_equal(kernel > 1e-9, rows**2 + columns**2 <= 9)


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"])
@pytest.mark.parametrize("table", TABLES)
def test_a_constant_image_stays(name: str, table: str) -> None:
    flat = np.full((2, 40, 24, 3), 128 / 255, np.float32)
    for c in TABLES[table][name]:
        found = getattr(blur, name)(flat, draws(2), c)
        # At the border of its grid a large disk gains or loses up to 2%.
        allowed = 0.01 if name == "defocus_blur" and c[0] >= 8 else 1e-5
        assert np.abs(found - flat).max() < allowed


def slow_glass(image: np.ndarray, shift: int, moves: np.ndarray) -> np.ndarray:
    """One image and one pixel at a time."""
    image = image.copy()
    height, width = image.shape[:2]
    for round_ in moves:
        step = 0
        for h in range(height - shift, shift, -1):
            for w in range(width - shift, shift, -1):
                dy, dx = round_[step]
                image[h, w] = image[h + dy, w + dx]
                step += 1
    return image


@pytest.mark.parametrize(("shift", "rounds", "shape"), [(1, 2, (12, 9)), (3, 1, (16, 16)), (2, 2, (5, 20))])
def test_glass_equals_its_slow_rendering(shift: int, rounds: int, shape: tuple[int, int]) -> None:
    x = floats(3, *shape)
    found = blur.glass_blur(x, draws(3), (0.05, shift, rounds))  # a sigma that blurs nothing
    visits = max(shape[0] - 2 * shift, 0) * max(shape[1] - 2 * shift, 0)
    moves = draws(3).integers(-shift, shift, rounds, visits, 2)
    assert moves.min() == -shift and moves.max() == shift - 1
    for image, moved, walk in zip(blur.levels(x), found, moves, strict=True):
        assert np.array_equal(moved, slow_glass(image, shift, walk))
    assert not np.array_equal(found, x)


def test_glass_leaves_an_image_too_small_for_its_margin() -> None:
    x = floats(2, 4, 4)
    assert np.array_equal(blur.glass_blur(x, draws(2), (0.05, 4, 2)), blur.levels(x))


def test_motion_blurs_along_the_angle_of_each_image() -> None:
    x = floats(6)
    angles = draws(6).between(-45, 45)
    assert len(set(angles)) == 6
    assert np.array_equal(blur.motion_blur(x, draws(6), (6, 2)), filters.motion(x, 6, 2, angles))


def test_zoom_is_the_mean_over_its_factors() -> None:
    x = floats(2)
    wanted = (x + x + filters.zoom(x, 1.1) + filters.zoom(x, 1.2)) / 4
    assert np.abs(blur.zoom_blur(x, draws(2), (0.1, 3)) - wanted).max() < 1e-6


def test_levels_rounds_down_and_keeps_every_level() -> None:
    exact = np.arange(256, dtype=np.float32) / np.float32(255)
    assert np.array_equal(np.rint(blur.levels(exact) * 255), np.arange(256))
    assert np.array_equal(np.rint(blur.levels(exact[:-1] + np.float32(0.9 / 255)) * 255), np.arange(255))
    assert blur.levels(np.array([-1.0, 2.0], np.float32)).tolist() == [0, 1]
