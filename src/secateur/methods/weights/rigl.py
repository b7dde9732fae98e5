"""rigl: the rigged lottery. Every so often the smallest weights go and those of the largest gradients come.

    f(t) = alpha / 2 (1 + cos(pi t / T_end))
    drop   floor(f(t) * active) smallest |w| of each layer         grow   as many of largest |dL/dw| among all free ones

Shapes:  w [out, in, ...].      Unit: weight.      Needs: dense gradients at an event.
Departs: the optimiser's step of an event is taken, and |w| read after it (the authors skip that step); exact counts.
Oracle:  the hand case of the tests; active counts never change.
Paper:   Rigging the Lottery: Making All Tickets Winners (2020), algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from secateur.apply.regrow import (
    SHARES,
    check_moves,
    cosine,
    exact_cuts,
    layer_sparsities,
    move,
    random_start,
)
from secateur.apply.training import Masks, Net, Training
from secateur.core.method import Card
from secateur.core.select import cut_count
from secateur.core.units import Unit
from secateur.errors import BadInput, one_of


@dataclass(frozen=True, kw_only=True)
class RigL(Training):
    """The rigged lottery.

    Args:
        fraction: of a layer's active connections that move at an event: at step 0, falling to 0 by a cosine.
        every: optimiser steps between two events.
        end: fraction of the training after which nothing moves.
        layers: densities of the layers: erk (the paper's best), er, uniform, uniform_plus or erk_plus.
    """

    fraction: float = 0.3
    every: int = 100
    end: float = 0.75
    layers: str = "erk"

    rewires = True
    card = Card(
        paper="Rigging the Lottery: Making All Tickets Winners (2020)",
        unit=Unit.WEIGHT,
        when="during",
        criterion="|w|; grown by |gradient|",
        start="sparse",
        topology="dynamic",
        purpose="training",
        retrains=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_moves(self.fraction, self.every)
        if not 0 < self.end <= 1:
            raise BadInput(f"{self.end!r} of the training", where="end", fix="give a fraction in (0, 1]")
        one_of(self.layers, SHARES, "layers")

    def prepare(self, net: Net) -> None:
        if self.every >= self.last(net):
            what = f"no event every {self.every} steps in the first {self.last(net)} of {net.steps}"
            raise BadInput(what, where="every", fix="lower it, raise `end` or train longer")
        exact_cuts(
            net.sites, layer_sparsities(net.sites, float(self.sparsity), self.layers), float(self.sparsity)
        )

    def start(self, net: Net) -> Masks:
        return random_start(net, float(self.sparsity), self.layers)

    def last(self, net: Net) -> int:
        """The step at which the fraction has come to 0; events lie before it."""
        return round(self.end * net.steps)

    def due(self, net: Net) -> bool:
        return net.step % self.every == 0 and net.step < self.last(net)

    def revise(self, net: Net) -> Masks:
        fraction = cosine(self.fraction, 0.0, net.step, self.last(net))
        masks = dict(net.masks)
        for name, gradient in net.gradients.items():  # a weight without a gradient is not trained: it stays
            count = cut_count(int(masks[name].sum()), fraction)
            masks[name] = move(net.weights[name], masks[name], count, gradient.abs())
        return masks
