"""knee: where a quality-sparsity curve stops being flat (essential sparsity), by three rules.

    drop(p) = (quality(0) - quality(p)) / |quality(0)|
    drop    the largest p before the first grid point whose drop is above the tolerance (1%)
    chord   the p farthest above the straight line from the first point to the last
    slope   the first p after which one step falls more than k = 3 times the median step so far

Curves: sparsities strictly rising, quality of the same length, higher = better (give higher_is_better=False for a
        loss). Give mean loss, not perplexity: perplexity's last point drowns every other one.
None:   there is no knee: the first step already falls too far, or the curve is a straight line.
Noise:  chord wants a gap of more than the tolerance, slope a step of more than twice the tolerance, so noise of half
        the tolerance is never a knee.
Departs: the paper reads the turning point off the plot; the rules are this project's (sheet essential-sparsity, 3).
Paper:  The Emergence of Essential Sparsity in Large Pre-trained Models (2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from secateur.errors import BadInput, NoMatch, nearest

RULES = ("drop", "chord", "slope")


def knee(
    sparsities: Sequence[float],
    quality: Sequence[float],
    rule: str = "chord",
    *,
    tolerance: float = 0.01,
    k: float = 3.0,
    higher_is_better: bool = True,
) -> float | None:
    """The knee by one of RULES, as one of `sparsities`, or None.

    Raises:
        NoMatch: unknown rule.   BadInput: fewer than 3 points, sparsities that do not rise, values that are not finite.
    """
    if rule == "drop":
        return drop_knee(sparsities, quality, tolerance=tolerance, higher_is_better=higher_is_better)
    if rule == "chord":
        return chord_knee(sparsities, quality, tolerance=tolerance, higher_is_better=higher_is_better)
    if rule == "slope":
        return slope_knee(sparsities, quality, k=k, tolerance=tolerance, higher_is_better=higher_is_better)
    raise NoMatch(f"unknown rule {rule!r}", where="knee", fix=nearest(rule, RULES))


def drop_knee(
    sparsities: Sequence[float],
    quality: Sequence[float],
    *,
    tolerance: float = 0.01,
    higher_is_better: bool = True,
) -> float | None:
    """The last point before the drop first exceeds `tolerance`; the last of all when it never does."""
    drops = _drops(sparsities, quality, higher_is_better)
    flat = 0
    for i, drop in enumerate(drops):
        if drop > tolerance + 1e-12:
            break
        flat = i
    return sparsities[flat] if flat else None


def chord_knee(
    sparsities: Sequence[float],
    quality: Sequence[float],
    *,
    tolerance: float = 0.01,
    higher_is_better: bool = True,
) -> float | None:
    """The point farthest above the chord from the first point to the last."""
    drops = _drops(sparsities, quality, higher_is_better)
    span = sparsities[-1] - sparsities[0]
    gaps = [drops[-1] * (p - sparsities[0]) / span - d for p, d in zip(sparsities, drops, strict=True)]
    best = max(range(len(gaps)), key=lambda i: (gaps[i], -i))
    return sparsities[best] if gaps[best] > tolerance else None


def slope_knee(
    sparsities: Sequence[float],
    quality: Sequence[float],
    *,
    k: float = 3.0,
    tolerance: float = 0.01,
    higher_is_better: bool = True,
) -> float | None:
    """The point before the first step that is more than `k` times as steep as the median step so far."""
    drops = _drops(sparsities, quality, higher_is_better)
    slopes: list[float] = []
    for i in range(len(drops) - 1):
        step = drops[i + 1] - drops[i]
        slope = step / (sparsities[i + 1] - sparsities[i])
        if slopes and step > 2 * tolerance and slope > k * max(median(slopes), 0.0):
            return sparsities[i]
        slopes.append(slope)
    return None


def _drops(sparsities: Sequence[float], quality: Sequence[float], higher_is_better: bool) -> list[float]:
    """Relative drop of each point against the first; positive = worse."""
    if len(sparsities) != len(quality) or len(quality) < 3:
        raise BadInput(
            f"{len(sparsities)} sparsities and {len(quality)} values",
            where="knee",
            fix="give at least 3 pairs",
        )
    if not all(map(math.isfinite, [*sparsities, *quality])):
        raise BadInput("a value is not finite", where="knee", fix="leave out the points that failed")
    if any(b <= a for a, b in pairwise(sparsities)):
        raise BadInput("sparsities do not rise", where="knee", fix="sort the points, one for each sparsity")
    if quality[0] == 0:
        raise BadInput(
            "the first value is 0: a relative drop has no meaning", where="knee", fix="use another metric"
        )
    sign = 1.0 if higher_is_better else -1.0
    return [sign * (quality[0] - q) / abs(quality[0]) for q in quality]
