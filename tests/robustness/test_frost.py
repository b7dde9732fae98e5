from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from secateur.errors import BadInput
from secateur.robustness import frost
from secateur.robustness.draws import Draws
from tests.robustness.images import blobs, needs_pillow


def test_our_pictures_are_decided_by_the_seed_and_look_like_ice() -> None:
    pictures = frost.drawn(0, 128)
    again = frost.drawn.__wrapped__(0, 128)
    assert len(pictures) == frost.PICTURES and all(map(np.array_equal, pictures, again))
    assert not np.array_equal(pictures[0], frost.drawn(1, 128)[0])
    for picture, (mean, deviation) in zip(pictures, frost._TONES, strict=True):
        assert picture.shape == (128, 128, 3) and picture.min() >= 0 and picture.max() <= 1
        grey = picture.mean(2)
        assert grey.mean() == pytest.approx(mean, abs=0.03) and grey.std() == pytest.approx(
            deviation, rel=0.3
        )
        assert np.abs(np.diff(grey, axis=1)).mean() > 0.15 * deviation, "ice is grainy"
        assert picture[..., 2].mean() > picture[..., 0].mean(), "ice is bluish"
    with pytest.raises(ValueError, match="read-only"):
        pictures[0][0] = 0


def test_crops_come_from_the_pictures() -> None:
    pictures = [np.full((20, 30, 3), i / 4, np.float32) for i in range(5)]
    pictures[0] += np.arange(30, dtype=np.float32)[None, :, None] / 100
    found = frost.crops(pictures, Draws(0, "test", 0, 64), 20, 8, 3)
    assert found.shape == (64, 20, 8, 3)
    plain = {round(float(part.mean()), 2) for part in found if np.ptp(part) == 0}
    assert plain == {0.25, 0.5, 0.75, 1.0}
    starts = {round(float(part[0, 0, 0]), 2) for part in found if np.ptp(part) > 0}
    assert len(starts) > 3, "the place is random"
    assert frost.crops(pictures, Draws(0, "test", 0, 2), 5, 5, 1).shape == (2, 5, 5, 1)


def test_photos_of_the_user_are_read_and_scaled_to_hold_an_image(tmp_path: Path) -> None:
    needs_pillow()
    from PIL import Image

    pixels = blobs(1, 100, 150)[0]
    Image.fromarray(pixels).save(tmp_path / "b.png")
    Image.fromarray(np.full((10, 400), 255, np.uint8)).save(tmp_path / "a.jpg")
    grey, colour = frost.read_photos(tmp_path)
    assert grey.shape == (10, 400, 3) and grey.min() > 0.98
    assert np.array_equal(np.rint(colour * 255), pixels)
    assert frost.scaled(grey, 0.2, 24, 24).shape == (24, 960, 3), "enlarged until it holds 24 rows"
    assert frost.scaled(colour, 0.2, 24, 24).shape == (24, 36, 3)
    assert frost.scaled(colour, 1.0, 24, 24) is colour


def test_a_fifth_is_every_fifth_pixel_and_stays_grainy() -> None:
    picture = np.random.default_rng(0).random((100, 60, 3), dtype=np.float32)
    assert np.allclose(frost.scaled(picture, 0.2, 8, 8), picture[2::5, 2::5])
    doubled = frost.scaled(picture, 2.0, 8, 8)
    assert doubled.shape == (200, 120, 3)
    assert np.allclose(doubled[3, 0], 0.75 * picture[1, 0] + 0.25 * picture[2, 0], atol=1e-6)


def test_what_holds_no_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no folder"):
        frost.photo_files(tmp_path / "none")
    with pytest.raises(BadInput, match="holds no"):
        frost.photo_files(tmp_path)
    needs_pillow()
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(BadInput, match=r"a\.png: is no image"):
        frost.read_photos(tmp_path)
