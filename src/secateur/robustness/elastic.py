"""The elastic corruption: a small random affine map, then a smooth random displacement of every pixel."""

from __future__ import annotations

import numpy as np

from secateur.robustness import filters
from secateur.robustness.draws import Draws
from secateur.robustness.severities import Numbers

Array = np.ndarray


def elastic_transform(x: Array, draws: Draws, c: Numbers) -> Array:
    """Affine map by three moved points, then displacement. c: alpha, sigma, affine, all in pixels.

    Args:
        x: float32 [n, H, W, C] in [0, 1].   c[0]: size of the displacement, whose field is a Gaussian (sigma c[1], cut
            at 3 sigmas) of U(-1, 1) noise.   c[2]: the three points move by U(-affine, affine) a coordinate.
    """
    alpha, sigma, affine = c
    height, width = x.shape[1:3]
    grid_y, grid_x = (g.astype(np.float64) for g in np.mgrid[:height, :width])
    maps = inverse_maps(draws, height, width, affine)[:, :, :, None, None]
    columns = maps[:, 0, 0] * grid_x + maps[:, 0, 1] * grid_y + maps[:, 0, 2]
    rows = maps[:, 1, 0] * grid_x + maps[:, 1, 1] * grid_y + maps[:, 1, 2]
    x = filters.sample(x, rows, columns, "reflect")
    if alpha == 0:
        return x
    field = draws.uniform(height, width, 2) * np.float32(2) - np.float32(1)
    field = filters.gaussian(field, sigma, truncate=3, mode="symmetric") * np.float32(alpha)
    return filters.sample(x, grid_y + field[..., 0], grid_x + field[..., 1], "symmetric")


def inverse_maps(draws: Draws, height: int, width: int, affine: float) -> Array:
    """Where each pixel of the answer comes from: [n, 2, 3], rows (x, y), of pixel (x, y, 1).

    The map forth carries three corners of a square about the centre to themselves plus U(-affine, affine). Moves so
    large that the square turns over or nearly collapses (possible only where the table does not suit the size) are
    halved until it does not.
    """
    centre, side = np.array([width // 2, height // 2], np.float64), max(min(height, width) // 3, 1)
    corners = centre + side * np.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]])
    moves = (draws.uniform(3, 2).astype(np.float64) * 2 - 1) * affine
    out = np.empty((len(draws), 2, 3))
    for inverse, move in zip(out, moves, strict=True):
        while True:
            moved = corners + move
            (ax, ay), (bx, by) = moved[0] - moved[1], moved[2] - moved[1]
            turned = ax * by - ay * bx
            if turned <= -side * side / 25:  # untouched: -4 side^2
                break
            move = move / 2
        # Columns of the map forth are (moved[0] - moved[1]) / 2 side along x and (moved[1] - moved[2]) / 2 side along
        # y.
        forth = np.array([[ax, -bx], [ay, -by]]) / (2 * side)
        (p, q), (r, s) = forth
        scale = p * s - q * r
        back = np.array([[s, -q], [-r, p]]) / scale
        inverse[:, :2] = back
        inverse[0, 2] = corners[1, 0] - (back[0, 0] * moved[1, 0] + back[0, 1] * moved[1, 1])
        inverse[1, 2] = corners[1, 1] - (back[1, 0] * moved[1, 0] + back[1, 1] * moved[1, 1])
    return out
