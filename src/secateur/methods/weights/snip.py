"""snip: before training, keep the connections that the loss would feel if they were taken away.

    score = |w * dL/dw|                      one ranking over all layers, L summed over the batches given; masks stay

Shapes:  w, score [out, in, ...].      Unit: weight.      Needs: a few batches and the loss, before the first step.
Departs: weights are scored as they are (the paper scores them at a variance-scaled initialisation: give it such a
         network); a layer that would be left empty keeps its one best weight, and a note says so.
Oracle:  outputs linear in w and a squared error: the score by hand; a loss times a constant gives the same masks.
Paper:   SNIP: Single-shot Network Pruning based on Connection Sensitivity (2019), eq. 6 and algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from secateur.apply.training import Masks, Net, Training, keep_largest
from secateur.core.method import Card
from secateur.core.units import Unit
from secateur.signals.gradients import check_batches, snip_scores


@dataclass(frozen=True, kw_only=True)
class SNIP(Training):
    """Single-shot pruning by connection sensitivity: `attach(..., data=[(input, target), ...], loss=loss)`."""

    card = Card(
        paper="SNIP: Single-shot Network Pruning based on Connection Sensitivity (2019)",
        unit=Unit.WEIGHT,
        when="before",
        criterion="|w dL/dw|",
        start="sparse",
        purpose="training",
        retrains=True,
    )

    def prepare(self, net: Net) -> None:
        check_batches(net.data, net.loss, where="snip")

    def start(self, net: Net) -> Masks:
        scores = snip_scores(net.model, net.weights, net.data, net.loss)
        return keep_largest(scores, float(self.sparsity), net.notes)
