"""random_pruning: fixed random masks from the start; only the layers' densities are chosen.

    mask_l = a random choice of exactly so many weights as the density of layer l says, never changed again

Shapes:  w [out, in, ...].      Unit: weight.      Needs: nothing; a few batches and the loss for snip and grasp.
Departs: exact counts whose sum is the budget (`exact=False` draws each weight on its own, as the authors' code does);
         uniform_plus by the exact remainder (theirs divides by the total and comes out sparser than asked);
         `snip` draws Glorot weights for the score, as theirs does; `grasp` takes the batches given, not 25 a class.
Oracle:  the sheet's ERK and ER densities of its four layers at density 0.1 and 0.2.
Paper:   The Unreasonable Effectiveness of Random Pruning (2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from secateur.apply.regrow import SHARES, exact_cuts, last_linear, layer_sparsities, random_masks
from secateur.apply.training import Masks, Net, Training, keep_largest
from secateur.core.method import Card
from secateur.core.units import Unit
from secateur.errors import BadInput, one_of
from secateur.signals.gradients import check_batches, grasp_scores, snip_scores

SCORED = ("snip", "grasp")


@dataclass(frozen=True, kw_only=True)
class RandomPruning(Training):
    """Random pruning at initialisation.

    Args:
        layers: densities of the layers: uniform, uniform_plus, er, erk, erk_plus, snip or grasp (apply/regrow.py; of
            the last two, only the number that each layer keeps is taken).
        exact: False draws each weight by itself, so that the count is met on average only.
        last_density: of the last linear layer, for erk_plus.
    """

    layers: str = "erk"
    exact: bool = True
    last_density: float = 1.0

    card = Card(
        paper="The Unreasonable Effectiveness of Random Pruning: Return of the Most Naive Baseline (2022)",
        unit=Unit.WEIGHT,
        when="before",
        criterion="random",
        start="sparse",
        purpose="training",
        retrains=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.layers, (*SHARES, *SCORED), "layers")
        if not isinstance(self.exact, bool):
            raise BadInput(f"{self.exact!r} is neither True nor False", where="exact")
        if not 0 < self.last_density <= 1:
            raise BadInput(f"{self.last_density!r} is not a fraction in (0, 1]", where="last_density")

    def prepare(self, net: Net) -> None:
        if self.layers in SCORED:
            check_batches(net.data, net.loss, where=f"layers={self.layers}")
        else:
            exact_cuts(net.sites, self.sparsities(net), float(self.sparsity))
            if self.layers.endswith("_plus") and last_linear(net.sites) is None:
                net.notes.append(f"layers={self.layers}: there is no linear layer to favour")

    def start(self, net: Net) -> Masks:
        shares = self.sparsities(net)
        if self.exact:
            cuts = exact_cuts(net.sites, shares, float(self.sparsity))
            return random_masks(net.sites, cuts, net.generator(), net.notes)
        return _bernoulli(net, shares)

    def sparsities(self, net: Net) -> dict[str, float]:
        """The sparsity of each layer."""
        if self.layers not in SCORED:
            return layer_sparsities(net.sites, float(self.sparsity), self.layers, self.last_density)
        if self.layers == "snip":
            generator = net.generator()
            drawn = {name: torch.empty(weight.shape) for name, weight in net.weights.items()}
            for weight in drawn.values():
                nn.init.xavier_normal_(weight, generator=generator)
            values = {name: drawn[name].to(weight) for name, weight in net.weights.items()}
            scores = snip_scores(net.model, values, net.data[:1], net.loss)
        else:
            scores = grasp_scores(net.model, net.weights, net.data, net.loss)
        masks = keep_largest(scores, float(self.sparsity))
        # a quarter of a weight on top survives the trip through a float: the floor gives the count back
        cuts = {name: int((~mask).sum()) for name, mask in masks.items()}
        return {name: (cut + 0.25) / masks[name].numel() if cut else 0.0 for name, cut in cuts.items()}


def _bernoulli(net: Net, shares: dict[str, float]) -> Masks:
    """Each weight is kept with its layer's density; a layer that came out empty keeps its highest draw."""
    generator = net.generator()
    masks = {}
    for site in net.sites:
        draws = torch.rand(site.size, generator=generator)
        mask = draws >= shares[site.name]
        if not bool(mask.any()):
            mask[int(draws.argmax())] = True
            net.notes.append(f"{site.name}: would have lost every weight, keeps one")
        masks[site.name] = mask.view(site.shape)
    return masks
