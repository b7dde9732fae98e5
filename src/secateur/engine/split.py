"""How a job's budget becomes one sparsity a site: the rules of core.allocate, fed with what this model needs them fed.

uniform, er and erk need only shapes. `global` and `owl` rank by scores: the dense model is measured first, in one pass
of its own, and only one site's scores are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from secateur.core import allocate
from secateur.core.budget import Budget
from secateur.core.method import site_sparsity
from secateur.core.scores import finite
from secateur.errors import BadInput
from secateur.signals.norms import InputNorms

if TYPE_CHECKING:
    from secateur.engine.run import Job


def split(job: Job) -> dict[str, float]:
    """The sparsity of every site, by name."""
    wanted = goal(job)
    if job.method.allocate == "owl":
        return _owl(job, wanted)
    if job.method.allocate == "global":
        return _global(job, wanted)
    return site_sparsity(job.method, [site.site for site in job.sites], wanted)


def goal(job: Job) -> float:
    """The sparsity over all sites that meets the method's budget."""
    amount = job.method.sparsity
    if not isinstance(amount, Budget):
        assert isinstance(amount, float)
        return amount
    sites = [site.site for site in job.sites]
    units = sum(site.size for site in sites)
    everything = {id(p): p for p in job.model.parameters()}.values()
    rest = sum(p.numel() for p in everything) - units
    if amount.bytes is not None:  # the sparse format: kept values and one bit a unit
        width = next(p.element_size() for p in everything)
        return amount.resolve(sites, fixed=rest * width + units / 8, unit_cost=width)
    if amount.flops is not None:  # a multiplication and an addition each
        return amount.resolve(sites, fixed=2.0 * rest, unit_cost=2.0)
    return amount.resolve(sites, fixed=rest)


def _global(job: Job, wanted: float) -> dict[str, float]:
    signals: dict[str, Any] = {}
    if job.method.needs is not None:
        for _, found in job.measured(job.method.needs, "rank"):
            signals.update(found)

    def scores() -> Iterator[tuple[str, Tensor]]:
        for block in job.blocks:
            with job.home.block(block):
                for site in block.sites:
                    weight, signal = finite(site.view(), site.name), signals.get(site.name)
                    blind = signal is not None and signal.empty
                    yield site.name, weight.abs() if blind else job.method.score(weight, signal, site.site)

    return allocate.global_ranking([site.site for site in job.sites], scores, wanted)


def _owl(job: Job, wanted: float) -> dict[str, float]:
    if job.calibration is None:
        raise BadInput("owl needs calibration data", where="allocate", fix="pass --calibration")
    signals: dict[str, Any] = {}
    for _, found in job.measured(InputNorms, "outliers"):
        signals.update(found)
    shares: list[float] = []
    sizes = [sum(site.site.size for site in block.sites) for block in job.blocks]
    for block, size in zip(job.blocks, sizes, strict=True):
        with job.home.block(block):
            scores = [site.view().abs().float() * signals[site.name].norm for site in block.sites]
        mean = sum(float(score.sum(dtype=torch.float64)) for score in scores) / max(1, size)
        shares.append(sum(int((score > job.method.owl_m * mean).sum()) for score in scores) / max(1, size))
    parts = allocate.owl(shares, wanted, job.method.owl_lambda, sizes)
    return {site.name: part for block, part in zip(job.blocks, parts, strict=True) for site in block.sites}
