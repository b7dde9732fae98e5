"""Synthetic towers (sheet slr-avd): classes with attributes, images that hold some, and a domain that shifts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.apply.heads import Shots, Texts


@dataclass(frozen=True)
class Towers:
    """Ten classes with six attribute directions each, in d dimensions."""

    texts: Texts
    attributes: Tensor
    domain: Tensor
    other: Tensor

    def shots(self, count: int, seed: int, shifted: bool = False, noise: float = 0.35) -> Shots:
        """`count` images a class."""
        generator = torch.Generator().manual_seed(seed)
        classes, ways, d = self.attributes.shape
        labels = torch.arange(classes).repeat_interleave(count)
        parts = torch.rand(len(labels), ways, 1, generator=generator)
        x = (parts * self.attributes[labels]).mean(1) * 2
        x = x + (self.other if shifted else self.domain)
        x = x + noise * torch.randn(len(labels), d, generator=generator) / d**0.5
        return Shots(F.normalize(x, dim=1), labels)


def towers(seed: int = 0, classes: int = 10, ways: int = 6, d: int = 64) -> Towers:
    generator = torch.Generator().manual_seed(1000 + seed)
    attributes = F.normalize(torch.randn(classes, ways, d, generator=generator), dim=2)
    domain, other = (0.8 * F.normalize(torch.randn(d, generator=generator), dim=0) for _ in range(2))
    names = tuple(f"class {c}" for c in range(classes))
    words = tuple(f"attribute {c}.{i}" for c in range(classes) for i in range(ways))
    owner = torch.arange(classes).repeat_interleave(ways)
    prompts = F.normalize(attributes.mean(1), dim=1)
    return Towers(
        Texts(names, prompts, words, attributes.view(-1, d), owner, 20.0), attributes, domain, other
    )
