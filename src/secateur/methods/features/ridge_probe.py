"""ridge_probe: least squares from embeddings to classes, in closed form.

    V = (H^T H + alpha n I)^-1 H^T (Y - 1/C)          H centred, Y one-hot; the bias makes up for the centring

Shapes:  H [n, d], Y [n, C], V [C, d].     Unit: feature.     Needs: a few labelled images a class.
Departs: nothing. A baseline: every coordinate of the embedding is used. Logits are regression values times the logit
         scale, so that `blend` finds both heads on one scale.
Oracle:  scikit-learn's Ridge; alpha -> infinity gives the prior of the classes.
Paper:   Hoerl and Kennard (1970).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from secateur.apply.heads import Features, Head, Shots, Texts, check_fits
from secateur.core.method import Card
from secateur.core.units import Unit
from secateur.errors import BadInput

GRID = tuple(10.0**power for power in range(-6, 3))


@dataclass(frozen=True, kw_only=True)
class RidgeProbe(Features):
    """Ridge regression on embeddings.

    Args:
        alpha: the penalty, a multiple of the number of images; left open, it is chosen on held-out shots.
    """

    alpha: float | None = None

    card = Card(
        paper="Ridge Regression: Biased Estimation for Nonorthogonal Problems (1970)",
        unit=Unit.FEATURE,
        when="after",
        criterion="none: every coordinate of the embedding is used",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise BadInput(f"{self.alpha!r}", where="alpha", fix="use more than 0, or leave it open")

    def fit(self, texts: Texts, shots: Shots | None, held: Shots | None = None) -> Head:
        if shots is None:
            raise BadInput("no images to learn from", where="ridge_probe")
        check_fits(texts, shots)
        if self.alpha is not None:
            return solve(texts, shots, self.alpha)
        if held is None:
            raise BadInput(
                "nothing is held out to choose it on", where="alpha", fix="give alpha=, or held-out shots"
            )
        check_fits(texts, held)
        heads = [solve(texts, shots, alpha) for alpha in GRID]
        right = [int((head.logits(held.embeddings).argmax(1) == held.labels).sum()) for head in heads]
        # of equal ones the strongest penalty
        return heads[max(range(len(heads)), key=lambda at: (right[at], at))]


def solve(texts: Texts, shots: Shots, alpha: float) -> Head:
    """The head at one alpha, solved in float64."""
    h = shots.embeddings.double()
    y = F.one_hot(shots.labels, len(texts.classes)).double()
    middle, share = h.mean(0), y.mean(0)
    centred = h - middle
    system = centred.t() @ centred + alpha * len(h) * torch.eye(h.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(system, centred.t() @ (y - share)).t()
    bias = texts.scale * (share - weight @ middle)
    return Head(weight.float(), texts.scale, bias.float(), facts=(("alpha", alpha),))
