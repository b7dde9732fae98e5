"""Towers small enough for tests: the image tower is a seeded projection, the text tower knows a few words."""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.io.descriptors import Descriptors
from secateur.io.images import Images

WIDTH = 24
NAMES = ("disc", "bar", "cross")


def pictures(count: int = 20, seed: int = 0, name: str = "shapes/test", noise: float = 40.0) -> Images:
    """`count` images a class, uint8 [n, 8, 8, 1]: a filled middle, a column, a cross; with noise."""
    generator = np.random.default_rng(seed)
    shapes = np.zeros((3, 8, 8))
    shapes[0, 2:6, 2:6] = 1
    shapes[1, :, 3:5] = 1
    shapes[2, 3:5, :] = shapes[2, :, 3:5] = 1
    labels = np.repeat(np.arange(3), count)
    values = 30 + 170 * shapes[labels] + noise * generator.standard_normal((3 * count, 8, 8))
    return Images(values.clip(0, 255).astype(np.uint8)[..., None], labels.astype(np.int64), NAMES, name)


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(64, WIDTH, bias=False)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.project.weight.copy_(torch.randn(WIDTH, 64, generator=generator) / 8)

    def forward(self, images: Tensor) -> Tensor:
        return self.project(images.mean(1).flatten(1) - 0.3)


class TinyTowers:
    """Class words embed as the mean image of their class; any other word as noise drawn from its letters."""

    def __init__(self, tower: Tower | None = None) -> None:
        self.name, self.logit_scale, self.width = "tiny", 20.0, WIDTH
        self.tower = tower or Tower()
        data = pictures(noise=0.0)
        self._known = dict(zip(NAMES, self.embed_images(data.images)[::20], strict=True))

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.tower.project.weight.detach().numpy().tobytes()).hexdigest()

    @torch.no_grad()
    def embed_images(self, images: Any) -> Tensor:
        x = torch.as_tensor(np.asarray(images)).permute(0, 3, 1, 2).float() / 255
        return F.normalize(self.tower(x), dim=1)

    def embed_texts(self, words: list[str]) -> Tensor:
        rows = []
        for text in words:
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
            row = 0.5 * F.normalize(torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)), dim=0)
            rows.append(row + sum((self._known[name] for name in NAMES if name in text), torch.zeros(WIDTH)))
        return F.normalize(torch.stack(rows), dim=1)

    def image_module(self) -> nn.Module:
        return copy.deepcopy(self.tower)

    def replace_image(self, state: dict[str, Tensor]) -> TinyTowers:
        tower = Tower()
        tower.load_state_dict(state)
        return TinyTowers(tower)


def words() -> Descriptors:
    each = [f"a {name} {way}" for name in NAMES for way in ("in white", "on black")]
    return Descriptors(NAMES, tuple(each), (0, 0, 1, 1, 2, 2), ("by hand",) * 6)
