"""How one budget is split over the sites. Pure: shapes or scores in, one sparsity a site out, the total exact.

uniform         the same sparsity everywhere
er, erk         Erdos-Renyi: density of a [out, in, ...] site proportional to sum(shape) / prod(shape)
global_ranking  one ranking over all sites, whatever their number; `by_price` where units cost differently
owl             outlier-weighted: blocks with more outliers keep more, in a band of 2 * lam around the mean
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from secateur.core.select import check_sparsity, cut_count
from secateur.core.units import Site
from secateur.errors import BadInput, Infeasible


def uniform(sites: Sequence[Site], sparsity: float) -> dict[str, float]:
    """The same sparsity at every site."""
    check_sparsity(sparsity)
    return {site.name: sparsity for site in sites}


def erk(sites: Sequence[Site], sparsity: float, kernel: bool = True) -> dict[str, float]:
    """Erdos-Renyi(-kernel) densities; for [out, in] sites ER and ERK agree.

    density_l = eps * sum(shape_l) / prod(shape_l), eps such that the total is met; a site whose density would pass 1
    is left dense and eps solved again (Mocanu 2018; Evci 2020, appendix). With `kernel=False` only out and in count.

    Raises:
        Infeasible: no site is left to cut.
    """
    check_sparsity(sparsity)
    raw = {
        s.name: sum(s.shape if kernel else s.shape[:2]) / prod(s.shape if kernel else s.shape[:2])
        for s in sites
    }
    size = {s.name: s.size for s in sites}
    total_kept = (1 - sparsity) * sum(size.values())
    dense: set[str] = set()
    while True:
        open_sites = [name for name in raw if name not in dense]
        if not open_sites:
            raise Infeasible(
                "every site would have to stay dense", where="allocate", fix="raise the sparsity"
            )
        eps = (total_kept - sum(size[n] for n in dense)) / sum(raw[n] * size[n] for n in open_sites)
        largest = max(raw[n] for n in open_sites)
        if eps * largest <= 1 + 1e-12:
            break
        dense |= {n for n in open_sites if raw[n] == largest}
    return {n: 0.0 if n in dense else max(0.0, 1 - eps * raw[n]) for n in raw}


def global_ranking(
    sites: Sequence[Site], scores: Callable[[], Iterable[tuple[str, Tensor]]], sparsity: float
) -> dict[str, float]:
    """Rank the units of all sites together; return the sparsity each site comes to.

    Exactly floor(total * sparsity + 1e-9) units are cut; ties: the earlier site, then the lower index, is cut first.
    The threshold is found by counting, sixteen bits of the score at a time, so that only one site's scores are in
    memory at once.

    Args:
        sites: all sites, of equal price (see `by_price` for unequal ones).
        scores: called three times; yields (site name, scores as float32) in the order of `sites`.
    """
    check_sparsity(sparsity)
    total = sum(site.size for site in sites)
    cut = cut_count(total, sparsity)
    if not cut:
        return {site.name: 0.0 for site in sites}
    high = torch.zeros(1 << 16, dtype=torch.int64)
    for _, score in scores():
        high += torch.bincount(_ordered(score) >> 16, minlength=1 << 16).cpu()
    top, below = _bin_of(high, cut)
    low = torch.zeros(1 << 16, dtype=torch.int64)
    for _, score in scores():
        keys = _ordered(score)
        low += torch.bincount(keys[(keys >> 16) == top] & 0xFFFF, minlength=1 << 16).cpu()
    bottom, below_low = _bin_of(low, cut - below)
    threshold, ties_cut = (top << 16) | bottom, cut - below - below_low
    out = {}
    for name, score in scores():
        keys = _ordered(score)
        ties = min(ties_cut, int((keys == threshold).sum()))
        ties_cut -= ties
        count = int((keys < threshold).sum()) + ties
        # A quarter of a unit on top survives the trip through a float: floor gives the count back for any size.
        out[name] = (count + 0.25) / score.numel() if count else 0.0
    return out


def _ordered(score: Tensor) -> Tensor:
    """Scores to integers in [0, 2^32) with the same order (the bits of a float32, negatives turned around)."""
    bits = (
        (score.reshape(-1).float() + 0.0).view(torch.int32).to(torch.int64)
    )  # + 0.0 makes -0.0 equal to 0.0
    return torch.where(bits < 0, -1 - (bits & 0x7FFFFFFF), bits) + (1 << 31)


def _bin_of(counts: Tensor, rank: int) -> tuple[int, int]:
    """The bin that holds the unit of this rank (1 = lowest), and how many lie below that bin."""
    upto = counts.cumsum(0)
    index = int(torch.searchsorted(upto, rank))
    return index, int(upto[index] - counts[index])


def by_price(scores: Mapping[str, Tensor], prices: Mapping[str, float], sparsity: float) -> dict[str, Tensor]:
    """Rank units of unequal price by score / price and cut in that order until `sparsity` of the total price is cut.

    Never cuts more than that. For the few thousand units of structured cuts (channels, heads), all in memory.

    Returns:
        bool masks, True = kept. Ties: the earlier site, then the lower index, is cut first.
    """
    check_sparsity(sparsity)
    flat = torch.cat([(score.double() / prices[name]).reshape(-1) for name, score in scores.items()])
    cost = torch.cat(
        [torch.full((s.numel(),), float(prices[n]), dtype=torch.float64) for n, s in scores.items()]
    )
    order = torch.sort(flat, stable=True).indices
    spent = cost[order].cumsum(0)
    keep = torch.ones(len(flat), dtype=torch.bool)
    keep[order[spent <= float(spent[-1]) * sparsity + 1e-9]] = False
    parts = keep.split([score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


def owl(
    outliers: Sequence[float], sparsity: float, lam: float = 0.08, sizes: Sequence[int] | None = None
) -> list[float]:
    """One sparsity a block from its share of outliers (scores above m times the block's mean score).

    density_b = 1 - sparsity + 2 lam z_b - mean(2 lam z), z the shares scaled to [0, 1] (OWL, Yin 2024; sheet dsa).
    The mean over the blocks, weighted by their `sizes`, is exactly `sparsity`; where a block would be cut by less than
    0 or by more than 0.99, the whole band is narrowed.
    """
    check_sparsity(sparsity)
    shares = torch.tensor(outliers, dtype=torch.float64)
    if not len(shares) or not torch.isfinite(shares).all():
        raise BadInput("outlier shares must be finite, one a block", where="owl")
    spread = float(shares.max() - shares.min())
    z = (shares - shares.min()) / spread if spread > 0 else torch.zeros_like(shares)
    weights = torch.ones_like(z) if sizes is None else torch.tensor(sizes, dtype=torch.float64)
    band = 2 * lam * (z - (z * weights).sum() / weights.sum())  # what each block keeps more than the mean
    most, least = float(band.max()), float(band.min())
    room = min(
        1.0, sparsity / most if most > 0 else 1.0, max(0.0, 0.99 - sparsity) / -least if least < 0 else 1.0
    )
    return [max(0.0, sparsity - room * float(b)) for b in band]
