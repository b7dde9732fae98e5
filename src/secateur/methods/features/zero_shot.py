"""zero_shot: the head that a model's text tower gives without any image.

    cp    W = I on the class prompts                                     ZS
    vd    W[c, j] = 1 / M_c where descriptor j was written for c         ZS-VD
    avd   both blocks beside each other, the descriptors' times gamma    ZS-AVD

Shapes:  W [C, M + C], V = W U [C, d].     Unit: feature.     Needs: nothing but texts.
Departs: the sheet leaves the weight between the two blocks open; gamma = 1 sums the two scores.
Oracle:  cp is the class prompts themselves; vd the plain mean over a class's own descriptors.
Paper:   Text Descriptions are Compressive and Invariant Representations for Visual Learning (2023), section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from secateur.apply.heads import Features, Head, Shots, Texts, columns
from secateur.core.method import Card
from secateur.core.units import Unit
from secateur.errors import BadInput, one_of


@dataclass(frozen=True, kw_only=True)
class ZeroShot(Features):
    """Zero-shot head.

    Args:
        features: cp (class prompts), vd (descriptors) or avd (both).
        gamma: weight of the descriptors in avd.
    """

    features: str = "cp"
    gamma: float = 1.0

    card = Card(
        paper="Text Descriptions are Compressive and Invariant Representations for Visual Learning (2023)",
        unit=Unit.FEATURE,
        when="after",
        criterion="every text counts for its own class alone",
    )
    learns = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.features, ("cp", "vd", "avd"), "features")
        if not (self.gamma >= 0 and math.isfinite(self.gamma)):
            raise BadInput(f"{self.gamma!r}", where="gamma", fix="use 0 or more; 1 sums both scores")

    def fit(self, texts: Texts, shots: Shots | None = None, held: Shots | None = None) -> Head:
        places, rows = columns(texts, self.features)
        count, words = len(texts.classes), len(texts.words)
        coefficients = torch.zeros(count, len(places))
        own = torch.cat([texts.owner, torch.arange(count)])[places]
        sizes = torch.bincount(texts.owner, minlength=count)
        for column, (place, owner) in enumerate(zip(places.tolist(), own.tolist(), strict=True)):
            share = 1 / int(sizes[owner]) if place < words else 1.0
            coefficients[owner, column] = share * (
                self.gamma if self.features == "avd" and place < words else 1
            )
        return Head(coefficients @ rows, texts.scale, None, coefficients, places)
