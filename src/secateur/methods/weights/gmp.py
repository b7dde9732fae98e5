"""gmp: cut the smallest weights little by little while the network trains.

    s_t = s_f + (s_i - s_f) (1 - (t - t0) / (n dt))^3          t = t0, t0 + dt, ..., t0 + n dt
    each layer on its own: the floor(s_t * size) smallest |w| are cut

Shapes:  w [out, in, ...].      Unit: weight.      Needs: nothing but the weights.
Departs: floor instead of round (the house's rule; at most one weight a layer); cut weights are zeroed, so masks are
         nested (sheet gmp, step 4, "zero out"). `scope="global"` ranks all layers together, as GraNet's GMP does.
Oracle:  s for n = 10 and s_f = 0.8: 0, .2168, .3904, .5256, .6272, .7, .7488, .7784, .7936, .7992, .8.
Paper:   To prune, or not to prune: exploring the efficacy of pruning for model compression (2017), section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from secateur.apply.training import Masks, Net, Training, dense, keep_largest
from secateur.core.method import Card
from secateur.core.schedule import SHAPES, Schedule, window
from secateur.core.units import Unit
from secateur.errors import one_of


@dataclass(frozen=True, kw_only=True)
class GMP(Training):
    """Gradual magnitude pruning.

    Args:
        begin, end: where the ramp lies, fractions of the training; leave time to train after it.
        every: optimiser steps between two events.
        shape: of the ramp: cubic (the paper's), linear, cosine, rounds or once.
        scope: layer (the paper's) or global.
    """

    begin: float = 0.0
    end: float = 0.75
    every: int = 100
    shape: str = "cubic"
    scope: str = "layer"

    card = Card(
        paper="To prune, or not to prune: exploring the efficacy of pruning for model compression (2017)",
        unit=Unit.WEIGHT,
        when="during",
        criterion="|w|",
        retrains=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for word, known in (("shape", SHAPES), ("scope", ("layer", "global"))):
            one_of(getattr(self, word), known, word)

    def schedule(self, net: Net) -> Schedule:
        """The ramp over this training's steps."""
        return window(self.shape, net.steps, self.begin, self.end, self.every, 0.0, float(self.sparsity))

    def prepare(self, net: Net) -> None:
        self.schedule(net)

    def start(self, net: Net) -> Masks:
        return dense(net)

    def due(self, net: Net) -> bool:
        return self.schedule(net).due(net.step)

    def revise(self, net: Net) -> Masks:
        target = self.schedule(net).target(net.step)
        scores = {
            name: weight.abs().masked_fill(~net.masks[name], -1) for name, weight in net.weights.items()
        }
        wanted = target if self.scope == "global" else dict.fromkeys(scores, target)
        return keep_largest(scores, wanted, net.notes)
