"""lottery_jackpots: search a mask on a trained network whose weights stay; it starts as the magnitude mask.

    b = the magnitude mask;  m = 0.99 where b = 0, 1 where b = 1;  w_eff = b * w;  dm = dL/dw_eff * w  everywhere
    after each step, in each layer, with c the cut weights of b, a number that never changes:
        A = cut now, but not among the c smallest m          B = kept now, but among them          |A| = |B|
        q = max(1, ceil(rate |A|)): the q of A with the largest m come back, the q of B with the smallest m go
    rate:  cosine (1 + cos(pi p)) / 2;  quartic (1 - p)^4;  none 1 (plain top-k);  p = steps done before / steps

How many each layer cuts: "l1", what one magnitude ranking over the layers leaves of it; "uniform", the same share. The
classifier stays dense unless `dense_classifier=False`: the linear layer that comes last in the model's order of modules
(the last layer of any kind where none is linear); `sparsity` counts the other layers.

The optimiser trains m alone, so its weight decay acts on m; its learning rate is large or small beside the gap of 0.01.
Biases and norms are frozen, running statistics follow the data in training mode. For the paper's optional tuning of the
weights under the found mask: `pruner.detach()`, which leaves w * b in the network and gives the optimiser its own
parameters back, then train with `recover` (Keep), which holds the zeros.

Shapes:  w, b, m [out, in, ...].   Unit: weight.      Needs: trained weights.
Departs: p runs by steps, not by epochs; equal scores: the lowest index is cut first, so |A| = |B| always (the published
         code passes over a layer with ties). "quartic" has no ceil, which in the code switches the restriction off.
Oracle:  m = 1.05 .97 1.02 .98, b = 0 1 1 0, c = 2: A = {0}, B = {1}, b becomes 1 0 1 0.
Paper:   Lottery Jackpots Exist in Pre-trained Models (2021), sections 3.2 and 3.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from secateur.apply.training import Masks, Net, Training, dense, keep_largest
from secateur.core.method import Card
from secateur.core.select import keep_top
from secateur.core.units import Unit
from secateur.errors import BadInput, one_of
from secateur.sites.trainable import trainable_weights

CHOICES = {"layers": ("l1", "uniform"), "restriction": ("cosine", "quartic", "none")}
LOW, HIGH = 0.99, 1.0  # where scores start


@dataclass(frozen=True, kw_only=True)
class LotteryJackpots(Training):
    """Lottery jackpots.

    Args:
        layers: l1 or uniform, how many weights each layer cuts.
        restriction: cosine, quartic or none, the share of the wanted swaps that is made at a step.
        dense_classifier: leave the last linear layer whole.
    """

    layers: str = "l1"
    restriction: str = "cosine"
    dense_classifier: bool = True

    card = Card(
        paper="Lottery Jackpots Exist in Pre-trained Models (2021)",
        unit=Unit.WEIGHT,
        when="after",
        criterion="trained score",
        topology="dynamic",
    )
    trains: ClassVar[str] = "scores"

    def __post_init__(self) -> None:
        super().__post_init__()
        for word, known in CHOICES.items():
            one_of(getattr(self, word), known, word)

    def prepare(self, net: Net) -> None:
        if not self._searched(net):
            fix = "set dense_classifier=False"
            raise BadInput("is the classifier and the only layer", where=next(iter(net.weights)), fix=fix)

    def _searched(self, net: Net) -> list[str]:
        """The layers whose mask is searched: all but a dense classifier."""
        whole = classifier(net.model) if self.dense_classifier else ""
        return [name for name in net.weights if name != whole]

    def start(self, net: Net) -> Masks:
        magnitude = {name: net.memory[f"weight/{name}"].abs() for name in self._searched(net)}
        share = float(self.sparsity)
        wanted = share if self.layers == "l1" else dict.fromkeys(magnitude, share)
        masks = dense(net) | keep_largest(magnitude, wanted, net.notes)
        for name, mask in masks.items():
            net.memory[f"score/{name}"].copy_(torch.where(mask, HIGH, LOW))
        return masks

    def due(self, net: Net) -> bool:
        return True

    def revise(self, net: Net) -> Masks:
        now = rate(self.restriction, (net.step - 1) / net.steps)
        return {name: swapped(mask, net.memory[f"score/{name}"], now) for name, mask in net.masks.items()}


def classifier(model: nn.Module) -> str:
    """The weight of the last linear layer in the model's order of modules, or of the last layer if none is linear."""
    weights = trainable_weights(model)
    return ([name for name, weight in weights.items() if weight.ndim == 2] or list(weights))[-1]


def rate(restriction: str, p: float) -> float:
    """The share of the wanted swaps that is made when the fraction p of the search is done, 1 at p = 0."""
    p = min(max(p, 0.0), 1.0)
    return {"cosine": (1 + math.cos(math.pi * p)) / 2, "quartic": (1 - p) ** 4, "none": 1.0}[restriction]


def swapped(mask: Tensor, score: Tensor, rate: float) -> Tensor:
    """The mask after the swaps of one step; it keeps as many as before.

    Args:
        mask: bool, any shape.
        score: m, the same shape, finite.
        rate: share of the swaps that the scores ask for, in [0, 1]; at least one is made where any is asked for.
    """
    kept, flat = mask.flatten(), score.detach().flatten()
    best = keep_top(flat[None], int((~kept).sum()))[0]
    back, gone = best & ~kept, kept & ~best
    wanted = int(back.sum())
    if not wanted:
        return mask
    swaps = max(1, math.ceil(rate * wanted - 1e-9))
    after = kept.clone()
    after[back] = keep_top(flat[back][None], wanted - swaps)[0]
    after[gone] = keep_top(flat[gone][None], swaps)[0]
    return after.view_as(mask)
