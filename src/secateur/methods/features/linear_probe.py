"""linear_probe: logistic regression on embeddings, its strength searched as CLIP's authors do.

    min_V,b  sum_i CE(softmax(V h_i + b), y_i) + (1 / 2C) sum V^2
    C        of 96 values from 1e-6 to 1e6: seven far apart first, then the neighbours of the best, ever closer

Shapes:  h [n, d]; V [C, d]; b [C].     Unit: feature.     Needs: a few labelled images a class.
Departs: embeddings are unit rows, as everywhere here, where CLIP's authors take them as they come.
Oracle:  scikit-learn's own LogisticRegression, which solves it.
Paper:   Learning Transferable Visual Models From Natural Language Supervision (2021), appendix A.3.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from secateur.apply.heads import Features, Head, Shots, Texts, check_fits
from secateur.core.method import Card
from secateur.core.units import Unit
from secateur.errors import BadInput, require

GRID = np.logspace(-6, 6, 96)
FIRST = (1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6)


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Features):
    """Logistic regression on embeddings (L-BFGS, through scikit-learn).

    Args:
        C: inverse of the L2 penalty, as scikit-learn has it; left open, it is searched on held-out shots.
        steps: of L-BFGS at most.
    """

    C: float | None = None
    steps: int = 1000

    card = Card(
        paper="Learning Transferable Visual Models From Natural Language Supervision (2021)",
        unit=Unit.FEATURE,
        when="after",
        criterion="none: every coordinate of the embedding is used",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.C is not None and not (self.C > 0 and math.isfinite(self.C)):
            raise BadInput(f"{self.C!r}", where="C", fix="use more than 0, or leave it open")
        if self.steps < 1:
            raise BadInput(f"{self.steps}", where="steps", fix="use 1 or more")

    def fit(self, texts: Texts, shots: Shots | None, held: Shots | None = None) -> Head:
        if shots is None:
            raise BadInput("no images to learn from", where="linear_probe")
        check_fits(texts, shots)
        missing = set(range(len(texts.classes))) - set(shots.labels.tolist())
        if missing:
            raise BadInput("no image", where=texts.classes[min(missing)], fix="give one of each class")
        if self.C is not None:
            return self._solve(texts, shots, self.C)
        if held is None:
            raise BadInput("nothing is held out to choose it on", where="C", fix="give C=, or held-out shots")
        check_fits(texts, held)
        heads: dict[float, Head] = {}

        def accuracy(strength: float) -> float:
            head = heads.setdefault(strength, self._solve(texts, shots, strength))
            return float((head.logits(held.embeddings).argmax(1) == held.labels).float().mean())

        return heads[search(accuracy)]

    def _solve(self, texts: Texts, shots: Shots, strength: float) -> Head:
        linear = require("sklearn.linear_model", "vision")
        model = linear.LogisticRegression(C=strength, max_iter=self.steps, tol=1e-6)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # at weak penalties on separable shots it stops at `steps`, as CLIP's does
            model.fit(shots.embeddings.double().numpy(), shots.labels.numpy())
        weight = torch.from_numpy(np.asarray(model.coef_)).float()
        bias = torch.from_numpy(np.asarray(model.intercept_)).float()
        if len(texts.classes) == 2:  # one row for the second class: half of it for each is the same softmax
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        return Head(weight / texts.scale, texts.scale, bias, facts=(("C", strength),))


def search(accuracy: Callable[[float], float]) -> float:
    """The best of GRID: the best of seven far apart, then of the middles to its neighbours, until they meet.

    Of equal ones the smallest, the strongest penalty.
    """
    known: dict[int, float] = {}

    def at(place: int) -> float:
        if place not in known:
            known[place] = accuracy(float(GRID[place]))
        return known[place]

    places = sorted({int(np.abs(np.log(GRID) - math.log(value)).argmin()) for value in FIRST})
    best = max(places, key=lambda place: (at(place), -place))
    gap = 16
    while gap >= 1:
        near = [place for place in (best - gap // 2, best + gap // 2) if 0 <= place < len(GRID)]
        best = max([best, *near], key=lambda place: (at(place), -place))
        gap //= 2
    return float(GRID[best])
