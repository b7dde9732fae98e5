"""biprop: a binary network inside a random one. As edge-popup, and the weights that stay count by their sign alone.

    mask = the largest s;   alpha = sum(|w| mask) / sum(mask), a layer;   w_eff = alpha * sign(w) * mask
    ds = dL/dw_eff * w: alpha is taken for a constant

    ramp: from half to the whole sparsity S in the first part of the training, p from 0 to 1 over it:
          S + (0.5 - S) (1 - p)^3                         nothing where S <= 0.5

A layer needs one bit a kept weight and one number, alpha. CARDs train their binary networks this way. The ramp belongs
to the global ranking of the published code: `scope="global", ramp=0.1` (10 of 100 epochs); its layer form has none.

Shapes:  w, s [out, in, ...]; alpha a number a layer.   Unit: weight.      Needs: nothing but the weights.
Departs: the ramp goes on by steps, not by epochs; scores and counts as in
         edge_popup.py.
Oracle:  w_eff has at most the three values -alpha, 0, alpha in a layer; alpha is the mean |w| of the kept.
Paper:   Multi-Prize Lottery Ticket Hypothesis: Finding Accurate Binary Neural Networks by Pruning A Randomly Weighted
         Network (2021), algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from secateur.apply.training import Net
from secateur.core.method import Card
from secateur.core.units import Unit
from secateur.errors import BadInput
from secateur.methods.weights.edge_popup import EdgePopup


@dataclass(frozen=True, kw_only=True)
class Biprop(EdgePopup):
    """Biprop (multi-prize tickets).

    Args:
        weights: as in edge-popup; kaiming_normal is biprop's.
        ramp: the first fraction of the training in which the sparsity grows from 0.5; 0: whole from the start.
    """

    weights: str = "kaiming_normal"
    ramp: float = 0.0

    card = Card(
        paper="Multi-Prize Lottery Ticket Hypothesis (2021)",
        unit=Unit.WEIGHT,
        when="during",
        criterion="trained score",
        topology="dynamic",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.ramp, bool) or not 0 <= self.ramp <= 1:
            raise BadInput(
                f"{self.ramp!r} is no fraction", where="ramp", fix="0.1 is a tenth of the training"
            )

    def target(self, net: Net) -> float:
        whole, length = float(self.sparsity), self.ramp * net.steps
        if whole <= 0.5 or net.step >= length:
            return whole
        return whole + (0.5 - whole) * (1 - net.step / length) ** 3

    def effective(self, name: str, net: Net) -> Tensor:
        return binary(net.memory[f"weight/{name}"], net.masks[name])


def binary(weight: Tensor, mask: Tensor) -> Tensor:
    """alpha * sign(w) * mask in the weights' dtype.

    Args:
        weight: [out, in, ...].
        mask: bool, the same shape, at least one True.
    """
    alpha = (
        weight[mask].abs().double().mean()
    )  # float64: the order of the sum, which threads change, rounds away
    return weight.sign() * mask * alpha.to(weight.dtype)
