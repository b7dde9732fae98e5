"""Packed matrices of every kind and dtype for the runtime's tests, and the slow product they are compared with.

Tolerances: SUMS times the sum of |w| |x| over what is kept (float32 sums of a few hundred terms, in any order; x as
whole numbers loses at most 2^-20 of its usual entry, with random sign). bfloat16 results: half a unit in the last of 8
bits besides, and with whole-number weights DIGITS of the usual entry of x (at most the mean), with random sign.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from secateur.core.select import NM
from secateur.io.pack import pack_bitmask, pack_blocks, pack_dense, pack_nm
from secateur.io.packed import Packed, kept_of, unpack, untiled
from secateur.runtime import library

SUMS = 3e-6
DIGITS = 2**-12

DTYPES = (torch.float32, torch.bfloat16, torch.int8)
KINDS = ("bitmask", "1:4", "2:4", "3:4", "4:4", "1x4", "16x1", "dense")


def fits(kind: str, columns: int) -> bool:
    return columns % 4 == 0 or kind in ("bitmask", "16x1", "dense")


def mask_of(kind: str, rows: int, columns: int, density: float, generator: torch.Generator) -> Tensor:
    """bool [rows, columns] in the pattern of this kind, about `density` of it True (N:4: exactly N/4)."""
    if ":" in kind:
        return NM(int(kind[0]), 4).select(torch.rand(rows, columns, generator=generator))
    tall, wide = {"1x4": (1, 4), "16x1": (16, 1)}.get(kind, (1, 1))
    tiles = torch.rand(-(-rows // tall), -(-columns // wide), generator=generator) < density
    return tiles.repeat_interleave(tall, 0).repeat_interleave(wide, 1)[:rows, :columns]


def pack(kind: str, weight: Tensor, mask: Tensor, **how: object) -> Packed:
    """`weight` cut by `mask` in one of KINDS, or int4."""
    if kind == "dense":
        return pack_dense(weight, **how)  # type: ignore[arg-type]
    if kind == "int4":
        return pack_dense(weight, bits=4, **how)  # type: ignore[arg-type]
    if kind == "bitmask":
        return pack_bitmask(weight, mask, **how)  # type: ignore[arg-type]
    if ":" in kind:
        return pack_nm(weight, int(kind[0]), mask, **how)  # type: ignore[arg-type]
    return pack_blocks(weight, kind, mask, **how)  # type: ignore[arg-type]


def every(rows: int, columns: int, density: float = 0.5, seed: int = 0) -> Iterator[tuple[str, Packed]]:
    """A name and a matrix for each kind, dtype, group and dtype of scales that `columns` allows."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    groups = [group for group in (32, 64, 128) if columns % group == 0]
    for kind in KINDS:
        if not fits(kind, columns):
            continue
        mask = mask_of(kind, rows, columns, density, generator)
        for dtype in (torch.float32, torch.bfloat16):
            yield f"{kind} {dtype}", pack(kind, weight, mask, dtype=dtype)
        for group in (0, *groups):
            for scales in (torch.float32, torch.bfloat16):
                how = {"dtype": torch.int8, "group": group, "scale_dtype": scales}
                yield f"{kind} int8 {group} {scales}", pack(kind, weight, mask, **how)
    for group in groups:
        yield f"int4 {group}", pack("int4", weight, weight != 0, group=group)


def kept_entries(packed: Packed) -> Tensor:
    """bool [R, C], True where the packed matrix holds an entry."""
    if packed.kind == "dense":
        return torch.ones(packed.shape, dtype=torch.bool)
    kept = kept_of(packed)
    if packed.kind in ("1x4", "16x1"):
        wide = 4 if packed.kind == "1x4" else 16
        kept = untiled(kept.unsqueeze(2).expand(-1, -1, wide), packed.kind, packed.shape[0])
    return kept


def slow(packed: Packed, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The product in float64, entry by kept entry, and each sum's size: |w| |x| over what is kept, and |bias|."""
    weight, kept = unpack(packed).double(), kept_entries(packed)
    flat = x.double().reshape(math.prod(x.shape[:-1]), packed.shape[1])
    terms = torch.where(kept, weight * flat.unsqueeze(1), 0.0)
    y, size = terms.sum(2), terms.abs().sum(2)
    if bias is not None:
        y, size = y + bias.double(), size + bias.double().abs()
    shape = (*x.shape[:-1], packed.shape[0])
    return y.reshape(shape), size.reshape(shape)


def paths() -> list[str]:
    """What this processor has; torch stands for no kernels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", library.KernelsMissing)
        return ["torch", *library.features()["paths"]]


def off(packed: Packed, x: Tensor, bias: Tensor | None, y: Tensor) -> float:
    """The largest error of y beside the oracle, in tolerances of the head; NaN where something is not finite."""
    wanted, size = slow(packed, x, bias)
    assert y.dtype == x.dtype and y.shape == wanted.shape
    slack = SUMS * size + 1e-30
    if x.dtype != torch.float32:
        slack = slack + wanted.abs() * (2**-8 if x.dtype == torch.bfloat16 else 2**-11) + 1e-7
    if x.dtype == torch.bfloat16 and packed.scales is not None and math.prod(x.shape[:-1]) == 1:
        length = torch.where(kept_entries(packed), unpack(packed).double(), 0.0).norm(dim=1)
        slack = slack + 5 * DIGITS * length * float(x.double().abs().mean())
    error = (y.double() - wanted).abs() / slack
    return float(error.max()) if error.numel() else 0.0
