"""grasp: before training, keep the connections that carry the flow of gradients through the network.

    score = w * (H g)                        g = dL/dw with the outputs divided by `temperature`, H its Hessian;
                                             one ranking over all layers, L summed over the batches; masks stay

Shapes:  w, score [out, in, ...].      Unit: weight.      Needs: a few batches and the loss, before the first step.
Departs: the paper writes -w H g and removes its highest; higher = keep here. It draws 10 samples a class (its code
         25): the batches given are taken as they are. A layer left empty keeps its one best weight, with a note.
Oracle:  a squared error of outputs linear in w, whose Hessian is x x^T: the score by hand.
Paper:   Picking Winning Tickets Before Training by Preserving Gradient Flow (2020), eq. 8 and algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from secateur.apply.training import Masks, Net, Training, keep_largest
from secateur.core.method import Card
from secateur.core.units import Unit
from secateur.errors import BadInput
from secateur.signals.gradients import TEMPERATURE, check_batches, grasp_scores


@dataclass(frozen=True, kw_only=True)
class GraSP(Training):
    """Gradient signal preservation: `attach(..., data=[(input, target), ...], loss=loss)`.

    Args:
        temperature: what the outputs, logits, are divided by before the loss; > 0.
    """

    temperature: float = TEMPERATURE

    card = Card(
        paper="Picking Winning Tickets Before Training by Preserving Gradient Flow (2020)",
        unit=Unit.WEIGHT,
        when="before",
        criterion="w H g",
        start="sparse",
        purpose="training",
        retrains=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.temperature, bool) or not self.temperature > 0:
            raise BadInput(f"{self.temperature!r} is no temperature", where="temperature", fix="give > 0")

    def prepare(self, net: Net) -> None:
        check_batches(net.data, net.loss, where="grasp")

    def start(self, net: Net) -> Masks:
        scores = grasp_scores(net.model, net.weights, net.data, net.loss, self.temperature)
        return keep_largest(scores, float(self.sparsity), net.notes)
