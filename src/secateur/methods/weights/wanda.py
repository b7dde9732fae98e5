"""wanda: keep the weights that matter to the layer's output.

    score[i, j] = |W[i, j]| * ||X[:, j]||_2              compared inside each output row i

Shapes:  W [out, in]; X [tokens, in]; score [out, in].  Unit: weight.   Needs: input norms, one pass.
Variant: `share` cuts, in each row, the lowest scores that together hold a share alpha of the row's total; one alpha a
         matrix, bisected until the matrix has the wanted sparsity (paper, appendix; sheet wanda, step 4).
Departs: the variant cuts by position in the sorted row, so equal scores are not all cut together; its bracket opens
         to 1 for the sparsities that the reference's 0.8 cannot reach.
Oracle:  equal input norms -> magnitude per row; scaling an input by c and its column by 1/c changes nothing.
Paper:   A Simple and Effective Pruning Approach for Large Language Models (2023), eq. 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.core.method import Card, OneShot
from secateur.core.select import PerRow
from secateur.core.units import Site, Unit
from secateur.errors import BadInput
from secateur.signals.norms import InputNorms


@dataclass(frozen=True, kw_only=True)
class Wanda(OneShot):
    """Wanda.

    Args:
        share: cut by share of the row's total score instead of by count; rows then keep different numbers.
    """

    share: bool = False

    card = Card(
        paper="A Simple and Effective Pruning Approach for Large Language Models (2023)",
        unit=Unit.WEIGHT,
        when="after",
        criterion="|w| * ||x||",
    )
    needs = InputNorms

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share and not isinstance(self.pattern, PerRow):
            raise BadInput(
                f"share works on rows, not on {self.pattern}", where="share", fix="leave --pattern out"
            )

    def score(self, weight: Tensor, signal: InputNorms, site: Site) -> Tensor:
        return weight.abs().float() * signal.norm

    def select(self, score: Tensor, sparsity: float) -> Tensor:
        return keep_by_share(score, sparsity) if self.share else super().select(score, sparsity)


def keep_by_share(score: Tensor, sparsity: float, tolerance: float = 1e-3) -> Tensor:
    """Keep, in each row, what is left after cutting the lowest scores that sum to at most alpha of the row's total.

    Args:
        score: [out, in], not negative.
        sparsity: wanted over the whole matrix; alpha starts at 0.4 in [0, 0.8] ([0, 1] where 0.8 is not enough) and
            is bisected until the sparsity is within `tolerance`, or, among ties, until the bracket holds nothing more.

    Returns:
        bool [out, in], True = kept.
    """
    ordered, order = torch.sort(score, dim=1, stable=True)
    upto = ordered.cumsum(1)
    total = upto[:, -1:]
    low, high, alpha = 0.0, 0.8, 0.4
    if (upto <= high * total).float().mean().item() < sparsity:
        high = 1.0
    while True:
        cut = upto <= alpha * total
        reached = cut.float().mean().item()
        if abs(reached - sparsity) <= tolerance or high - low < 1e-6:
            break
        low, high = (alpha, high) if reached < sparsity else (low, alpha)
        alpha = (low + high) / 2
    return torch.empty_like(cut).scatter_(1, order, ~cut)
