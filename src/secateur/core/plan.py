"""A plan: what stays, where, and from which scores. Made before the model changes; read, compared, merged, replayed.

A plan holds one bit a unit. It says nothing about new values: a method that also updates the weights that stay
(SparseGPT, L-OBS) marks its plan `updates=True`, and replaying such a plan on a dense model gives its mask only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from secateur.core.scores import digest
from secateur.errors import BadInput, NoMatch, nearest

_POWERS = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)


def pack(keep: Tensor) -> Tensor:
    """bool, any shape, to uint8 [ceil(n / 8)]: eight units a byte, unit 0 in bit 0, the last byte padded with zeros."""
    flat = keep.reshape(-1).to("cpu", torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % 8))
    return (flat.view(-1, 8) * _POWERS).sum(1, dtype=torch.uint8)


def unpack(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack`: uint8 [ceil(n / 8)] to bool of `shape`."""
    flat = bits[:, None].bitwise_and(_POWERS).ne(0).reshape(-1)
    return flat[: prod(shape)].view(shape)


@dataclass(frozen=True)
class Kept:
    """Which units of one site stay: packed bits, their shape, and how many are True."""

    bits: Tensor
    shape: tuple[int, ...]
    count: int

    @classmethod
    def of(cls, keep: Tensor) -> Kept:
        return cls(pack(keep), tuple(keep.shape), int(keep.sum()))

    def mask(self) -> Tensor:
        """bool of `shape`, True = kept."""
        return unpack(self.bits, self.shape)

    @property
    def sparsity(self) -> float:
        return 1 - self.count / prod(self.shape)


@dataclass
class Plan:
    """What one method would keep of one model.

    Attributes:
        method, config: the registered name and its settings, as JSON values.
        sites: site name -> what is kept there, in the order of the walk.
        score_digest: sha256 over all scores: equal digests mean equal evidence.
        updates: the method changes kept weights too, so the plan alone does not reproduce its result.
        notes: what the user should know (an expert without tokens, damping that was raised, ...).
        errors: site name -> relative output error ||(W' - W) X|| / ||W X||, where the method knows it.
        made: how it was made: calibration, feed, versions.
    """

    method: str
    config: dict[str, Any]
    sites: dict[str, Kept] = field(default_factory=dict)
    score_digest: str = ""
    updates: bool = False
    notes: list[str] = field(default_factory=list)
    errors: dict[str, float] = field(default_factory=dict)
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """Fraction cut of all units of all sites."""
        total = sum(prod(kept.shape) for kept in self.sites.values())
        return 1 - sum(kept.count for kept in self.sites.values()) / total if total else 0.0

    def digest(self) -> str:
        """sha256 over every site's name and bits: two plans that agree keep the same units."""
        names = torch.tensor(list("\n".join(self.sites).encode()), dtype=torch.uint8)
        return digest(names, *(kept.bits for kept in self.sites.values()))

    def agreement(self, other: Plan) -> dict[str, float]:
        """How far two plans agree on the sites they share.

        Returns:
            {"positions": fraction of units with the same fate, "jaccard": |both kept| / |either kept|}.
        """
        shared = self.sites.keys() & other.sites.keys()
        if not shared:
            raise NoMatch("the two plans share no site", where="plan", fix="compare plans of one model")
        same = both = either = units = 0
        for name in shared:
            a, b = self.sites[name].mask(), other.sites[name].mask()
            if a.shape != b.shape:
                raise BadInput(f"shapes {tuple(a.shape)} and {tuple(b.shape)} differ", where=name)
            same += int((a == b).sum())
            both += int((a & b).sum())
            either += int((a | b).sum())
            units += a.numel()
        return {"positions": same / units, "jaccard": both / either if either else 1.0}

    def merge(self, other: Plan) -> Plan:
        """A plan that cuts what either cuts (masks are and-ed where both name a site)."""
        sites = dict(self.sites)
        for name, kept in other.sites.items():
            mine = sites.get(name)
            if mine is not None and mine.shape != kept.shape:
                raise BadInput(
                    f"shapes {mine.shape} and {kept.shape} differ", where=name, fix="merge plans of one model"
                )
            sites[name] = kept if mine is None else Kept.of(mine.mask() & kept.mask())
        return Plan(
            method=f"{self.method}+{other.method}",
            config={self.method: self.config, other.method: other.config},
            sites=sites,
            updates=self.updates or other.updates,
            notes=[*self.notes, *other.notes],
            made={"merged": [self.digest(), other.digest()]},
        )

    def expect(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse a model this plan was not made for: every site must be there, with its shape."""
        for name, kept in self.sites.items():
            if name not in shapes:
                raise NoMatch(
                    f"the plan's site {name!r} is not in the model", where="plan", fix=nearest(name, shapes)
                )
            if shapes[name] != kept.shape:
                raise BadInput(f"the plan has {kept.shape}, the model {shapes[name]}", where=name)
