"""granet: gradual pruning over all layers together, and at every event some connections move, as in RigL.

    prune    s_t = s_f + (s_i - s_f) (1 - p)^3: the floor(s_t N) smallest |w| of the whole network are cut
    regrow   of each layer: the ceil(r active) smallest |w| go, as many of largest |dL/dw| among all free ones come
    r        r_0 at the first step, 0.005 at the last, by a cosine; regrowth goes on to the end

Shapes:  w [out, in, ...].      Unit: weight.      Needs: dense gradients at an event.
Departs: the ramp's last event reaches s_f (theirs stops one short of it); exact counts, floor of N s; a layer keeps one
         weight; the sparse start has exact counts; no regrowth after the last step, as nothing follows. `scope="layer"`
         (GraNet_uniform) starts uniform, not ERK, so that each layer has one ramp.
Oracle:  the sheet's hand case; regrow=0 is GMP(scope="global"); initial = final sparsity only regrows.
Paper:   Sparse Training via Boosting Pruning Plasticity with Neuroregeneration (2021), algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from secateur.apply.ranking import keep_top_of_all
from secateur.apply.regrow import (
    check_moves,
    cosine,
    exact_cuts,
    last_linear,
    move,
    random_masks,
    random_start,
)
from secateur.apply.training import Masks, Net, Training, dense
from secateur.core.method import Card
from secateur.core.schedule import Schedule, window
from secateur.core.select import check_sparsity, cut_count
from secateur.core.units import Unit
from secateur.errors import BadInput, Infeasible, one_of

# GraNet_uniform: the classifier's sparsity, from this sparsity of the network on
_SPARSE_LAST, _FROM = 0.8, 0.8


@dataclass(frozen=True, kw_only=True)
class GraNet(Training):
    """Gradual pruning with zero-cost neuroregeneration.

    Args:
        initial_sparsity: before the first event: 0 (dense to sparse) or, say, 0.5 (sparse to sparse, random ERK).
        begin, end: where the ramp lies, fractions of the training.
        every: optimiser steps between two events.
        regrow, regrow_end: fraction of a layer's active connections that move at an event, at the first step and at
            the last; regrow=0 moves none.
        scope: what is ranked together when pruning: global, or layer (GraNet_uniform: from 80% sparsity on, the last
            linear layer stays at 80% and the others make up for it).
    """

    initial_sparsity: float = 0.0
    begin: float = 0.0
    end: float = 0.5
    every: int = 100
    regrow: float = 0.5
    regrow_end: float = 0.005
    scope: str = "global"

    rewires = True
    card = Card(
        paper="Sparse Training via Boosting Pruning Plasticity with Neuroregeneration (2021)",
        unit=Unit.WEIGHT,
        when="during",
        criterion="|w|; regrown by |gradient|",
        topology="dynamic",
        retrains=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sparsity(self.initial_sparsity, "initial_sparsity")
        if self.initial_sparsity > float(self.sparsity):
            what = f"{self.initial_sparsity:g} is more than the final {self.sparsity:g}"
            raise BadInput(what, where="initial_sparsity", fix="start denser than the end")
        check_moves(self.regrow, self.every, "regrow")
        check_moves(self.regrow_end, self.every, "regrow_end")
        one_of(self.scope, ("global", "layer"), "scope")

    def schedule(self, net: Net) -> Schedule:
        """The ramp over this training's steps."""
        initial, final = self.initial_sparsity, float(self.sparsity)
        return window("cubic", net.steps, self.begin, self.end, self.every, initial, final)

    def prepare(self, net: Net) -> None:
        self.schedule(net)
        for sparsity in (self.initial_sparsity, float(self.sparsity)):
            self.targets(net, sparsity)

    def start(self, net: Net) -> Masks:
        if not self.initial_sparsity:
            return dense(net)
        if self.scope == "global":
            return random_start(net, self.initial_sparsity, "erk")
        shares = self.targets(net, self.initial_sparsity)
        return random_masks(
            net.sites, exact_cuts(net.sites, shares, self.initial_sparsity), net.generator(), net.notes
        )

    def due(self, net: Net) -> bool:
        schedule = self.schedule(net)
        past = net.step - schedule.begin
        return past >= 0 and past % self.every == 0 and (net.step < net.steps or schedule.due(net.step))

    def revise(self, net: Net) -> Masks:
        kept = self.prune(net)
        if net.step >= net.steps:
            return kept
        for name, mask in kept.items():
            weight = net.weights[name]
            weight.mul_(mask.to(weight.dtype))  # a weight that is pruned and regrown starts again at 0
        grown = dict(kept)
        fraction = self.moving(net)
        for name, gradient in net.gradients.items():
            count = math.ceil(fraction * int(torch.count_nonzero(kept[name])) - 1e-9)
            grown[name] = move(net.weights[name], kept[name], count, gradient.abs())
            net.restarted[name] = net.masks[name] & ~kept[name] & grown[name]
        return grown

    def moving(self, net: Net) -> float:
        """r: the fraction of active connections that move at this step."""
        return cosine(self.regrow, min(self.regrow, self.regrow_end), net.step, net.steps)

    def prune(self, net: Net) -> Masks:
        """The masks at this step's sparsity, before anything is regrown; never a connection more than before."""
        target = self.schedule(net).target(net.step)
        if self.scope == "global":
            left = sum(mask.numel() for mask in net.masks.values())
            return _prune(net, list(net.masks), left - cut_count(left, target))
        shares = self.targets(net, target)
        masks: Masks = {}
        for name, mask in net.masks.items():
            masks |= _prune(net, [name], mask.numel() - cut_count(mask.numel(), shares[name]))
        return masks

    def targets(self, net: Net, sparsity: float) -> dict[str, float]:
        """GraNet_uniform's sparsity of each layer. Infeasible: the last linear layer alone is over the budget."""
        shares = dict.fromkeys(net.weights, sparsity)
        last = last_linear(net.sites)
        if self.scope == "global" or last is None or len(shares) == 1 or sparsity < _FROM:
            return shares
        total, size = sum(w.numel() for w in net.weights.values()), net.weights[last].numel()
        rest = (sparsity * total - _SPARSE_LAST * size) / (total - size)
        if not rest < 1:
            what = f"at density {1 - _SPARSE_LAST:g} it alone is over the budget of sparsity {sparsity:g}"
            raise Infeasible(what, where=last, fix="use scope=global or skip it")
        return {**dict.fromkeys(shares, rest), last: _SPARSE_LAST}


def _prune(net: Net, names: list[str], left: int) -> Masks:
    """The masks of these layers, ranked together, with the `left` largest |w|: what keep_largest says, in less time,
    because only what is active is ranked."""
    among = {name: net.masks[name] for name in names}
    active = sum(int(torch.count_nonzero(mask)) for mask in among.values())
    if active <= left:
        return among
    sizes = {name: net.weights[name].detach().abs() for name in names}
    masks = keep_top_of_all(sizes, active - left, among)
    for name, mask in among.items():
        if not torch.count_nonzero(masks[name]) and torch.count_nonzero(mask):
            masks[name].view(-1)[sizes[name].masked_fill(~mask, -1).argmax()] = True
            note = f"{name}: would have lost every weight, keeps its largest"
            net.notes += [note] if note not in net.notes else []
    return masks
