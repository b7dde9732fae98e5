"""The noise corruptions: gaussian, shot, impulse, speckle.

Each takes float32 [n, H, W, C] in [0, 1], the images' draws and the parameters, and gives the same shape, not yet
clipped.
"""

from __future__ import annotations

import numpy as np

from secateur.robustness.draws import Draws
from secateur.robustness.severities import Numbers

Array = np.ndarray


def gaussian_noise(x: Array, draws: Draws, c: Numbers) -> Array:
    """x + N(0, sigma)."""
    noise = draws.normal(*x.shape[1:])
    noise *= np.float32(c[0])
    return np.add(noise, x, out=noise)


def speckle_noise(x: Array, draws: Draws, c: Numbers) -> Array:
    """x + x N(0, sigma): dark pixels stay clean."""
    noise = draws.normal(*x.shape[1:])
    noise *= np.float32(c[0])
    noise *= x
    return np.add(noise, x, out=noise)


def shot_noise(x: Array, draws: Draws, c: Numbers) -> Array:
    """Poisson(x c) / c: c photons make full white."""
    out = np.empty_like(x)
    for image, noisy, generator in zip(x, out, draws.each, strict=True):
        noisy[...] = generator.poisson(image.astype(np.float64) * c[0])
    out /= np.float32(c[0])
    return out


def impulse_noise(x: Array, draws: Draws, c: Numbers) -> Array:
    """Salt and pepper: a share of the values (each channel for itself) becomes 0 or 1, with equal chances."""
    chance = draws.uniform(*x.shape[1:])
    out = np.where(chance < c[0], np.float32(1), x)
    return np.where(chance < c[0] / 2, np.float32(0), out)
