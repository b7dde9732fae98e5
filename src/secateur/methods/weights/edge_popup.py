"""edge_popup: find a network inside a random one. The weights never change; a score for each weight is trained.

    score s ~ |kaiming_uniform(a = sqrt 5)|;  mask = the largest s;  w_eff = w * mask;  ds = dL/dw_eff * w  everywhere

The mask is taken anew after every optimiser step, layer by layer (the paper) or over all layers together. The weights
it searches are random too: signs times the standard deviation of kaiming_normal, sqrt(2 / fan_in), or drawn from that
law, or those the network holds (`weights="own"`). The optimiser trains the scores alone; all other parameters keep
their values (the paper's batch norms have none to keep), batch norm's running statistics follow the data.

    k = 1 - sparsity is what hidden-networks calls its prune rate: the fraction KEPT. The paper's best lie near 0.5.

Shapes:  w, s [out, in, ...]; fan_in = in * kernel size.    Unit: weight.      Needs: nothing but the weights.
Departs: counts by the house's floor and exact for equal scores. The published code ranks |s|, and its gradient passes
         through the magnitude: ds = dL/dw_eff * w * sign(s). dL/dw_eff * w alone belongs to scores ranked as they are
         (eq. 5); with |s| it would push every negative score the wrong way, and the loss rises. So the scores start as
         magnitudes and are ranked as they are: the code's steps, until a score passes zero; the code lets it rise again
         beyond, here it stays last.
Oracle:  sparsity 0 gives the random network untouched; the weights' bytes are the same after any number of steps.
Paper:   What's Hidden in a Randomly Weighted Neural Network? (2020), section 3 and eq. 3 to 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from secateur.apply.training import Masks, Net, Training, keep_largest
from secateur.core.method import Card
from secateur.core.units import Unit
from secateur.errors import one_of

CHOICES = {"scope": ("layer", "global"), "weights": ("signed_constant", "kaiming_normal", "own")}


@dataclass(frozen=True, kw_only=True)
class EdgePopup(Training):
    """Edge-popup.

    Args:
        scope: layer (each keeps the same share) or global (one ranking).
        weights: signed_constant (the signs of the network's own), kaiming_normal (drawn with `seed`), or own.
    """

    sparsity: float | str = 0.5
    scope: str = "layer"
    weights: str = "signed_constant"

    card = Card(
        paper="What's Hidden in a Randomly Weighted Neural Network? (2020)",
        unit=Unit.WEIGHT,
        when="during",
        criterion="trained score",
        topology="dynamic",
    )
    trains: ClassVar[str] = "scores"

    def __post_init__(self) -> None:
        super().__post_init__()
        for word, known in CHOICES.items():
            one_of(getattr(self, word), known, word)

    def target(self, net: Net) -> float:
        """The sparsity after this step."""
        return float(self.sparsity)

    def start(self, net: Net) -> Masks:
        stream = net.generator()
        for name in net.weights:
            weight, score = net.memory[f"weight/{name}"], net.memory[f"score/{name}"]
            if self.weights != "own":
                weight.copy_(random_weight(weight, self.weights, stream))
            drawn = torch.empty(score.shape, dtype=torch.float32)
            score.copy_(nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=stream).abs_())
        return self.revise(net)

    def due(self, net: Net) -> bool:
        return True

    def revise(self, net: Net) -> Masks:
        scores = {name: net.memory[f"score/{name}"] for name in net.weights}
        target, notes = self.target(net), list[str]()
        masks = keep_largest(
            scores, target if self.scope == "global" else dict.fromkeys(scores, target), notes
        )
        net.notes.extend(note for note in notes if note not in net.notes)  # said once, not at every step
        return masks


def random_weight(like: Tensor, law: str, stream: torch.Generator) -> Tensor:
    """float32 weights in the shape of `like` [out, in, ...]: kaiming_normal for relu, or its deviation with signs.

    Args:
        like: for signed_constant the signs are those of its values; zero counts as positive.
        law: "kaiming_normal" or "signed_constant".
    """
    deviation = math.sqrt(2 / max(1, like[0].numel()))
    if law == "kaiming_normal":
        return torch.randn(like.shape, generator=stream) * deviation
    return torch.where(like < 0, -deviation, deviation).float()
