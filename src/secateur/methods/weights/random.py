"""random: the floor every method must beat: which weights stay is drawn, not measured.

    score[i, j] ~ Uniform(0, 1)         one stream a site, from the seed and the site's name

Shapes:  W [out, in]; score [out, in].                  Unit: weight.   Needs: nothing.
Departs: exact counts instead of a coin a weight (sheet random-pruning, "Draw": reproducible budgets).
Oracle:  any count and pattern is met exactly; two seeds agree on about density^2 + sparsity^2 of the positions.
Paper:   The Unreasonable Effectiveness of Random Pruning (2022), section 3; here on a trained network, once.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.core.method import Card, OneShot
from secateur.core.units import Site, Unit
from secateur.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Random(OneShot):
    """Random pruning.

    Args:
        seed: the draw; the same seed cuts the same weights on any machine with the same torch.
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.seed < 1 << 31:
            raise BadInput(f"{self.seed} is not in [0, 2^31)", where="seed")

    card = Card(
        paper="The Unreasonable Effectiveness of Random Pruning (2022)",
        unit=Unit.WEIGHT,
        when="after",
        criterion="none",
    )
    claims = ("nested", "scale")  # drawn by position

    def score(self, weight: Tensor, signal: None, site: Site) -> Tensor:
        # torch's CPU generator takes 32 bits of its seed, so seed and name must both reach them.
        stream = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{site.name}".encode()))
        return torch.rand(weight.shape, generator=stream).to(weight.device)
