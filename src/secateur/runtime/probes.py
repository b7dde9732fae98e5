"""Seconds of linear layers of some shape, cut and packed in some way, multiplied here and now; for forecasts.

The kernels run on random weights (at most LIMIT entries of one matrix, its time scaled by its rows), on copies that do
not fit in the cache.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from secateur.core.select import NM
from secateur.runtime import choice
from secateur.runtime.linear import PackedLinear, bytes_of, packed_as
from secateur.runtime.sliver import sliver
from secateur.runtime.ways import group_of

LIMIT = 4 << 20  # entries of a probe's matrix
KEPT = 2  # of every 8 columns, of the matrices that others are compared with
LEAST, MOST, SECONDS = 4, 200, 0.25  # turns of a probe: few where they are slow


@dataclass(frozen=True)
class Case:
    """One way to make a model smaller: layout of the cut layers, values of all linear layers, fraction cut; layers that
    are not cut are `dense` in these values, or stay in `torch` as they are."""

    name: str
    kind: str
    values: str
    sparsity: float = 0.0
    channels: float = 0.0
    uncut: str = "dense"

    @property
    def plain(self) -> bool:
        return self.sparsity == self.channels == 0


@dataclass(frozen=True)
class Layer:
    """Linear layers of one shape: how many, whether cut, which side is an MLP's inner width; the head is `last`.

    `rows_of_x`: what they multiply in the model as it is, [1, 1, columns] each."""

    rows: int
    columns: int
    count: int
    cut: bool
    inner: str
    tied: bool
    last: bool
    rows_of_x: Sequence[Tensor] = field(default=(), compare=False)


@dataclass(frozen=True)
class Probe:
    """Seconds of one layer for a row and for a prompt; `call`: for a row, of a matrix as large that keeps KEPT."""

    bytes: int
    token: float
    prompt: float
    spread: float
    call: float


def noise(layers: Sequence[Layer]) -> Tensor:
    """What the weights of all probes of these layers are views of: drawing is slow, so it is done once."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(max(LIMIT, *(16 * layer.columns for layer in layers)), generator=generator)


def probes(
    case: Case, layers: Sequence[Layer], dtype: torch.dtype, length: int, random: Tensor
) -> list[Probe]:
    """One layer of each shape, on weights from `random` (`noise`), for a row and for a prompt of `length`; times are by
    the share of its rows that is probed."""
    made, sizes, shares, calls, ones, lots = [], [], [], [], [], []
    for layer in layers:
        rows, columns = layer.rows, layer.columns
        if case.channels and layer.inner == "rows":
            rows = round(rows * (1 - case.channels) / 16) * 16
        if case.channels and layer.inner == "columns":
            columns = round(columns * (1 - case.channels) / 32) * 32
        probed = rows if rows * columns <= LIMIT else max(16, LIMIT // columns // 16 * 16)
        # of its own: modules are copied, and a copy of a view takes along all that it is a view of
        weight = random[: probed * columns].view(probed, columns).clone()
        module, size = _module(case, layer, weight, dtype)
        made.append(module)
        sizes.append(size)
        shares.append(rows / probed)
        calls.append(sliver(probed, columns, KEPT))
        lot = torch.randn(1, length, columns).to(dtype)
        ones.append([x[..., :columns] for x in layer.rows_of_x] or [lot[:, :1]])
        lots.append([lot[:, :1] if layer.last else lot])
    one = _seconds([*made, *calls], [*ones, *ones])
    many = _seconds(made, lots)
    return [
        Probe(round(size * share), share * low[0], share * high[0], low[1], share * call[0])
        for size, share, low, call, high in zip(
            sizes, shares, one[: len(layers)], one[len(layers) :], many, strict=True
        )
    ]


def _module(case: Case, layer: Layer, weight: Tensor, dtype: torch.dtype) -> tuple[nn.Module, int]:
    rows, columns = weight.shape
    kind = case.kind if case.kind == "torch" or (layer.cut and case.sparsity) else case.uncut
    if kind == "torch":
        made = nn.Linear(columns, rows, bias=False).requires_grad_(False)
        made.weight.data = weight.to(dtype)
        return made.eval(), made.weight.nbytes
    mask = _mask(kind, weight, case.sparsity)
    packed = packed_as(weight, mask, kind=kind, values=case.values, group=group_of(case.values, None))
    return PackedLinear(packed), packed.bytes


def _mask(kind: str, weight: Tensor, sparsity: float) -> Tensor | None:
    if kind == "dense":
        return None
    if ":" in kind:
        return NM(int(kind[0]), 4).select(weight.abs())
    least = statistics.NormalDist().inv_cdf((1 + sparsity) / 2)  # below it lies this share of |x|
    if kind == "16x1":
        return (weight[: -(-len(weight) // 16)].abs() > least).repeat_interleave(16, 0)[: len(weight)]
    if kind == "1x4":
        return (weight[:, ::4].abs() > least).repeat_interleave(4, 1)
    return weight.abs() > least


def _seconds(made: Sequence[nn.Module], xs: Sequence[Sequence[Tensor]]) -> list[tuple[float, float]]:
    """Seconds of a call of each module with its xs in turn (mean of the middle half), and how far apart that half lies.

    They are called one after the other, as in a model, each call timed: the same one again and again would find its
    code, its buffers and the branches it took still there. For one row, on copies that do not fit in the cache.
    """
    size = sum(bytes_of(module) for module in made)
    few = all(x.shape[1] == 1 for some in xs for x in some)
    copies = min(choice.COLD // max(size, 1), choice.COPIES) if few else 0
    sets = [[*made], *([copy.deepcopy(module) for module in made] for _ in range(copies))]
    times: list[list[float]] = [[] for _ in made]
    turns, start = itertools.cycle(sets), time.perf_counter()
    with torch.inference_mode():
        for at in itertools.count():
            if at >= LEAST and (at >= MOST or time.perf_counter() - start > SECONDS):
                break
            for module, some, kept in zip(next(turns), xs, times, strict=True):
                x = some[at % len(some)]
                begun = time.perf_counter()
                module.forward(x)
                kept.append(time.perf_counter() - begun)
    found = []
    for kept in times:
        kept = sorted(kept[1:])
        half = kept[len(kept) // 4 : -(len(kept) // 4) or None]
        middle = statistics.fmean(half)
        found.append((middle, (half[-1] - half[0]) / middle))
    return found
