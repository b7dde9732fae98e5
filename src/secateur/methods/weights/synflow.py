"""synflow: before training and without data, cut what little flows through, round by round.

    score = |w| * dR/d|w|                    R = sum of the outputs of the network of absolute weights for ones
    after round k of n, (1 - sparsity)^(k/n) of all weights are left, in one ranking over all layers; masks stay

Shapes:  w, score [out, in, ...].      Unit: weight.      Needs: the shape of an input, from the batches given.
Departs: norms run in evaluation mode, as in the authors' code. Flow is conserved layer by layer, so that with enough
         rounds no layer is emptied before all are; one that would be keeps its one best weight, with a note.
Oracle:  two linear layers: the sum of |products| over all paths through a weight.
Paper:   Pruning neural networks without any data by iteratively conserving synaptic flow (2020), algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from secateur.apply.training import Masks, Net, Training, keep_largest
from secateur.core.method import Card
from secateur.core.units import Unit
from secateur.errors import BadInput
from secateur.signals.gradients import ROUNDS, synflow_scores


@dataclass(frozen=True, kw_only=True)
class SynFlow(Training):
    """Iterative synaptic flow: `attach(..., data=[(input, target)])`, of which only the input's shape is used.

    Args:
        rounds: how many times the flow is measured; 1 is one shot.
    """

    rounds: int = ROUNDS

    card = Card(
        paper="Pruning neural networks without any data by iteratively conserving synaptic flow (2020)",
        unit=Unit.WEIGHT,
        when="before",
        criterion="|w| dR/d|w|",
        start="sparse",
        purpose="training",
        retrains=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.rounds) is not int or self.rounds < 1:
            raise BadInput(f"{self.rounds!r} rounds", where="rounds", fix="give at least 1")

    def start(self, net: Net) -> Masks:
        sparsity = float(self.sparsity)
        scores = synflow_scores(net.model, net.weights, net.data, sparsity=sparsity, rounds=self.rounds)
        return keep_largest(scores, sparsity, net.notes)
