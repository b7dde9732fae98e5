"""set: sparse evolutionary training. Every so often the smallest weights go and random connections come.

    drop   floor(zeta * active) smallest |w| of each layer          grow   as many at random among all that are free

Shapes:  w [out, in, ...].      Unit: weight.      Needs: nothing but the weights.
Departs: one ranking of |w| a layer, where the paper takes zeta of the smallest positive and of the largest negative
         weights; steps instead of epochs; exact counts at the start; no move after the last step, as nothing follows.
Oracle:  the hand case of the tests; active counts never change.
Paper:   Scalable training of artificial neural networks with adaptive sparse connectivity inspired by network science
         (2018), algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from secateur.apply.regrow import SHARES, check_moves, exact_cuts, layer_sparsities, move, random_start
from secateur.apply.training import Masks, Net, Training
from secateur.core.method import Card
from secateur.core.select import cut_count
from secateur.core.units import Unit
from secateur.errors import BadInput, one_of


@dataclass(frozen=True, kw_only=True)
class SET(Training):
    """Sparse evolutionary training.

    Args:
        zeta: fraction of a layer's active connections that move at an event.
        every: optimiser steps between two events.
        layers: densities of the layers: er (the paper's), erk, uniform, uniform_plus or erk_plus.
    """

    zeta: float = 0.3
    every: int = 100
    layers: str = "er"

    card = Card(
        paper="Scalable training of artificial neural networks with adaptive sparse connectivity (2018)",
        unit=Unit.WEIGHT,
        when="during",
        criterion="|w|; grown at random",
        start="sparse",
        topology="dynamic",
        purpose="training",
        retrains=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_moves(self.zeta, self.every, "zeta")
        one_of(self.layers, SHARES, "layers")

    def prepare(self, net: Net) -> None:
        if self.every >= net.steps:
            what = f"no event every {self.every} steps in a training of {net.steps}"
            raise BadInput(what, where="every", fix="lower it or train longer")
        exact_cuts(
            net.sites, layer_sparsities(net.sites, float(self.sparsity), self.layers), float(self.sparsity)
        )

    def start(self, net: Net) -> Masks:
        return random_start(net, float(self.sparsity), self.layers)

    def due(self, net: Net) -> bool:
        return net.step % self.every == 0 and net.step < net.steps

    def revise(self, net: Net) -> Masks:
        generator = net.generator()
        masks = {}
        for name, mask in net.masks.items():
            count = cut_count(int(mask.sum()), self.zeta)
            chance = torch.rand(mask.shape, generator=generator).to(mask.device)
            masks[name] = move(net.weights[name], mask, count, chance)
        return masks
