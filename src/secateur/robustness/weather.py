"""The weather corruptions: snow, fog, brightness, and the blend of frost (frost.py makes or reads what is blended in).

Each takes float32 [n, H, W, C] in [0, 1], the images' draws and the parameters, and gives the same shape, not yet
clipped.
"""

from __future__ import annotations

import numpy as np

from secateur.robustness import filters
from secateur.robustness.draws import Draws
from secateur.robustness.severities import Numbers

Array = np.ndarray


def snow(x: Array, draws: Draws, c: Numbers) -> Array:
    """Flakes: a noise map, enlarged, cut at a threshold and blurred along U(-135, -45) degrees; the image is whitened.

    c: mean and deviation of the noise, zoom, threshold, radius and sigma of the blur, share of the image that stays.
    """
    mean, deviation, factor, threshold, radius, sigma, stays = c
    height, width = x.shape[1:3]
    flakes = draws.normal(height, width, 1)
    flakes *= np.float32(deviation)
    flakes += np.float32(mean)
    flakes = filters.zoom(flakes, factor)
    flakes[flakes < threshold] = 0
    np.clip(flakes, 0, 1, out=flakes)
    flakes = filters.motion(flakes, int(radius), sigma, draws.between(-135, -45))
    flakes = np.rint(flakes * np.float32(255)) / np.float32(255)
    white = np.maximum(x, gray(x) * np.float32(1.5) + np.float32(0.5))
    return x * np.float32(stays) + white * np.float32(1 - stays) + flakes + flakes[:, ::-1, ::-1]


def fog(x: Array, draws: Draws, c: Numbers) -> Array:
    """(x + strength p) max(x) / (max(x) + strength), p a plasma fractal in [0, 1]. c: strength, decay."""
    strength = np.float32(c[0])
    height, width = x.shape[1:3]
    side = 1 << (max(height, width, 3) - 1).bit_length()
    plasma = plasma_fractal(draws, side, c[1])[:, :height, :width, None]
    brightest = x.max(axis=(1, 2, 3), keepdims=True)
    return (x + plasma * strength) * (brightest / (brightest + strength))


def plasma_fractal(draws: Draws, side: int, decay: float) -> Array:
    """Height maps in [0, 1] by diamond-square on a torus, float32 [n, side, side]; side is a power of two.

    A point halfway is the mean of its four neighbours plus w U(-w, w): the published wibble w (100, divided by `decay`
    at each halving) comes in twice, so that roughness falls by decay squared.
    """
    n = len(draws)
    heights = np.zeros((n, side, side))
    step, wibble = side, 100.0

    def between(total: Array) -> Array:
        spread = draws.uniform(*total.shape[1:]).astype(np.float64)
        return total / 4 + wibble * wibble * (2 * spread - 1)

    while step >= 2:
        half = step // 2
        corner = heights[:, ::step, ::step]
        pairs = corner + np.roll(corner, -1, 1)
        centre = between(pairs + np.roll(pairs, -1, 2))
        heights[:, half::step, half::step] = centre
        across = corner + np.roll(corner, -1, 2) + centre + np.roll(centre, 1, 1)
        heights[:, ::step, half::step] = between(across)
        down = corner + np.roll(corner, -1, 1) + centre + np.roll(centre, 1, 2)
        heights[:, half::step, ::step] = between(down)
        step, wibble = half, wibble / decay
    heights -= heights.min(axis=(1, 2), keepdims=True)
    heights /= heights.max(axis=(1, 2), keepdims=True)
    return heights.astype(np.float32)


def brightness(x: Array, draws: Draws, c: Numbers) -> Array:
    """HSV value plus c, cut at 1. With hue and saturation held, the three channels grow by one factor."""
    value = x.max(axis=3, keepdims=True)
    brighter = np.minimum(value + np.float32(c[0]), np.float32(1))
    black = value == 0
    factor = np.divide(brighter, value, out=np.zeros_like(value), where=~black)
    return np.where(black, brighter, x * factor)


def frost(x: Array, crystals: Array, c: Numbers) -> Array:
    """c[0] x + c[1] crystals; crystals [n, H, W, C] in [0, 1]."""
    return x * np.float32(c[0]) + crystals * np.float32(c[1])


def gray(x: Array) -> Array:
    """Luma [n, H, W, 1] (0.299, 0.587, 0.114); a grey image is its own."""
    if x.shape[3] == 1:
        return x
    red, green, blue = (x[..., i : i + 1] for i in range(3))
    return red * np.float32(0.299) + green * np.float32(0.587) + blue * np.float32(0.114)
