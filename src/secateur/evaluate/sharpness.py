"""Sharpness of a trained network: what its loss rises by when its weights move in proportion to their size.

    average    E L(w + d) - L(w),  d ~ N(0, rho^2 diag(w^2))
    worst      max over |d| <= rho |w| of L(w + d) - L(w), by sign ascent

Only moves relative to |w| count, so a network whose layers are scaled against each other has the same sharpness. The
figures depend on images, scale of the logits and draws: compare them within one setting. Flat does not mean good.
Departs: the draws of the average come in pairs d, -d: the same expectation, without the noise of the linear term.
Source: sheet clip-straggler, step 5; the definitions are common to the literature on adaptive sharpness.
"""

from __future__ import annotations

import math
import statistics
import zlib
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.errors import BadInput

Parts = Callable[[], Iterator[Tensor]]  # a loss, in parts that add up to it


def parts_of(
    model: nn.Module, images: Tensor, labels: Tensor, batch: int = 256, normalise: bool = True
) -> Parts:
    """Mean cross-entropy of the model as it stands when called, a batch at a time, with gradients.

    Args:
        images: float [N, C, H, W], on any device.   labels: int64 [N].
        normalise: bring the logits of an image to mean 0 and deviation 1 over the classes first.
    """

    def parts() -> Iterator[Tensor]:
        device = next(model.parameters()).device
        for i in range(0, len(images), batch):
            out = model(images[i : i + batch].to(device))
            out = getattr(out, "logits", out).double()
            if normalise:
                centred = out - out.mean(1, keepdim=True)
                out = centred / centred.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12)
            yield F.cross_entropy(out, labels[i : i + batch].to(device), reduction="sum") / len(images)

    return parts


@torch.no_grad()
def average_sharpness(
    loss: Parts, weights: Mapping[str, Tensor], rho: float, draws: int = 20, seed: int = 0, ball: bool = False
) -> tuple[float, float]:
    """(E L(w + d) - L(w), its standard error) for d = rho |w| z, z standard normal; the weights are put back.

    A weight's z depends on seed, draw, name and place alone: a layer alone moves as it does among all.

    Args:
        ball: clip z to [-1, 1], so that no d leaves the ball of `worst_sharpness`.
    """
    before, start, found = (
        {n: w.clone() for n, w in weights.items()},
        _finite(math.fsum(map(float, loss()))),
        [],
    )
    try:
        for draw in range(draws // 2):
            noise = {}
            for name, w in before.items():
                random = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{draw}/{name}".encode()))
                z = torch.randn(w.shape, generator=random).to(w)
                noise[name] = rho * w.abs() * (z.clamp(-1, 1) if ball else z)
            pair = []
            for sign in (1, -1):
                for name, w in weights.items():
                    w.copy_(before[name] + sign * noise[name])
                pair.append(_finite(math.fsum(map(float, loss()))) - start)
            found.append(sum(pair) / 2)
    finally:
        for name, w in weights.items():
            w.copy_(before[name])
    error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else math.nan
    return statistics.fmean(found), error


def worst_sharpness(loss: Parts, weights: Mapping[str, Tensor], rho: float, steps: int = 20) -> float:
    """Largest L(w + d) - L(w) met on a sign ascent in |d| <= rho |w|, >= 0; the weights are put back.

    The first step goes to the corner the gradient points to; the rate falls linearly from 2 rho.
    """
    if not weights:
        return 0.0
    moved = list(weights.values())
    before = [w.detach().clone() for w in moved]
    place = [torch.zeros_like(w) for w in before]
    values = []
    try:
        for step in range(steps + 1):
            with torch.enable_grad():
                total, slopes = 0.0, [torch.zeros_like(w) for w in before]
                for part in loss():
                    total += float(part.detach())
                    found = torch.autograd.grad(part, moved, allow_unused=True)
                    slopes = [s if g is None else s + g for s, g in zip(slopes, found, strict=True)]
            values.append(_finite(total))
            rate = 2 * rho * (1 - step / steps)
            place = [(u + rate * s.sign()).clamp(-rho, rho) for u, s in zip(place, slopes, strict=True)]
            with torch.no_grad():
                for w, old, u in zip(moved, before, place, strict=True):
                    w.copy_(old + old.abs() * u)
    finally:
        with torch.no_grad():
            for w, old in zip(moved, before, strict=True):
                w.copy_(old)
    return max(values) - values[0]


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise BadInput(f"a loss is {value}", where="sharpness", fix="lower rho, or check the weights")
    return value
