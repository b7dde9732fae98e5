"""Slow and plainly right renderings that the tests compare with: python loops, float64, explicit inverses."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from secateur.core.select import NM, Blocks, PerColumn, PerRow


def floor_count(n: int, sparsity: float) -> int:
    """How many of n units are cut, as design.md words it."""
    return math.floor(n * sparsity + 1e-9)


def slow_group(values: list[float], cut: int) -> list[bool]:
    """Keep flags after a stable ascending sort whose first `cut` are cut."""
    order = sorted(range(len(values)), key=lambda i: values[i])  # python's sort is stable
    gone = set(order[:cut])
    return [i not in gone for i in range(len(values))]


def slow_select(score: Tensor, pattern: Any, sparsity: float) -> Tensor:
    """Mask [out, in] of a pattern by python loops over its groups."""
    out, width = score.shape
    keep = torch.ones(out, width, dtype=torch.bool)
    if isinstance(pattern, NM):
        cells = [
            [(r, c + k) for k in range(pattern.m)] for r in range(out) for c in range(0, width, pattern.m)
        ]
    elif isinstance(pattern, PerRow):
        cells = [[(r, c) for c in range(width)] for r in range(out)]
    elif isinstance(pattern, PerColumn):
        cells = [[(r, c) for r in range(out)] for c in range(width)]
    elif isinstance(pattern, Blocks):
        return _slow_tiles(score, pattern, sparsity)
    else:
        cells = [[(r, c) for r in range(out) for c in range(width)]]
    for group in cells:
        cut = pattern.m - pattern.n if isinstance(pattern, NM) else floor_count(len(group), sparsity)
        for (r, c), flag in zip(group, slow_group([float(score[r, c]) for r, c in group], cut), strict=True):
            keep[r, c] = flag
    return keep


def _slow_tiles(score: Tensor, pattern: Blocks, sparsity: float) -> Tensor:
    out, width = score.shape
    corners = [(r, c) for r in range(0, out, pattern.rows) for c in range(0, width, pattern.columns)]
    tiles = [score[r : r + pattern.rows, c : c + pattern.columns] for r, c in corners]
    means = [float(tile.float().mean()) for tile in tiles]
    keep = torch.ones(out, width, dtype=torch.bool)
    flags = slow_group(means, floor_count(len(means), sparsity))
    for (r, c), flag in zip(corners, flags, strict=True):
        keep[r : r + pattern.rows, c : c + pattern.columns] = flag
    return keep


def hessian(x: Tensor, samples: int, damping: float) -> Tensor:
    """(2 / samples) X^T X, dead inputs set to 1, damped by a fraction of the mean diagonal: sheet l-obs, B1 and B2."""
    h = x.double().t() @ x.double() * (2 / samples)
    dead = h.diagonal() == 0
    h[dead, dead] = 1.0
    return h + damping * float(h.diagonal().mean()) * torch.eye(len(h), dtype=torch.float64)


def slow_sparsegpt(
    weight: Tensor, x: Tensor, samples: int, pattern: Any, sparsity: float, blocksize: int, damping: float
) -> tuple[Tensor, Tensor, float]:
    """Sheet l-obs, B4, without Cholesky: the inverse Hessian of the columns left is computed anew for every column.

    Returns:
        keep, the new weights, and sum(err^2), all float64.
    """
    h, w = hessian(x, samples, damping), weight.double().clone()
    out, width = w.shape
    w[:, (x == 0).all(0)] = 0
    inverses = [torch.linalg.inv(h[i:, i:]) for i in range(width)]  # [i][0, 0] is R_ii^2
    keep, loss = torch.ones(out, width, dtype=torch.bool), 0.0
    for a in range(0, width, blocksize):
        b = min(a + blocksize, width)
        if not isinstance(pattern, NM):
            score = torch.stack([w[:, j] ** 2 / inverses[j][0, 0] for j in range(a, b)], 1)
            group = 1 if isinstance(pattern, PerRow) else out
            due = floor_count(group * b, sparsity) - floor_count(group * a, sparsity)
            rows = score.tolist() if isinstance(pattern, PerRow) else [score.reshape(-1).tolist()]
            keep[:, a:b] = torch.tensor([slow_group(row, due) for row in rows]).reshape(out, b - a)
        for i in range(a, b):
            if isinstance(pattern, NM) and i % pattern.m == 0:
                span = range(i, i + pattern.m)
                score = torch.stack([w[:, j] ** 2 / inverses[j][0, 0] for j in span], 1)
                keep[:, i : i + pattern.m] = slow_select(score, pattern, 0.0)
            err = torch.where(keep[:, i], 0.0, w[:, i])
            w[:, i:] -= err[:, None] * inverses[i][0] / inverses[i][0, 0]
            loss += float((err**2).sum() / inverses[i][0, 0])
            w[~keep[:, i], i] = 0
    return keep, torch.where(keep, w, 0.0), loss


def slow_l_obs(
    weight: Tensor, x: Tensor, bias: Tensor | None, pattern: Any, sparsity: float, damping: float
) -> tuple[Tensor, Tensor]:
    """Sheet l-obs, A: one ranking, single cuts in its order over the whole layer, G frozen, masked at the end."""
    y = x.double() if bias is None else torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], 1)
    g = torch.linalg.inv(y.t() @ y / len(x) + damping * torch.eye(y.shape[1], dtype=torch.float64))
    theta = weight.double() if bias is None else torch.cat([weight.double(), bias.double()[:, None]], 1)
    theta = theta.clone()
    width = weight.shape[1]
    score = theta[:, :width] ** 2 / (2 * g.diagonal()[:width])
    keep = slow_select(score.float(), pattern, sparsity)
    cuts = sorted((float(score[r, c]), r, c) for r, c in torch.nonzero(~keep).tolist())
    for _, r, c in cuts:
        theta[r] -= theta[r, c] / g[c, c] * g[c]
    theta[:, :width][~keep] = 0
    return keep, theta[:, :width]


def measured(kind: type, x: Tensor, samples: int = 1, parts: int = 1) -> Any:
    """The signal `kind` after seeing x [tokens, in] in `parts` pieces, as `samples` sequences."""
    signal = kind(x.shape[1])
    for piece in x.tensor_split(parts):
        signal.add(kind.measure(piece), len(piece))
    signal.samples = samples
    return signal


def inputs(tokens: int, width: int, seed: int = 0, outliers: float = 1.0) -> Tensor:
    """Correlated activations [tokens, width], a few features stronger."""
    stream = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=stream) / width**0.5 + torch.eye(width)
    scale = torch.ones(width)
    scale[:: max(1, width // 4)] = outliers
    return torch.randn(tokens, width, generator=stream) @ mix * scale


def weights(out: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(out, width, generator=torch.Generator().manual_seed(1000 + seed))
