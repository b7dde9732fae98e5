"""The filters against scipy.ndimage, Pillow and loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from secateur.robustness import filters
from tests.robustness.images import blobs, floats, needs_pillow

NDIMAGE_MODES = {"edge": "nearest", "symmetric": "reflect", "reflect": "mirror"}


@pytest.mark.parametrize("mode", NDIMAGE_MODES)
@pytest.mark.parametrize(("sigma", "shape"), [(0.4, (32, 32)), (1.0, (7, 12)), (6.0, (8, 8)), (2.5, (1, 5))])
def test_gaussian_equals_scipy(sigma: float, shape: tuple[int, int], mode: str) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    x = floats(2, *shape)
    wanted = ndimage.gaussian_filter(x.astype(float), (0, sigma, sigma, 0), mode=NDIMAGE_MODES[mode])
    assert np.abs(filters.gaussian(x, sigma, mode=mode) - wanted).max() < 1e-6


def test_gaussian_truncates_and_sigma_nothing_changes_nothing() -> None:
    x = np.zeros((1, 21, 21, 1), np.float32)
    x[0, 10, 10] = 1
    assert (filters.gaussian(x, 2.0, truncate=3)[0, 10, :, 0] > 0).sum() == 13
    assert (filters.gaussian(x, 2.0)[0, 10, :, 0] > 0).sum() == 17
    assert filters.gaussian(x, 0.0) is x


def test_correlate_does_not_turn_its_kernel() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    x, kernel = floats(2, 9, 11), np.array([[0, 1, 2], [3, 0, 5], [0, -1, 8]], float)
    wanted = np.stack(
        [[ndimage.correlate(i[..., c].astype(float), kernel, mode="mirror") for c in range(3)] for i in x]
    )
    assert np.abs(filters.correlate(x, kernel, "reflect") - wanted.transpose(0, 2, 3, 1)).max() < 1e-5


def slow_motion(image: np.ndarray, radius: int, sigma: float, angle: float) -> np.ndarray:
    """Pixel by pixel: tap i reads ceil(i cos - 1/2) to the right and ceil(i sin - 1/2) down."""
    height, width = image.shape[:2]
    weights = [math.exp(-i * i / (2 * sigma**2)) for i in range(2 * radius + 1)]
    out = np.zeros(image.shape)
    for y in range(height):
        for x in range(width):
            for i, weight in enumerate(weights):
                down = math.ceil(i * math.sin(math.radians(angle)) - 0.5)
                right = math.ceil(i * math.cos(math.radians(angle)) - 0.5)
                at = min(max(y + down, 0), height - 1), min(max(x + right, 0), width - 1)
                out[y, x] += image[at] * weight / sum(weights)
    return out


def test_motion_equals_its_slow_rendering() -> None:
    x, angles = floats(4, 9, 13), [0.0, 37.5, -45.0, -120.0]
    found = filters.motion(x, 6, 2.5, angles)
    for image, blurred, angle in zip(x, found, angles, strict=True):
        assert np.abs(blurred - slow_motion(image, 6, 2.5, angle)).max() < 1e-5


@pytest.mark.parametrize(
    ("shape", "factor"), [((32, 32), 1.06), ((32, 32), 1.25), ((17, 40), 2.25), ((9, 9), 4)]
)
def test_zoom_equals_scipy(shape: tuple[int, int], factor: float) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    x = floats(2, *shape)
    height, width = (math.ceil(side / factor) for side in shape)
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    middle = x[:, top : top + height, left : left + width].astype(float)
    wanted = ndimage.zoom(middle, (1, factor, factor, 1), order=1)
    top, left = (wanted.shape[1] - shape[0]) // 2, (wanted.shape[2] - shape[1]) // 2
    wanted = wanted[:, top : top + shape[0], left : left + shape[1]]
    assert np.abs(filters.zoom(x, factor) - wanted).max() < 1e-5


@given(size=st.integers(1, 60), wanted=st.integers(1, 60))
def test_linear_taps_read_a_ramp_at_pixel_centres(size: int, wanted: int) -> None:
    index, weight = filters.linear_taps(size, wanted)
    assert index.min() >= 0 and index.max() < size and weight.min() >= 0 and np.allclose(weight.sum(0), 1)
    places = (np.arange(wanted) + 0.5) * size / wanted - 0.5
    assert np.allclose((index * weight).sum(0), places.clip(0, size - 1))


@given(size=st.integers(1, 60), wanted=st.integers(1, 60))
@example(size=2, wanted=49)  # the 25th pixel's centre is the border between the two
def test_box_taps_are_means_of_what_lies_inside(size: int, wanted: int) -> None:
    index, weight = filters.box_taps(size, wanted)
    assert index.min() >= 0 and index.max() < size
    assert np.allclose(weight.sum(0), 1)
    if wanted >= size:
        assert len(index) == 1 and (np.diff(index[0]) >= 0).all()
    elif size % wanted == 0:
        means = np.arange(size, dtype=float).reshape(wanted, -1).mean(1)
        assert np.allclose((index * weight).sum(0), means)


@pytest.mark.parametrize(
    ("size", "wanted"), [(32, 30), (32, 20), (224, 56), (224, 67), (9, 4), (4, 9), (2, 49)]
)
def test_box_equals_pillow(size: int, wanted: int) -> None:
    needs_pillow()
    from PIL import Image

    image = blobs(1, size, size)[0]
    pillow = np.asarray(Image.fromarray(image).resize((wanted, size), Image.Resampling.BOX))
    ours = filters.along(image[None].astype(np.float32), 2, *filters.box_taps(size, wanted))
    assert np.array_equal(np.floor(ours[0] + 0.5001), pillow)


@settings(max_examples=40)
@given(height=st.integers(1, 9), width=st.integers(1, 9), mode=st.sampled_from(["reflect", "symmetric"]))
def test_sample_equals_bilinear_interpolation_of_the_padded_image(height: int, width: int, mode: str) -> None:
    x, margin = floats(2, height, width), 12
    rng = np.random.default_rng(height * 10 + width)
    rows, columns = (rng.uniform(-11, 11 + side, (2, height, width)) for side in (0, 0))
    padded = filters.pad(x, margin, margin, mode).astype(float)
    found = filters.sample(x, rows, columns, mode)
    for n, i, j in np.ndindex(2, height, width):
        y, x_ = rows[n, i, j] + margin, columns[n, i, j] + margin
        y, x_ = min(y, padded.shape[1] - 1.001), min(x_, padded.shape[2] - 1.001)
        if (y, x_) != (rows[n, i, j] + margin, columns[n, i, j] + margin):
            continue
        a, b = int(y), int(x_)
        square = padded[n, a : a + 2, b : b + 2]
        wanted = np.einsum("ijc,i,j", square, [1 - (y - a), y - a], [1 - (x_ - b), x_ - b])
        assert np.abs(found[n, i, j] - wanted).max() < 1e-5


def test_sample_on_whole_pixels_is_the_image() -> None:
    x = floats(2, 5, 6)
    rows, columns = np.mgrid[:5, :6].astype(float)
    found = filters.sample(x, np.stack([rows, rows]), np.stack([columns, columns]), "reflect")
    assert np.array_equal(found, x)
