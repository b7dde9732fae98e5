"""Axes: round numbers to mark, values to px, labels that do not overlap. Pure arithmetic, no drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence

_GAP = 15.0  # least distance between two direct labels, in px


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten) inside [low, high].

    >>> ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if not low < high:
        return [low]
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(index * step, digits) + 0.0 for index in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Powers of ten inside [low, high], with 2 and 5 times them (or 3 times) where few decades are spanned."""
    if not 0 < low < high:
        return [low]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0**d for d in decades for m in steps if low * 0.999 <= m * 10.0**d <= high * 1.001]
        if len(found) <= count + 1:
            break
    else:
        found = found[:: math.ceil(len(found) / count)]
    return [float(f"{value:.12g}") for value in found] if len(found) > 1 else ticks(low, high, count)


def spans_decade(values: Sequence[float]) -> bool:
    """Whether positive values span more than a factor of ten, so that a log axis reads better."""
    return bool(values) and min(values) > 0 and max(values) > 10 * min(values)


class Scale:
    """From values to px along one axis, linear or logarithmic, with 4% of room at both ends."""

    def __init__(
        self, values: Sequence[float], start: float, end: float, log: bool, room: float = 0.04
    ) -> None:
        self.log = log and min(values) > 0
        low, high = self._to(min(values)), self._to(max(values))
        pad = (high - low) * room or abs(high) * 0.1 or 0.5
        self.low, self.high, self.start, self.end = low - pad, high + pad, start, end

    def _to(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def __call__(self, value: float) -> float:
        """The place of a value, in px."""
        return self.start + (self._to(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About `count` round values inside the axis."""
        if self.log:
            return log_ticks(10**self.low, 10**self.high, count)
        return ticks(self.low, self.high, count)


def spread_out(wanted: list[float], low: float, high: float) -> list[float]:
    """The nearest positions to the wanted ones, `_GAP` apart and inside [low, high] where they fit."""
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    placed = list(wanted)
    for before, index in zip([None, *order], order, strict=False):
        placed[index] = max(placed[index], low if before is None else placed[before] + _GAP)
    for after, index in zip([None, *reversed(order)], reversed(order), strict=False):
        placed[index] = min(placed[index], high if after is None else placed[after] - _GAP)
    return placed
