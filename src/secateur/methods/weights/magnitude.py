"""magnitude: cut the smallest weights. The yardstick of every table.

    score[i, j] = |W[i, j]|            compared over the layer, the whole model (allocate=global) or a row

Shapes:  W [out, in]; score [out, in].                  Unit: weight.   Needs: nothing.
Departs: exact counts; the reference's inclusive threshold cuts one weight more, and all ties (sheet wanda, step 5).
Oracle:  sorting |W| once.
Paper:   Learning both Weights and Connections for Efficient Neural Networks (2015), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from secateur.core.method import Card, OneShot
from secateur.core.select import Pattern, PerLayer
from secateur.core.units import Site, Unit


@dataclass(frozen=True, kw_only=True)
class Magnitude(OneShot):
    """Magnitude pruning: per layer as the papers' baseline, per row, or over the whole model (allocate=global)."""

    pattern: str | Pattern = PerLayer()

    card = Card(
        paper="Learning both Weights and Connections for Efficient Neural Networks (2015)",
        unit=Unit.WEIGHT,
        when="after",
        criterion="|w|",
    )

    def score(self, weight: Tensor, signal: None, site: Site) -> Tensor:
        return weight.abs().float()
