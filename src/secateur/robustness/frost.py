"""What frost blends in: ice crystals drawn from the seed, or crops of photos the user has.

The published sets blend in photos that are not ours to ship. By default we draw five pictures of our own: needles with
side branches and grains of ice over uneven haze, about as bright and as rough as the photos. Results say "secateur
rendering"; a folder of photos (`frost_images=`) takes their place. Pictures and photos then go the same way: scaled by
the table's factor (0.2 for CIFAR-C, by interpolation without averaging, which leaves them grainy), and cropped.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np

from secateur.errors import BadInput, require
from secateur.robustness import filters
from secateur.robustness.draws import Array, Draws
from secateur.robustness.weather import gray, plasma_fractal

PICTURES, SIDE = 5, 640
_KINDS = (".png", ".jpg", ".jpeg")
# Mean and deviation of each picture, in the range of the photos of the public package.
_TONES = ((0.51, 0.08), (0.80, 0.10), (0.80, 0.10), (0.59, 0.13), (0.48, 0.17))
_TINT = np.array([-0.05, 0.01, 0.04], np.float32)  # ice is a little blue


def crops(pictures: list[Array], draws: Draws, height: int, width: int, channels: int) -> Array:
    """For each image a random part of a random picture: float32 [n, H, W, C]. pictures: float32 [h, w, 3] each."""
    out = np.empty((len(draws), height, width, 3), np.float32)
    for part, generator in zip(out, draws.each, strict=True):
        picture = pictures[int(generator.integers(len(pictures)))]
        top = int(generator.integers(picture.shape[0] - height + 1))
        left = int(generator.integers(picture.shape[1] - width + 1))
        part[...] = picture[top : top + height, left : left + width]
    return out if channels == 3 else gray(out)


def scaled(picture: Array, scale: float, height: int, width: int) -> Array:
    """A picture [h, w, 3] times `scale`, or as much larger as it takes to hold an image of height x width."""
    high, wide = picture.shape[:2]
    factor = max(scale, height / high, width / wide)
    new = max(round(high * factor), height), max(round(wide * factor), width)
    for axis in (0, 1):
        if new[axis] != picture.shape[axis]:
            picture = filters.along(picture, axis, *filters.linear_taps(picture.shape[axis], new[axis]))
    return picture


# -- photos of the user ---------------------------------------------------------------------------------------------


def photo_files(folder: str | Path) -> list[Path]:
    """The photos of a folder, by name.

    Raises:
        BadInput: it is no folder, or holds no .png or .jpg.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput("is no folder", where=str(folder), fix="give a folder of frost photos (.png, .jpg)")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _KINDS)
    if not files:
        raise BadInput("holds no .png or .jpg", where=str(folder), fix="give a folder of frost photos")
    return files


def read_photos(folder: str | Path) -> list[Array]:
    """The photos of a folder, float32 [h, w, 3] in [0, 1].

    Raises:
        BadInput: no photo there, or one that cannot be read.   Unsupported: Pillow is not installed.
    """
    pillow = require("PIL.Image", "vision")
    out = []
    for path in photo_files(folder):
        try:
            with pillow.open(path) as photo:
                pixels = np.asarray(photo.convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise BadInput(f"is no image ({error})", where=str(path), fix="remove it or mend it") from error
        out.append(pixels.astype(np.float32) / np.float32(255))
    return out


# -- our pictures ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def drawn(seed: int, side: int = SIDE) -> list[Array]:
    """Our pictures [side, side, 3] in [0, 1], decided by the seed."""
    draws = Draws(seed, "frost pictures", 0, PICTURES)
    haze = plasma_fractal(draws, 1 << (side - 1).bit_length(), 1.5)[:, :side, :side]
    out = []
    for layer, generator, (mean, deviation) in zip(haze, draws.each, _TONES, strict=True):
        ice = needles(generator, side)[None, :, :, None]
        grain = filters.gaussian(generator.standard_normal((1, side, side, 1), dtype=np.float32), 0.8)
        parts = (
            (ice, 0.6),
            (filters.gaussian(ice, side / 60), 1.0),
            (layer[None, :, :, None], 1.0),
            (grain, 0.8),
        )
        picture = sum(
            ((part - part.mean()) / part.std() * np.float32(share) for part, share in parts), ice * 0
        )[0]
        tinted = picture / picture.std() * np.float32(deviation) + np.float32(mean) + _TINT
        out.append(np.clip(tinted, 0, 1).astype(np.float32))
        out[-1].flags.writeable = False  # it is kept for the next call
    return out


def needles(generator: np.random.Generator, side: int) -> Array:
    """Crystals [side, side] in [0, 1]: straight needles, each with branches at 60 degrees that shorten to its tip."""
    ice = np.zeros((side, side), np.float32)
    for _ in range(80):
        y, x = generator.uniform(0, side, 2)
        angle = generator.uniform(0, 2 * math.pi)
        length = generator.uniform(0.05, 0.3) * side
        _stroke(ice, y, x, angle, length, 1.0)
        gap = max(generator.uniform(0.01, 0.03) * side, 2.0)
        for at in np.arange(gap, length, gap):
            root = (y + at * math.sin(angle), x + at * math.cos(angle))
            for turn in (-math.pi / 3, math.pi / 3):
                _stroke(ice, *root, angle + turn, (length - at) * generator.uniform(0.1, 0.4), 0.6)
    return np.minimum(filters.gaussian(ice[None, :, :, None], 0.7)[0, :, :, 0] * np.float32(1.5), 1)


def _stroke(ice: Array, y: float, x: float, angle: float, length: float, light: float) -> None:
    """A line that fades to its end, on a torus."""
    steps = np.arange(0, max(length, 1), 0.7)
    rows = np.floor(y + steps * math.sin(angle)).astype(np.int64) % len(ice)
    columns = np.floor(x + steps * math.cos(angle)).astype(np.int64) % len(ice)
    fading = (light * (1 - 0.7 * steps / max(length, 1))).astype(np.float32)
    np.maximum.at(ice, (rows, columns), fading)
