"""essential_sparsity: one ranking of |w| over the whole pretrained model; `secateur sweep` finds how much is free.

    score[i, j] = |W[i, j]|            ranked over all sites together, each point cut from the dense weights

Shapes:  W [out, in]; score [out, in].                  Unit: weight.   Needs: nothing.
Departs: floor instead of round in the count, like every method here. The knee of the quality-sparsity curve is found
         by three stated rules (evaluate/knee.py), since the paper shows it in plots; no fine-tuning between.
Oracle:  sorting all |w| once; masks of rising sparsity are nested.
Paper:   The Emergence of Essential Sparsity in Large Pre-trained Models: The Weights that Matter (2023), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from secateur.core.method import Card, OneShot
from secateur.core.select import NM, Pattern, PerLayer, parse_pattern
from secateur.core.units import Site, Unit


@dataclass(frozen=True, kw_only=True)
class EssentialSparsity(OneShot):
    """Global one-shot magnitude pruning; an N:M pattern ranks inside its groups instead (the paper's N:M variant)."""

    pattern: str | Pattern = PerLayer()
    allocate: str = "global"

    card = Card(
        paper="The Emergence of Essential Sparsity in Large Pre-trained Models (2023)",
        unit=Unit.WEIGHT,
        when="after",
        criterion="|w|",
    )

    def __post_init__(self) -> None:
        if isinstance(parse_pattern(self.pattern), NM) and self.allocate == "global":
            object.__setattr__(self, "allocate", "uniform")
        super().__post_init__()

    def score(self, weight: Tensor, signal: None, site: Site) -> Tensor:
        return weight.abs().float()
