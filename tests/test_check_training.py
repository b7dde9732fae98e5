"""The battery of the methods that cut while a network trains: all registered ones pass, broken ones are caught."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from secateur.apply.training import Masks, Net, Training, keep_largest
from secateur.check import check_method, checks
from secateur.core.method import Card
from secateur.core.units import Unit
from secateur.errors import NoMatch
from secateur.registry import names

CARD = Card(paper="none", unit=Unit.WEIGHT, when="before", criterion="|w|", retrains=True)


@pytest.mark.parametrize("name", names("training"))
def test_every_registered_method_passes(name: str) -> None:
    results = check_method(name)
    assert [r.name for r in results] == list(checks(while_training=True)) and len(results) >= 11
    assert all(r.ok for r in results), "\n".join(str(r) for r in results if not r.ok)


def by_magnitude(net: Net, sparsity: float) -> Masks:
    return keep_largest({n: w.abs() for n, w in net.weights.items()}, dict.fromkeys(net.weights, sparsity))


@dataclass(frozen=True, kw_only=True)
class Sound(Training):
    """Magnitude, once, before training."""

    card = CARD

    def start(self, net: Net) -> Masks:
        return by_magnitude(net, float(self.sparsity))


class TooDense(Sound):
    def start(self, net: Net) -> Masks:
        return by_magnitude(net, float(self.sparsity) / 2)


class Restless(Sound):
    """Says it is static, and is not."""

    def due(self, net: Net) -> bool:
        return net.step == 5

    def revise(self, net: Net) -> Masks:
        return {name: mask.flip(0) for name, mask in net.masks.items()}


class Forgetful(Sound):
    """Depends on what no saved state holds."""

    def due(self, net: Net) -> bool:
        return net.step == 15

    def revise(self, net: Net) -> Masks:
        noise = {name: torch.rand_like(weight) for name, weight in net.weights.items()}
        return keep_largest(noise, dict.fromkeys(noise, float(self.sparsity)))


class Greedy(Sound):
    """Changes the network before it looks whether it may."""

    def __post_init__(self) -> None:  # checks nothing
        return


def test_a_sound_method_of_ones_own_passes() -> None:
    assert all(r.ok for r in check_method(Sound))


@pytest.mark.parametrize(
    "cls, check",
    [
        (TooDense, "as_sparse_as_asked"),
        (Restless, "mask_moves_as_declared"),
        (Forgetful, "resumes_bitwise"),
        (Greedy, "settings_through_json"),
    ],
)
def test_a_broken_method_fails_the_check_that_names_its_fault(cls: Any, check: str) -> None:
    failed = [r.name for r in check_method(cls) if not r.ok]
    assert check in failed


def test_an_unknown_check_is_named() -> None:
    with pytest.raises(NoMatch, match="resumes_bitwise"):
        check_method("gmp", only=["resumes_bitwize"])
