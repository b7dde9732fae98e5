"""One ranking over the layers of a network, a layer in hand at a time.

The same answer as `keep_top` over all scores in one row, without that row: one long tensor is new memory at every
event, and the first touch of its pages takes longer than the ranking. A sample of all layers brackets the threshold;
the entries inside the bracket, a few per cent, are the only ones that are brought together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.core.select import picked

_SAMPLE = 1 << 13  # entries looked at to bracket the threshold


def keep_top_of_all(scores: Mapping[str, Tensor], cut: int, among: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep all but the `cut` lowest of the entries that compete, whatever layer they are in.

    Args:
        scores: finite, by layer.   among: bool, in their shapes: which compete.
        cut: 0 <= cut <= how many compete.

    Returns:
        bool masks in their shapes; of equal scores the lowest index of the first layer is cut first.
    """
    flat = {name: (score.view(-1), among[name].view(-1)) for name, score in scores.items()}
    active = {name: int(torch.count_nonzero(mask)) for name, (_, mask) in flat.items()}
    competing = sum(active.values())
    left = competing - cut
    if cut <= 0:
        return {name: mask.clone() for name, mask in among.items()}
    if left <= 0:
        return {name: torch.zeros_like(mask) for name, mask in among.items()}
    low, high = _bracket(flat, competing, cut)
    threshold = _within(flat, active, cut, low, high)
    if threshold is None:
        threshold = _within(flat, active, cut, -math.inf, math.inf)
    assert threshold is not None
    kept = {name: (score > threshold) & mask for name, (score, mask) in flat.items()}
    ties = left - sum(int(torch.count_nonzero(mask)) for mask in kept.values())
    for name in reversed(flat):  # of the entries at the threshold the last ones stay
        if ties <= 0:
            break
        score, mask = flat[name]
        tied = torch.nonzero((score == threshold) & mask).view(-1)[-ties:]
        kept[name][tied] = True
        ties -= len(tied)
    return {name: mask.view_as(among[name]) for name, mask in kept.items()}


Flat = Mapping[str, tuple[Tensor, Tensor]]


def _bracket(flat: Flat, competing: int, cut: int) -> tuple[float, float]:
    """Two scores between which the `cut`-th lowest of those that compete almost surely lies."""
    stride = max(1, sum(len(score) for score, _ in flat.values()) // _SAMPLE)
    parts = [score[::stride][mask[::stride]] for score, mask in flat.values()]
    sample = torch.cat(parts)
    at, spread = cut * len(sample) // competing, len(sample) // 50 + 1
    low = float(sample.kthvalue(at - spread).values) if at - spread >= 1 else -math.inf
    high = float(sample.kthvalue(at + spread).values) if at + spread <= len(sample) else math.inf
    return low, high


def _within(flat: Flat, active: Mapping[str, int], cut: int, low: float, high: float) -> float | None:
    """The `cut`-th lowest score if it lies in [low, high]."""
    below, inside = 0, []
    for name, (score, mask) in flat.items():
        reached = (score >= low) & mask
        below += active[name] - int(torch.count_nonzero(reached))
        inside.append(picked(score, reached & (score <= high)))
    middle = torch.cat(inside)
    if not below < cut <= below + len(middle):
        return None
    return float(middle.kthvalue(cut - below).values)
