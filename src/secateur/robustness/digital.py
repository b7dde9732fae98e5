"""The digital corruptions: contrast, pixelate, JPEG, saturate (elastic.py and spatter.py have files of their own).

Each takes float32 [n, H, W, C] in [0, 1], the images' draws and the parameters, and gives the same shape, not yet
clipped. Pixelate and JPEG are defined on 8 bits: float images are rounded to 8 bits first.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np

from secateur.errors import require
from secateur.robustness import filters
from secateur.robustness.draws import Draws
from secateur.robustness.severities import Numbers

Array = np.ndarray


def contrast(x: Array, draws: Draws, c: Numbers) -> Array:
    """(x - mean) c + mean, the mean of each channel of each image."""
    n, height, width, channels = x.shape
    planes = np.ascontiguousarray(x.reshape(n, height * width, channels).transpose(0, 2, 1), dtype=np.float64)
    means = planes.mean(axis=2).astype(np.float32)[:, None, None, :]
    return (x - means) * np.float32(c[0]) + means


def pixelate(x: Array, draws: Draws, c: Numbers) -> Array:
    """Shrink by c with a box filter and enlarge by one again; 8 bits after each pass, rounded as Pillow does."""
    height, width = x.shape[1:3]
    low, narrow = max(int(height * c[0]), 1), max(int(width * c[0]), 1)
    x = np.rint(x * np.float32(255))
    for axis, size, wanted in ((2, width, narrow), (1, height, low), (2, narrow, width), (1, low, height)):
        if size != wanted:
            x = filters.along(x, axis, *filters.box_taps(size, wanted))
        if size > wanted:
            x = np.floor(x + np.float32(0.5 + 1e-4))
    return x / np.float32(255)


def jpeg_compression(x: Array, draws: Draws, c: Numbers) -> Array:
    """Through a JPEG file of quality c, by Pillow; the image has 8 bits before and after.

    Raises:
        Unsupported: Pillow is not installed.
    """
    image = require("PIL.Image", "vision")
    bytes_ = np.rint(x * np.float32(255)).astype(np.uint8)
    out = np.empty_like(bytes_)
    for before, after in zip(bytes_, out, strict=True):
        file = BytesIO()
        image.fromarray(before if x.shape[3] == 3 else before[..., 0]).save(file, "JPEG", quality=int(c[0]))
        after[...] = np.asarray(image.open(file, formats=["JPEG"])).reshape(after.shape)
    return out.astype(np.float32) / np.float32(255)


def saturate(x: Array, draws: Draws, c: Numbers) -> Array:
    """HSV saturation times c[0] plus c[1], cut to [0, 1]. A one-channel image has no saturation and stays as it is.

    A pixel without hue (all channels equal) counts as red, as HSV libraries do: an addend tints grey areas.
    """
    if x.shape[3] == 1:
        return x
    value, least = x.max(axis=3, keepdims=True), x.min(axis=3, keepdims=True)
    below = value - least
    old = np.divide(below, value, out=np.zeros_like(value), where=value > 0)
    new = np.clip(old * np.float32(c[0]) + np.float32(c[1]), 0, 1)
    gray = below == 0
    # How far each channel lies below the value, as a share of the furthest: 0 and 1 for the two extremes.
    share = np.divide(value - x, below, out=np.zeros_like(x), where=~gray)
    share = np.where(gray, np.array([0, 1, 1], np.float32), share)
    return value - share * (value * new)
