"""What holds of every corruption: shape, kind and range, the seed, batches of any size, severities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import BadInput
from secateur.robustness.corrupt import EXTRA, NAMES, corrupt
from tests.robustness.images import blobs, floats, needs_pillow

ALL = NAMES + EXTRA
FIXED = (
    "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression", "gaussian_blur", "saturate",
)  # fmt: skip
RANDOM = [name for name in ALL if name not in FIXED]


def skip_without_pillow(name: str) -> None:
    if name == "jpeg_compression":
        needs_pillow()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("shape", "channels"), [((32, 32), 3), ((8, 8), 3), ((8, 8), 1), ((13, 21), 1), ((1, 5), 3)]
)
def test_shape_dtype_and_range(name: str, shape: tuple[int, int], channels: int) -> None:
    skip_without_pillow(name)
    images = blobs(2, *shape, channels)
    for table, severity in (("cifar-c", 3), ("imagenet-c", 2), ("imagenet-c", 5)):
        found = corrupt(images, name, severity, table=table)
        assert found.shape == images.shape and found.dtype == np.uint8
        real = corrupt(images.astype(np.float64) / 255, name, severity, table=table)
        assert real.shape == images.shape and real.dtype == np.float64
        assert np.isfinite(real).all() and real.min() >= 0 and real.max() <= 1
        # 8 bits are the same image rounded down; where a float image passes through 8 bits within, a level more.
        assert np.abs(real * 255 - found).max() < 1.01


@pytest.mark.parametrize("name", ALL)
def test_a_tensor_is_an_array_in_another_layout(name: str) -> None:
    skip_without_pillow(name)
    images = blobs(2, 10, 12)
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    found = corrupt(tensor, name, 2)
    assert isinstance(found, torch.Tensor) and found.shape == tensor.shape and found.dtype == torch.uint8
    assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), corrupt(images, name, 2))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        real = corrupt((tensor / 255).to(dtype).requires_grad_(), name, 2)
        assert real.dtype == dtype and not real.requires_grad and real.min() >= 0 and real.max() <= 1


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=8)
@given(size=st.integers(1, 7), seed=st.integers(0, 2**40), severity=st.integers(1, 5))
def test_batches_of_any_size_give_equal_bytes(name: str, size: int, seed: int, severity: int) -> None:
    skip_without_pillow(name)
    images = blobs(7, 12, 9)
    whole = corrupt(images, name, severity, seed=seed % 3 if name == "frost" else seed)
    seed = seed % 3 if name == "frost" else seed
    parts = [
        corrupt(images[i : i + size], name, severity, seed=seed, first=i) for i in range(0, len(images), size)
    ]
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("name", ALL)
def test_more_images_than_are_worked_on_at_once(name: str) -> None:
    skip_without_pillow(name)
    images = blobs(3, 200, 300)  # 180,000 values each: two at once, one left
    found = corrupt(images, name, 1, table="imagenet-c")
    assert np.array_equal(found[2:], corrupt(images[2:], name, 1, table="imagenet-c", first=2))


@pytest.mark.parametrize("name", RANDOM)
def test_seed_severity_and_index_change_what_is_random(name: str) -> None:
    images = blobs(1)
    base = corrupt(images, name, 3, table="imagenet-c")
    assert np.array_equal(base, corrupt(images, name, 3, table="imagenet-c"))
    assert not np.array_equal(base, corrupt(images, name, 3, table="imagenet-c", seed=1))
    assert not np.array_equal(base, corrupt(images, name, 3, table="imagenet-c", first=1))


@pytest.mark.parametrize("name", FIXED)
def test_the_others_need_no_seed(name: str) -> None:
    skip_without_pillow(name)
    images = blobs(2)
    assert np.array_equal(corrupt(images, name, 3), corrupt(images, name, 3, seed=9, first=5))


GROWING = (
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "gaussian_blur", "defocus_blur", "zoom_blur",
    "contrast", "brightness", "pixelate", "jpeg_compression",
)  # fmt: skip


@pytest.mark.parametrize("name", GROWING)
@pytest.mark.parametrize("table", ["cifar-c", "imagenet-c"])
def test_the_mean_change_grows_with_severity(name: str, table: str) -> None:
    skip_without_pillow(name)
    images = blobs(20, 48, 48)
    change = [
        np.abs(corrupt(images, name, s, table=table).astype(float) - images).mean() for s in range(1, 6)
    ]
    assert change == sorted(change) and 0 < change[0] < 0.95 * change[-1]


def test_uint8_is_rounded_down() -> None:
    images = np.full((1, 4, 4, 3), 100, np.uint8)
    assert (corrupt(images, "brightness", 1, table="imagenet-c") == 125).all()  # 100 + 25.5
    assert (corrupt(images, "brightness", 2, table="imagenet-c") == 151).all()  # 100 + 51, not 150


def test_the_input_is_not_changed_and_may_be_read_only(tmp_path: Path) -> None:
    images = blobs(2)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r", allow_pickle=False)
    for name in ("gaussian_noise", "glass_blur", "snow", "contrast"):
        assert np.array_equal(corrupt(mapped, name, 1), corrupt(images, name, 1))
    assert np.array_equal(images, blobs(2))


def test_frost_takes_photos(tmp_path: Path) -> None:
    needs_pillow()
    from PIL import Image

    Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(tmp_path / "white.png")
    images = np.zeros((2, 16, 16, 3), np.uint8)
    found = corrupt(images, "frost", 1, table="imagenet-c", frost_images=tmp_path)
    assert (found == 102).all()  # 0.4 of white


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ([[1, 2]], "pass a numpy array"),
        (np.zeros((2, 8, 8), np.uint8), "1 or 3 channels"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"\[N, H, W, C\]"),
        (torch.zeros(2, 8, 8, 3), r"\[N, C, H, W\]"),
        (np.zeros((0, 8, 8, 3), np.uint8), "at least one"),
        (np.zeros((1, 8, 8, 3), np.int64), "dtype int64"),
        (np.full((1, 8, 8, 3), np.nan), "NaN"),
        (np.full((1, 8, 8, 3), 1.5), "from 1.5 to 1.5"),
        (torch.full((1, 3, 8, 8), -0.1), "undo the normalisation"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(images: object, says: str) -> None:
    with pytest.raises(BadInput, match=says) as error:
        corrupt(images, "fog", 1)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_unknown_settings_are_refused() -> None:
    images = floats(1)
    for settings_ in ({"name": "frog"}, {"severity": 9}, {"table": "cifar"}, {"seed": -1}, {"first": -1}):
        with pytest.raises(BadInput):
            corrupt(images, **{"name": "fog", "severity": 1, **settings_})  # type: ignore[arg-type]
