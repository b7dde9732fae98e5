"""Filters over batches of images, in numpy alone: blur with a kernel, resize, zoom, sample between pixels.

Arrays are float32 [n, H, W, C]. Only additions and multiplications of whole slices are used: each is rounded once and
in one order, so an image's result does not depend on its batch, nor on the number of threads, to the last bit.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

Array = np.ndarray


def gaussian(x: Array, sigma: float, *, truncate: float = 4.0, mode: str = "edge") -> Array:
    """Gaussian blur over H and W; taps up to `truncate` sigmas, `mode` as in numpy.pad; sigma 0 changes nothing."""
    radius = int(truncate * sigma + 0.5) if sigma > 0 else 0
    if radius == 0:
        return x
    taps = gaussian_taps(sigma, radius)
    for axis in (1, 2):
        x = _slide(x, taps, axis, mode)
    return x


def gaussian_taps(sigma: float, radius: int) -> list[float]:
    """2 radius + 1 weights that sum to 1."""
    weights = [math.exp(-(i * i) / (2 * sigma * sigma)) for i in range(-radius, radius + 1)]
    return [w / math.fsum(weights) for w in weights]


def _slide(x: Array, taps: list[float], axis: int, mode: str) -> Array:
    radius, size = len(taps) // 2, x.shape[axis]
    padded = pad(x, radius if axis == 1 else 0, radius if axis == 2 else 0, mode)
    out = np.zeros_like(x)
    part = np.empty_like(x)
    for at, weight in enumerate(taps):
        window = padded[:, at : at + size] if axis == 1 else padded[:, :, at : at + size]
        np.multiply(window, np.float32(weight), out=part)
        out += part
    return out


def pad(x: Array, rows: int, columns: int, mode: str) -> Array:
    """Pad H and W at both ends: "edge" repeats the border, "symmetric" mirrors with it, "reflect" mirrors about it."""
    if not (rows or columns):
        return x
    return np.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)), mode=mode)  # type: ignore[call-overload]


def correlate(x: Array, kernel: Array, mode: str) -> Array:
    """Filter every channel with a kernel [2 a + 1, 2 b + 1], which is not turned."""
    a, b = kernel.shape[0] // 2, kernel.shape[1] // 2
    padded = pad(x, a, b, mode)
    height, width = x.shape[1:3]
    out = np.zeros_like(x)
    part = np.empty_like(x)
    for row, column in zip(*np.nonzero(kernel), strict=True):
        window = padded[:, row : row + height, column : column + width]
        np.multiply(window, x.dtype.type(kernel[row, column]), out=part)
        out += part
    return out


def motion(x: Array, radius: int, sigma: float, angles: list[float]) -> Array:
    """Blur each image along its own angle (degrees): a one-sided Gaussian of 2 radius + 1 taps, borders repeated.

    Tap i reads the pixel i steps away, rounded to whole pixels.
    """
    taps = gaussian_taps(sigma, 2 * radius)[2 * radius :]
    whole = math.fsum(taps)
    out = np.zeros_like(x)
    height, width = x.shape[1:3]
    for image, blurred, angle in zip(x, out, angles, strict=True):
        rise, run = math.sin(math.radians(angle)), math.cos(math.radians(angle))
        steps = [(-math.ceil(i * rise - 0.5), -math.ceil(i * run - 0.5)) for i in range(len(taps))]
        reach_y, reach_x = max(abs(dy) for dy, _ in steps), max(abs(dx) for _, dx in steps)
        padded = np.pad(image, ((reach_y, reach_y), (reach_x, reach_x), (0, 0)), mode="edge")
        for (dy, dx), weight in zip(steps, taps, strict=True):
            top, left = reach_y - dy, reach_x - dx
            blurred += padded[top : top + height, left : left + width] * np.float32(weight / whole)
    return out


# -- along one axis: out[i] = sum over k of weight[k, i] * x[index[k, i]] ---------------------------------------------


def along(x: Array, axis: int, index: Array, weight: Array) -> Array:
    """Weighted pixels of one axis. index, weight: [taps, size of the answer along the axis]."""
    if len(index) == 1 and (weight == 1).all():
        return np.take(x, index[0], axis=axis)
    shape = [1] * x.ndim
    shape[axis] = -1
    out: Array | None = None
    for places, weights in zip(index, weight.astype(np.float32), strict=True):
        part = np.take(x, places, axis=axis)
        part *= weights.reshape(shape)
        out = part if out is None else np.add(out, part, out=out)
    assert out is not None
    return out


@lru_cache(maxsize=512)
def zoom_taps(size: int, factor: float) -> tuple[Array, Array]:
    """The centre of `size` pixels, ceil(size / factor) of them, linearly stretched by `factor` and cut back to `size`.

    The first and the last pixel of the centre stay the first and last of what is stretched.
    """
    kept = math.ceil(size / factor)
    start = (size - kept) // 2
    stretched = round(kept * factor)
    begin = (stretched - size) // 2
    places = np.arange(begin, begin + size, dtype=np.float64)
    places *= (kept - 1) / max(stretched - 1, 1)
    low = np.clip(np.floor(places).astype(np.int64), 0, kept - 1)
    part = places - low
    return np.stack([low, np.minimum(low + 1, kept - 1)]) + start, np.stack([1 - part, part])


def zoom(x: Array, factor: float) -> Array:
    """The centre of each image enlarged by `factor` >= 1, at the size the image has."""
    if factor == 1:
        return x
    return along(along(x, 1, *zoom_taps(x.shape[1], factor)), 2, *zoom_taps(x.shape[2], factor))


@lru_cache(maxsize=512)
def linear_taps(size: int, wanted: int) -> tuple[Array, Array]:
    """Resize by plain interpolation between the two nearest pixels, also where it shrinks: nothing is averaged."""
    places = np.clip((np.arange(wanted) + 0.5) * size / wanted - 0.5, 0, size - 1)
    low = np.minimum(places.astype(np.int64), max(size - 2, 0))
    part = places - low
    return np.stack([low, np.minimum(low + 1, size - 1)]), np.stack([1 - part, part])


@lru_cache(maxsize=512)
def box_taps(size: int, wanted: int) -> tuple[Array, Array]:
    """Resize by a box filter: each new pixel is the plain mean of the old ones whose centre it covers."""
    scale = size / wanted
    support = max(scale, 1.0) / 2
    rows: list[list[int]] = []
    for i in range(wanted):
        centre = (i + 0.5) * scale
        low, high = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), size)
        # a border that falls on a pixel's centre is rounded to either side above
        covered = [at for at in range(low, high) if -support < at + 0.5 - centre <= support]
        rows.append(covered or [min(low, size - 1)])
    most = max(len(row) for row in rows)
    index = np.zeros((most, wanted), np.int64)
    weight = np.zeros((most, wanted))
    for i, row in enumerate(rows):
        index[: len(row), i], weight[: len(row), i] = row, 1 / len(row)
    return index, weight


# -- between pixels -------------------------------------------------------------------------------------------------


def sample(x: Array, rows: Array, columns: Array, mode: str) -> Array:
    """Bilinear values of each image at its own places.

    Args:
        x: [n, H, W, C]. rows, columns: float [n, H, W] in pixels. mode: "reflect" or "symmetric" beyond the border.
    """
    n, height, width, channels = x.shape
    y, x_ = np.floor(rows), np.floor(columns)
    down, right = (rows - y)[..., None].astype(np.float32), (columns - x_)[..., None].astype(np.float32)
    top, bottom = (_fold(y.astype(np.int64) + i, height, mode) * width for i in (0, 1))
    left, beyond = (_fold(x_.astype(np.int64) + i, width, mode) for i in (0, 1))
    base = (np.arange(n, dtype=np.int64) * height * width)[:, None, None]
    flat = x.reshape(n * height * width, channels)
    upper = flat[top + left + base] * (1 - right) + flat[top + beyond + base] * right
    lower = flat[bottom + left + base] * (1 - right) + flat[bottom + beyond + base] * right
    return upper * (1 - down) + lower * down


def _fold(index: Array, size: int, mode: str) -> Array:
    """Indices of any size folded into [0, size) as numpy.pad's mode of that name would."""
    if size == 1:
        return np.zeros_like(index)
    period = 2 * size - 2 if mode == "reflect" else 2 * size
    index = index % period
    mirror = period - index if mode == "reflect" else period - 1 - index
    return np.where(index < size, index, mirror)
