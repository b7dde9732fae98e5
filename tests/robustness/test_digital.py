from __future__ import annotations

import colorsys
from io import BytesIO

import numpy as np
import pytest

from secateur.errors import Unsupported
from secateur.robustness import digital
from secateur.robustness.draws import Draws
from secateur.robustness.severities import TABLES
from tests.robustness.images import blobs, floats, needs_pillow

NO_DRAWS = Draws(0, "none", 0, 0)


@pytest.mark.parametrize("c", [0.75, 0.4, 0.05])
def test_contrast_keeps_channel_means_and_scales_deviations(c: float) -> None:
    x = floats(3, 17, 20)
    found = digital.contrast(x, NO_DRAWS, (c,))
    assert np.abs(found.mean((1, 2)) - x.mean((1, 2))).max() < 1e-5
    assert np.allclose(found.std((1, 2)), c * x.std((1, 2)), rtol=1e-4)
    assert np.ptp(x.mean((1, 2))) > 0.01, "the means differ, so that a common one would be seen"


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("value", [0, 1, 127, 200, 255])
def test_pixelate_of_a_constant_is_the_identity(table: str, value: int) -> None:
    flat = np.full((1, 31, 33, 3), value, np.float32) / np.float32(255)
    for c in TABLES[table]["pixelate"]:
        assert np.abs(digital.pixelate(flat, NO_DRAWS, c) - flat).max() < 1e-6


@pytest.mark.parametrize("c", [0.95, 0.6, 0.25])
@pytest.mark.parametrize("shape", [(32, 32), (31, 45)])
def test_pixelate_equals_pillow(c: float, shape: tuple[int, int]) -> None:
    needs_pillow()
    from PIL import Image

    images = blobs(2, *shape)
    found = digital.pixelate(images.astype(np.float32) / 255, NO_DRAWS, (c,))
    for image, ours in zip(images, found, strict=True):
        small = Image.fromarray(image).resize((int(shape[1] * c), int(shape[0] * c)), Image.Resampling.BOX)
        large = small.resize((shape[1], shape[0]), Image.Resampling.BOX)
        assert np.array_equal(np.rint(ours * 255), np.asarray(large))


def test_pixelate_of_a_tiny_image_leaves_one_pixel_at_least() -> None:
    found = digital.pixelate(floats(1, 2, 3), NO_DRAWS, (0.25,))
    assert found.shape == (1, 2, 3, 3) and (found == found[:, :1, :1]).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_equals_pillow(channels: int) -> None:
    needs_pillow()
    from PIL import Image

    image = blobs(1, 24, 40, channels)[0]
    file = BytesIO()
    Image.fromarray(image.squeeze()).save(file, "JPEG", quality=25)
    wanted = np.asarray(Image.open(file)).reshape(image.shape)
    found = digital.jpeg_compression(image[None].astype(np.float32) / 255, NO_DRAWS, (25,))
    assert np.array_equal(np.rint(found[0] * 255), wanted)


def test_jpeg_without_pillow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(Unsupported, match=r"pip install 'secateur\[vision\]'"):
        digital.jpeg_compression(floats(1), NO_DRAWS, (25,))


@pytest.mark.parametrize("c", [(0.3, 0.0), (2.0, 0.1), (20.0, 0.2)])
def test_saturate_equals_the_standard_library(c: tuple[float, float]) -> None:
    x = floats(1, 8, 8)
    x[0, 0, 0], x[0, 0, 1], x[0, 0, 2] = 0, 0.5, (1, 0, 0)  # black, grey without hue, pure red
    found = digital.saturate(x, NO_DRAWS, c)
    for before, after in zip(x.reshape(-1, 3), found.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before.astype(float))
        wanted = colorsys.hsv_to_rgb(hue, min(saturation * c[0] + c[1], 1), value)
        assert after == pytest.approx(wanted, abs=1e-5)


def test_saturate_leaves_grey_images() -> None:
    grey = floats(2, channels=1)
    assert np.array_equal(digital.saturate(grey, NO_DRAWS, (20, 0.2)), grey)
