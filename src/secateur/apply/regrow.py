"""What sparse training starts from and how its connections move: random masks of exact counts, drop and grow.

    shares     how sparse each layer is: uniform, uniform_plus, er, erk, erk_plus
    cuts       those shares as whole numbers whose sum is exactly floor(N * sparsity + 1e-9)
    move       of one layer: the `count` smallest |w| among the active go, the `count` highest scores among all that are
               then free come; a connection that goes and comes back in one move keeps its value

A connection that comes in was cut until now, so its weight and the optimiser's moments are 0 (apply/pruner.py keeps
them so); nothing has to be reset. Ties: the lowest index is dropped first and grown last, as everywhere.

Sources: Mocanu 2018 (ER); Evci 2020 (ERK, drop and grow); Liu 2022 (uniform+, ERK+, with the sheet's exact remainders).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from secateur.apply.training import Masks, Net
from secateur.core import allocate
from secateur.core.select import check_sparsity, cut_count, keep_top
from secateur.core.units import Site
from secateur.errors import BadInput, Infeasible, nearest

SHARES = ("uniform", "uniform_plus", "er", "erk", "erk_plus")
_LEAST_LAST = 0.2  # uniform_plus: density of the last linear layer, at least


def random_start(net: Net, sparsity: float, layers: str) -> Masks:
    """Random masks of exact counts for `layers`, one of SHARES: what SET, RigL and GraNet start from."""
    shares = layer_sparsities(net.sites, sparsity, layers)
    return random_masks(net.sites, exact_cuts(net.sites, shares, sparsity), net.generator(), net.notes)


def layer_sparsities(
    sites: Sequence[Site], sparsity: float, layers: str, last_density: float = 1.0
) -> dict[str, float]:
    """The sparsity of each layer; their mean, weighted by size, is `sparsity`.

    Args:
        layers: uniform; er or erk (density proportional to sum(shape) / prod(shape), out and in alone or with kernel);
            uniform_plus (first convolution dense, last linear layer at least 20% dense, the rest alike);
            erk_plus (last linear layer at `last_density`, the rest erk).

    Raises:
        BadInput: no such word.   Infeasible: the layers that stay (nearly) dense alone are over the budget.
    """
    if layers not in SHARES:
        raise BadInput(f"{layers!r} is no way to share", where="layers", fix=nearest(str(layers), SHARES))
    if check_sparsity(sparsity) == 0:  # ERK's loop has nothing left to solve for
        return {site.name: 0.0 for site in sites}
    if layers == "uniform":
        return allocate.uniform(sites, sparsity)
    if layers in ("er", "erk"):
        return allocate.erk(sites, sparsity, kernel=layers == "erk")
    last = last_linear(sites)
    if layers == "erk_plus":
        held = {last: last_density} if last else {}
        rest = [site for site in sites if site.name not in held]
        cut = max(0.0, 1 - _left(sites, sparsity, held))
        found = layer_sparsities(rest, cut, "erk")
        return {site.name: 1 - held[site.name] if site.name in held else found[site.name] for site in sites}
    first = next((site.name for site in sites if len(site.shape) > 2), None)
    held = {first: 1.0} if first else {}
    left = _left(sites, sparsity, held)
    if last and left < _LEAST_LAST:
        held[last] = _LEAST_LAST
        left = _left(sites, sparsity, held)
    return {site.name: 1 - held.get(site.name, left) for site in sites}


def last_linear(sites: Sequence[Site]) -> str | None:
    """Name of the last layer whose weight has two dimensions: the classifier."""
    return next((site.name for site in reversed(sites) if len(site.shape) == 2), None)


def exact_cuts(sites: Sequence[Site], shares: Mapping[str, float], sparsity: float) -> dict[str, int]:
    """How many to cut in each layer: floor(n * share), and one more where most was lost to the floor, until the sum is
    floor(N * sparsity + 1e-9). A layer keeps at least one weight, and others make up for it.

    Raises:
        Infeasible: fewer weights than layers would be kept.
    """
    wanted = cut_count(sum(site.size for site in sites), sparsity)
    if wanted > sum(site.size - 1 for site in sites):
        what = f"fewer than one weight a layer would be kept at sparsity {sparsity:g}"
        raise Infeasible(what, where="sparsity", fix="lower it: no layer may be empty")
    cuts = {site.name: min(cut_count(site.size, shares[site.name]), site.size - 1) for site in sites}
    lost = sorted(
        sites, key=lambda site: cuts[site.name] - site.size * shares[site.name]
    )  # stable: the first wins
    while missing := wanted - sum(cuts.values()):
        roomy = [site.name for site in lost if cuts[site.name] < site.size - 1]
        for name in roomy[:missing]:
            cuts[name] += 1
    return cuts


def random_masks(
    sites: Sequence[Site], cuts: Mapping[str, int], generator: torch.Generator, notes: list[str]
) -> Masks:
    """Masks with exactly `cuts` random places cut in each layer, drawn in the order of the sites."""
    masks = {}
    for site in sites:
        mask = torch.ones(site.size, dtype=torch.bool)
        mask[torch.randperm(site.size, generator=generator)[: cuts[site.name]]] = False
        masks[site.name] = mask.view(site.shape)
        if cuts[site.name] == site.size - 1 and site.size > 1:
            notes.append(f"{site.name}: one weight of {site.size} is left")
    return masks


def move(weight: Tensor, mask: Tensor, count: int, growth: Tensor) -> Tensor:
    """The mask after `count` connections moved; as many are active as before.

    Args:
        weight, growth: in the shape of the mask; `growth` is finite, the highest come in.
        count: 0 <= count <= active connections.
    """
    if count <= 0:
        return mask
    kept = keep_top(weight.detach().abs().view(1, -1), count, mask.view(1, -1))
    free = ~kept
    comes = keep_top(growth.reshape(1, -1), int(torch.count_nonzero(free)) - count, free)
    return (kept | comes).view_as(mask)


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """From `start` at step 0 to `end` at step `steps`: end + (start - end) (1 + cos(pi t / T)) / 2."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2


def check_moves(fraction: float, every: int, where: str = "fraction") -> None:
    """Refuse a fraction to move outside [0, 1] and an `every` that is no count of steps."""
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 <= fraction <= 1:
        raise BadInput(f"{fraction!r} is not a fraction in [0, 1]", where=where, fix="0.3 moves three in ten")
    if type(every) is not int or every < 1:
        raise BadInput(f"{every!r} steps", where="every", fix="give at least 1")


def _left(sites: Sequence[Site], sparsity: float, held: Mapping[str, float]) -> float:
    """The density of all other layers once `held` ones have theirs."""
    size = {site.name: prod(site.shape) for site in sites}
    total, spent = sum(size.values()), sum(size[name] * density for name, density in held.items())
    rest = total - sum(size[name] for name in held)
    left = ((1 - sparsity) * total - spent) / rest if rest else -1.0
    if not 0 < left <= 1 + 1e-9:
        what = f"{', '.join(held)} alone would hold {spent / total:.1%} of the weights"
        raise Infeasible(
            what, where="layers", fix=f"sparsity {sparsity:g} cannot be shared so; share otherwise"
        )
    return left
