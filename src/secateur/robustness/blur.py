"""The blur corruptions: gaussian, defocus, glass, motion, zoom.

Each takes float32 [n, H, W, C] in [0, 1], the images' draws and the parameters, and gives the same shape, not yet
clipped.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from secateur.robustness import filters
from secateur.robustness.draws import Draws
from secateur.robustness.severities import Numbers

Array = np.ndarray


def gaussian_blur(x: Array, draws: Draws, c: Numbers) -> Array:
    """Gaussian of sigma c; borders repeated."""
    return filters.gaussian(x, c[0])


def defocus_blur(x: Array, draws: Draws, c: Numbers) -> Array:
    """A disk of radius c[0], its edge smoothed by a small Gaussian of sigma c[1]; borders mirrored."""
    return filters.correlate(x, disk(*c), "reflect")


@lru_cache(maxsize=32)
def disk(radius: float, alias: float) -> Array:
    """The kernel [2 k + 1, 2 k + 1], cut to its smallest square. Below radius 1 only the centre is inside the disk."""
    reach, small = (8, 1) if radius <= 8 else (int(radius), 2)
    side = np.arange(-reach, reach + 1)
    inside = (side[:, None] ** 2 + side[None, :] ** 2 <= radius**2).astype(np.float64)
    inside /= inside.sum()
    taps = np.array(filters.gaussian_taps(alias, small))
    kernel = filters.correlate(inside[None, :, :, None], taps[:, None] * taps[None, :], "reflect")[0, :, :, 0]
    kernel[kernel < 1e-12] = 0  # the far ends of a very narrow Gaussian
    rows = np.nonzero(kernel.any(1))[0]
    k = int(max(reach - rows[0], rows[-1] - reach))
    return kernel[reach - k : reach + k + 1, reach - k : reach + k + 1]


def glass_blur(x: Array, draws: Draws, c: Numbers) -> Array:
    """Blur, let pixels take their neighbours' place, blur again. c: sigma, largest shift, rounds.

    Published code means to exchange two pixels and in fact copies one over the other (the sheet's pitfall); the
    published sets were made so, and so is this. Between the two blurs the image has 8 bits, as there.
    """
    sigma, shift, rounds = c[0], int(c[1]), int(c[2])
    first = levels(filters.gaussian(x, sigma))
    n, height, width, channels = x.shape
    visited = [
        (h, w) for h in range(height - shift, shift, -1) for w in range(width - shift, shift, -1)
    ]  # from the bottom right
    moves = draws.integers(-shift, shift, rounds, len(visited), 2)
    # The walk moves the numbers of pixels, [pixels, n]: one small step for all images at once.
    source = np.repeat(np.arange(height * width, dtype=np.int32)[:, None], n, axis=1)
    flat = source.reshape(-1)
    offset = ((moves[..., 0] * width + moves[..., 1]) * n).transpose(1, 2, 0) + np.arange(n, dtype=np.int32)
    for one in offset:
        for (h, w), neighbour in zip(visited, one, strict=True):
            at = h * width + w
            source[at] = flat[neighbour + at * n]
    base = np.arange(n, dtype=np.int64)[:, None] * (height * width)
    moved = first.reshape(n * height * width, channels)[source.T + base].reshape(x.shape)
    return filters.gaussian(moved, sigma)


def motion_blur(x: Array, draws: Draws, c: Numbers) -> Array:
    """Blur along one direction, U(-45, 45) degrees for each image. c: radius, sigma."""
    return filters.motion(x, int(c[0]), c[1], draws.between(-45, 45))


def zoom_blur(x: Array, draws: Draws, c: Numbers) -> Array:
    """Mean of the image and of its centre enlarged by 1, 1 + step, 1 + 2 step, ... c: step, how many."""
    step, count = c[0], int(c[1])
    out = x + x  # the first factor is 1
    for i in range(1, count):
        out += filters.zoom(x, round(1 + i * step, 6))
    out /= np.float32(count + 1)
    return out


def levels(x: Array) -> Array:
    """Values in [0, 1] at the 256 levels of 8 bits, rounded down as the published sets are.

    A thousandth of a level of slack keeps a value that float32 left just below its level where it belongs.
    """
    return np.floor(np.clip(x, 0, 1) * np.float32(255) + np.float32(1e-3)) / np.float32(255)
