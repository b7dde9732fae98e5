"""The spatter corruption: drops of water or mud.

The edges, the distance to them and the equalised histogram of the water are our own rendering of the published steps,
which were made with OpenCV: its Canny, an exact instead of a 5 x 5 chamfer distance. Results are labelled "secateur
rendering".
"""

from __future__ import annotations

import numpy as np

from secateur.robustness import filters
from secateur.robustness.draws import Draws
from secateur.robustness.severities import Numbers
from secateur.robustness.weather import gray

Array = np.ndarray

WATER = np.array([175, 238, 238], np.float32) / np.float32(255)
MUD = np.array([63, 42, 20], np.float32) / np.float32(255)
_FAR = 20  # distances beyond count as this
_EMBOSS = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], np.float32)
_BOX = np.full((3, 3), 1 / 9)


def spatter(x: Array, draws: Draws, c: Numbers) -> Array:
    """Where a smoothed noise map passes a threshold there is liquid; a grey image takes the luma of its colour.

    Args:
        x: float32 [n, H, W, C] in [0, 1].
        c: mean and deviation of the noise, sigma of its blur, threshold, weight (of mud: sigma of its blur), 1 for mud.
    """
    mean, deviation, sigma, threshold, weight, mud = c
    liquid = draws.normal(*x.shape[1:3], 1) * np.float32(deviation) + np.float32(mean)
    liquid = filters.gaussian(liquid, sigma)
    colour = (MUD if mud else WATER)[None, None, None, :]
    colour = colour if x.shape[3] == 3 else gray(colour)
    if mud:
        covered = filters.gaussian((liquid > threshold).astype(np.float32), weight)
        covered[covered < 0.8] = 0
        return x * (1 - covered) + covered * colour
    liquid[liquid < threshold] = 0
    film = np.floor(np.clip(liquid, 0, 1) * np.float32(255) + np.float32(1e-3))
    film = film * relief(film)
    thickest = film.max(axis=(1, 2), keepdims=True)
    film = np.divide(film, thickest, out=np.zeros_like(film), where=thickest > 0)
    return x + np.clip(film * np.float32(weight) * colour, 0, 1)


def relief(film: Array) -> Array:
    """How the light falls on a film of water: whole numbers 0 to 255, [n, H, W, 1] as the film."""
    far = distance(edges(film[..., 0], 50, 150))[..., None]
    height = np.floor(filters.correlate(far, _BOX, "reflect") + np.float32(1e-3)).astype(np.uint8)
    light = filters.correlate(equalised(height).astype(np.float32), _EMBOSS, "reflect")
    return np.rint(filters.correlate(np.clip(light, 0, 255), _BOX, "reflect"))


def edges(image: Array, low: float, high: float) -> Array:
    """Canny's edges, bool [n, H, W], of images [n, H, W]: ridges of the Sobel gradient (|gx| + |gy|) above `low` that
    touch, through other such points, one above `high`."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    columns = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    gx, gy = rows[:, :, 2:] - rows[:, :, :-2], columns[:, 2:] - columns[:, :-2]
    size = np.abs(gx) + np.abs(gy)
    ring = np.pad(size, ((0, 0), (1, 1), (1, 1)))

    def at(dy: int, dx: int) -> Array:
        return ring[:, 1 + dy : ring.shape[1] - 1 + dy, 1 + dx : ring.shape[2] - 1 + dx]

    flat, steep = np.float32(0.41421356), np.float32(2.41421356)  # tan of 22.5 and 67.5 degrees
    level = np.abs(gy) < flat * np.abs(gx)
    upright = np.abs(gy) > steep * np.abs(gx)
    falling = (gx < 0) == (gy < 0)
    along = np.where(
        falling, (size > at(-1, -1)) & (size > at(1, 1)), (size > at(-1, 1)) & (size > at(1, -1))
    )
    along = np.where(upright, (size > at(-1, 0)) & (size >= at(1, 0)), along)
    along = np.where(level, (size > at(0, -1)) & (size >= at(0, 1)), along)
    weak = along & (size > low)
    found = along & (size > high)
    while True:
        grown = _spread(_spread(found, 1), 2) & weak
        if np.array_equal(grown, found):
            return found
        found = grown


def _spread(found: Array, axis: int) -> Array:
    """Also true beside what is true, along one axis."""
    out = found.copy()
    if axis == 1:
        out[:, 1:] |= found[:, :-1]
        out[:, :-1] |= found[:, 1:]
    else:
        out[:, :, 1:] |= found[:, :, :-1]
        out[:, :, :-1] |= found[:, :, 1:]
    return out


def distance(found: Array, far: int = _FAR) -> Array:
    """Euclidean distance of every pixel to the nearest true one of its image, at most `far`: float32 [n, H, W]."""
    height, width = found.shape[1:]
    # Down one column first, by two sweeps; then the nearest over the columns beside it.
    column = np.where(found, 0, far).astype(np.int32)
    for y in range(1, height):
        np.minimum(column[:, y], column[:, y - 1] + 1, out=column[:, y])
    for y in range(height - 2, -1, -1):
        np.minimum(column[:, y], column[:, y + 1] + 1, out=column[:, y])
    square = column * column
    nearest = square.copy()
    for dx in range(1, min(far, width)):
        beside = square + dx * dx
        np.minimum(nearest[:, :, dx:], beside[:, :, :-dx], out=nearest[:, :, dx:])
        np.minimum(nearest[:, :, :-dx], beside[:, :, dx:], out=nearest[:, :, :-dx])
    return np.sqrt(np.minimum(nearest, far * far).astype(np.float32))


def equalised(image: Array) -> Array:
    """Each uint8 image [n, H, W, 1] with its values spread so that their shares grow evenly from 0 to 255.

    The lowest value present becomes 0; an image of one value stays as it is.
    """
    n = len(image)
    flat = image.reshape(n, -1)
    counts = np.bincount((flat + np.arange(n)[:, None] * 256).reshape(-1), minlength=256 * n).reshape(n, 256)
    first = counts[np.arange(n), flat.min(axis=1)][:, None]
    rest = flat.shape[1] - first
    table = np.rint((counts.cumsum(1) - first) * (255 / np.maximum(rest, 1))).clip(0, 255).astype(np.uint8)
    table = np.where(rest > 0, table, np.arange(256, dtype=np.uint8))
    return np.take_along_axis(table, flat.astype(np.int64), axis=1).reshape(image.shape)
