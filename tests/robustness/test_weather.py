from __future__ import annotations

import colorsys

import numpy as np
import pytest

from secateur.robustness import weather
from secateur.robustness.draws import Draws
from secateur.robustness.severities import TABLES
from tests.robustness.images import floats


def draws(count: int, seed: int = 0) -> Draws:
    return Draws(seed, "test", 0, count)


@pytest.mark.parametrize("c", [0.05, 0.3, 0.5])
def test_brightness_raises_the_hsv_value_and_leaves_hue_and_saturation(c: float) -> None:
    x = floats(1, 8, 8)
    x[0, 0, 0] = 0  # black becomes grey
    x[0, 0, 1] = (1, 0.5, 0.25)  # nothing above 1
    found = weather.brightness(x, draws(1), (c,))
    for before, after in zip(x.reshape(-1, 3), found.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before.astype(float))
        wanted = colorsys.hsv_to_rgb(hue, saturation, min(value + c, 1))
        assert after == pytest.approx(wanted, abs=1e-5)


def test_brightness_of_grey_is_an_addition() -> None:
    x = floats(2, channels=1)
    assert np.abs(weather.brightness(x, draws(2), (0.2,)) - np.minimum(x + 0.2, 1)).max() < 1e-6


def slow_plasma(side: int, decay: float, draws: Draws) -> np.ndarray:
    """Diamond-square point by point, in the published order of the three families of points."""
    height, step, wibble = np.zeros((side, side)), side, 100.0
    while step >= 2:
        half, cells = step // 2, side // step
        for family in range(3):
            noise = draws.uniform(cells, cells)[0].astype(float) * 2 - 1
            for i, j in np.ndindex(cells, cells):
                y, x = i * step + (half if family != 1 else 0), j * step + (half if family != 2 else 0)
                around = [(-half, -half), (-half, half), (half, -half), (half, half)]
                if family:
                    around = [(-half, 0), (half, 0), (0, -half), (0, half)]
                total = sum(height[(y + a) % side, (x + b) % side] for a, b in around)
                height[y, x] = total / 4 + wibble * wibble * noise[i, j]
        step, wibble = half, wibble / decay
    height -= height.min()
    return height / height.max()


@pytest.mark.parametrize(("side", "decay"), [(4, 3), (16, 1.75)])
def test_plasma_equals_its_slow_rendering(side: int, decay: float) -> None:
    found = weather.plasma_fractal(draws(1), side, decay)
    assert np.abs(found[0] - slow_plasma(side, decay, draws(1))).max() < 1e-6


def test_plasma_spans_0_to_1_and_is_smoother_for_a_larger_decay() -> None:
    rough, smooth = (weather.plasma_fractal(draws(8), 32, decay) for decay in (1.5, 3))
    for plasma in (rough, smooth):
        assert plasma.min(axis=(1, 2)).tolist() == [0] * 8 and plasma.max(axis=(1, 2)).tolist() == [1] * 8
    assert np.abs(np.diff(rough, axis=2)).mean() > 1.5 * np.abs(np.diff(smooth, axis=2)).mean()


def test_fog_keeps_the_brightest_value_within_reach() -> None:
    x = floats(3, 20, 33)
    found = weather.fog(x, draws(3), (1.5, 2))
    plasma = weather.plasma_fractal(draws(3), 64, 2)[:, :20, :33, None]
    for image, foggy, p in zip(x, found, plasma, strict=True):
        assert np.abs(foggy - (image + 1.5 * p) * image.max() / (image.max() + 1.5)).max() < 1e-5
        assert foggy.max() <= image.max() + 1e-6


def test_snow_falls_in_streaks_and_only_brightens_a_dark_image() -> None:
    dark = np.zeros((4, 32, 32, 3), np.float32)
    c = TABLES["cifar-c"]["snow"][2]
    found = weather.snow(dark, draws(4), c)
    whitened = (1 - c[6]) * 0.5
    layer = found[..., 0] - whitened
    assert np.array_equal(found[..., 0], found[..., 1]) and layer.min() > -1e-6 and layer.max() > 0.1
    assert np.abs(layer - layer[:, ::-1, ::-1]).max() < 1e-6, "the layer and its half turn are added"
    down, across = np.abs(np.diff(layer, axis=1)).mean(), np.abs(np.diff(layer, axis=2)).mean()
    assert down < across, "the streaks fall"


def test_snow_of_grey_takes_the_pixel_for_its_luma() -> None:
    grey = floats(2, channels=1)
    colour = np.repeat(grey, 3, axis=3)
    c = TABLES["cifar-c"]["snow"][0]
    found, wanted = weather.snow(grey, draws(2), c), weather.snow(colour, draws(2), c)
    assert np.abs(found - wanted).max() < 1e-6


def test_frost_is_the_weighted_sum() -> None:
    x, ice = floats(2), floats(2, seed=1)
    assert np.allclose(weather.frost(x, ice, (0.75, 0.45)), 0.75 * x + 0.45 * ice)


def test_luma() -> None:
    assert weather.gray(np.eye(3, dtype=np.float32)[None, None])[0, 0, :, 0] == pytest.approx(
        [0.299, 0.587, 0.114]
    )
    grey = floats(1, channels=1)
    assert weather.gray(grey) is grey
