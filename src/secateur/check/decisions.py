"""Checks of what a method cuts: exact counts, stable ties, the same answer however the question is put."""

from __future__ import annotations

import time
from itertools import pairwise

import torch
from torch import Tensor

from secateur.check.probe import Probe, Skip, expect, expect_counts, expect_measured
from secateur.core.method import ALLOCATIONS
from secateur.core.plan import Plan
from secateur.core.scores import digest
from secateur.core.select import NM, Blocks, PerLayer, PerRow, cut_count
from secateur.core.units import Site
from secateur.engine.calibrate import Calibration
from secateur.engine.run import FEEDS
from secateur.errors import BadInput

RUNTIME_BOUND = 30.0  # seconds for one site of 512 x 512 on one thread; the methods here need well under one


def exact_counts(probe: Probe) -> None:
    """Every group of every pattern loses exactly floor(n * sparsity + 1e-9) units, and the weights show it."""
    for plain in probe.patterns():
        fixed = hasattr(plain.pattern, "m")
        for sparsity in (None,) if fixed else (1e-12, 0.1, 0.29, 0.5, 0.7, 0.999):
            method = probe.method(pattern=plain.pattern, sparsity=sparsity, allocate="uniform")
            result = probe.run(probe.model(), method)
            assert isinstance(method.sparsity, float)
            for name, kept in result.plan.sites.items():
                expect_counts(kept.mask(), method.pattern, method.sparsity, name)
            expect_measured(result)


def allocations(probe: Probe) -> None:
    """However the sparsity is split over the sites, never more is cut than asked, and hardly less."""
    for allocate in ALLOCATIONS:
        for sparsity in (0.05, 0.5, 0.9):
            try:
                method = probe.method(pattern="layer", allocate=allocate, sparsity=sparsity)
            except BadInput:
                continue
            plan = probe.run(probe.model(), method).plan
            total = sum(kept.mask().numel() for kept in plan.sites.values())
            cut = total - sum(kept.count for kept in plan.sites.values())
            goal = cut_count(total, sparsity)
            slack = 0 if allocate == "global" else len(plan.sites)  # a floor a site
            expect(goal - slack <= cut <= goal, f"{allocate} at {sparsity}: {cut} of {total} cut, not {goal}")


def ties(probe: Probe) -> None:
    """Equal scores are cut from the lowest index on; equal weights on equal inputs still give exact counts."""
    for method in probe.patterns():
        if isinstance(method.pattern, Blocks):
            continue
        keep = method.select(torch.ones(8, 24), method.sparsity)  # type: ignore[arg-type]
        expect_counts(keep, method.pattern, method.sparsity, "equal scores")  # type: ignore[arg-type]
        if isinstance(method.pattern, PerRow | PerLayer):
            flat = keep if isinstance(method.pattern, PerRow) else keep.reshape(1, -1)
            expect(
                (flat[:, 1:] >= flat[:, :-1]).all(),
                f"{method.pattern}: a higher index was cut before a lower one",
            )
        site = Site("layers.0.up", (8, 24))
        weight, x = torch.full((8, 24), 0.5), torch.ones(64, 24)
        cut = probe.cut(weight, x, None, site, pattern=method.pattern, allocate="uniform")
        if not hasattr(method.pattern, "m"):
            expect_counts(cut.keep, method.pattern, 0.5, "equal weights")


def zero_sparsity(probe: Probe) -> None:
    """Sparsity 0 keeps every unit and changes no bit."""
    probe.free()
    for feed in FEEDS:
        model, same = probe.model(), probe.model()
        plan = probe.run(model, probe.method(sparsity=0), feed=feed).plan
        expect(
            plan.sparsity == 0 and all(kept.mask().all() for kept in plan.sites.values()), "a unit was cut"
        )
        for name, tensor in model.state_dict().items():
            expect(torch.equal(tensor, same.state_dict()[name]), f"feed {feed}: {name} changed")


def nested(probe: Probe) -> None:
    """What a lower sparsity cuts, a higher one cuts too (where claimed)."""
    probe.claims("nested")
    probe.free()
    plans = [probe.run(probe.model(), probe.method(sparsity=s)).plan for s in (0.1, 0.3, 0.5, 0.8)]
    for less, more in pairwise(plans):
        for name in less.sites:
            expect((less.sites[name].mask() | ~more.sites[name].mask()).all(), f"{name}: a unit came back")


def sample_order(probe: Probe) -> None:
    """The order of the calibration samples does not matter."""
    if probe.cls.needs is None:
        raise Skip("measures nothing")
    data = probe.data(samples=8)
    turned = Calibration(tuple(data.samples[i] for i in (5, 2, 7, 0, 3, 6, 1, 4)), data.source)
    a, b = (probe.run(probe.model(), data=d, batch=2).plan for d in (data, turned))
    expect(
        a.agreement(b)["positions"] >= 0.9999,
        f"only {a.agreement(b)['positions']:.4%} of the positions agree",
    )


