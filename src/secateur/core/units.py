"""What can be cut, and where: units, sites, and which entries of a weight matrix stay."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import prod


class Unit(StrEnum):
    """The thing a method takes away."""

    WEIGHT = "weight"
    CHANNEL = "channel"
    HEAD = "head"
    EXPERT = "expert"
    LAYER = "layer"
    RANK = "rank"
    BIT = "bit"
    TOKEN = "token"
    SAMPLE = "sample"
    STEP = "step"
    FEATURE = "feature"
    VECTOR = "vector"


@dataclass(frozen=True)
class Site:
    """A place units can be cut from.

    Args:
        name: the module's name in the model, e.g. ``model.layers.0.mlp.up_proj``; one expert of a fused
            tensor carries its index, ``...experts.down_proj[3]``.
        shape: the units' layout; for a weight site always [out, in], however the model stores it.
        unit: what is cut here.
        price: what one unit costs in the budget's currency (parameters, unless a method says otherwise).
    """

    name: str
    shape: tuple[int, ...]
    unit: Unit = Unit.WEIGHT
    price: float = 1.0

    @property
    def size(self) -> int:
        """Number of units."""
        return prod(self.shape)