def row_order(probe: Probe) -> None:
    """Permuting the output rows permutes the mask, and the new weights (where claimed)."""
    probe.claims("rows")
    weight, x, bias, site = probe.site()
    order = torch.randperm(24, generator=torch.Generator().manual_seed(3))
    plain, turned = probe.cut(weight, x, bias, site), probe.cut(weight[order], x, bias[order], site)
    expect(torch.equal(turned.keep, plain.keep[order]), "the mask does not follow the rows")
    if plain.weight is not None and turned.weight is not None:
        expect(torch.allclose(turned.weight, plain.weight[order], rtol=1e-3, atol=1e-4), "the weights do not")


def column_order(probe: Probe) -> None:
    """Permuting the inputs, with their columns of the weights, permutes the mask (where claimed)."""
    probe.claims("columns")
    if isinstance(probe.method().pattern, NM | Blocks):
        raise Skip("its pattern groups neighbouring inputs")
    weight, x, bias, site = probe.site()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    plain, turned = probe.cut(weight, x, bias, site), probe.cut(weight[:, order], x[:, order], bias, site)
    expect(torch.equal(turned.keep, plain.keep[:, order]), "the mask does not follow the columns")


def scale(probe: Probe) -> None:
    """Scaling weights and bias by a power of two keeps the mask (where claimed)."""
    probe.claims("scale")
    weight, x, bias, site = probe.site()
    for factor in (0.25, 16.0):
        plain, scaled = probe.cut(weight, x, bias, site), probe.cut(weight * factor, x, bias * factor, site)
        expect(torch.equal(plain.keep, scaled.keep), f"times {factor}, other weights are cut")


def oracle(probe: Probe) -> None:
    """The method equals a slow and plain rendering of its formula, on random sites."""
    if probe.oracle is None:
        raise Skip("no oracle was given: check_method(..., oracle=...)")
    for shape, sparsity in (((24, 16), 0.5), ((5, 12), 0.3), ((16, 8), 0.75)):
        weight, x, bias, site = probe.site(shape)
        cut, method = probe.cut(weight, x, bias, site, sparsity=sparsity), probe.method(sparsity=sparsity)
        wanted = probe.oracle(method, weight, x, 1, bias, sparsity)
        keep, new = wanted if isinstance(wanted, tuple) else (wanted, None)
        expect(torch.equal(cut.keep, keep), f"{shape}: {int((cut.keep != keep).sum())} positions differ")
        if isinstance(new, Tensor):
            same = cut.weight is not None and torch.allclose(cut.weight, new.float(), rtol=1e-3, atol=1e-4)
            expect(same, f"{shape}: the new weights differ")


def runtime(probe: Probe) -> None:
    """One site of 512 x 512 is decided within 30 seconds on one thread."""
    weight, x, bias, site = probe.site((512, 512), tokens=1024)
    torch.set_num_threads(1)
    start = time.perf_counter()
    probe.cut(weight, x, bias, site)
    spent = time.perf_counter() - start
    expect(spent < RUNTIME_BOUND, f"took {spent:.1f} s")


def repeats(probe: Probe) -> None:
    """The same mask with 1, 2 and 8 threads; run again with 1, the same scores and weights to the bit."""
    method = probe.method()
    plans: list[Plan] = []
    bits: list[str] = []
    for threads in (
        1,
        1,
        2,
        8,
    ):  # the values may differ in their last bits with the threads of a matrix product
        torch.set_num_threads(threads)
        result = probe.run(probe.model(), method)
        plans.append(result.plan)
        bits.append(digest(*result.model.state_dict().values()))
    expect(len({plan.digest() for plan in plans}) == 1, "the masks differ")
    expect(plans[0].score_digest == plans[1].score_digest, "the scores' digests differ")
    expect(bits[0] == bits[1], "the weights differ")
    expect(plans[0].config == probe.method().settings(), "the settings changed while it ran")


def batch_split(probe: Probe) -> None:
    """Batches of 1, 4 or 16 samples agree on at least 99.99 % of the positions."""
    if probe.cls.needs is None:
        raise Skip("measures nothing")
    data = probe.data(samples=16)
    for feed in ("none", "block"):
        plans = [probe.run(probe.model(), data=data, feed=feed, batch=size).plan for size in (1, 4, 16)]
        for other in plans[1:]:
            share = plans[0].agreement(other)["positions"]
            expect(share >= 0.9999, f"feed {feed}: only {share:.4%} of the positions agree")


CHECKS = (
    exact_counts,
    allocations,
    ties,
    zero_sparsity,
    nested,
    sample_order,
    row_order,
    column_order,
    scale,
    oracle,
    runtime,
    repeats,
    batch_split,
)
