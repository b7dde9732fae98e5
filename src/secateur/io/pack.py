"""Weights into the layouts of packed.py: cut ones by their mask, rounded ones with their scales."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from secateur.core.select import NM
from secateur.errors import BadInput, one_of
from secateur.io.packed import FLOATS, MOST, Packed, bands, check_group, tiles_of, untiled

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def pack_bitmask(
    weight: Tensor,
    mask: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    group: int = 0,
    scales: Tensor | None = None,
    scale_dtype: torch.dtype = torch.float32,
) -> Packed:
    """`weight` [R, C], cut where `mask` [R, C] is False (without a mask: where no bit is set) -> bitmask.

    Args:
        dtype: of the values: float32 or bfloat16 (kept bit for bit where the weight has it), int8 (rounded to the
            nearest multiple of a scale: the largest magnitude of the row or group, divided by 127).
        group: int8: columns that share a scale; 0: the row.
        scales: `weight` is int8 already and these are its scales, [R] or [R, C/group].

    Raises:
        BadInput: a shape, dtype or group that does not fit, NaN in scales, NaN or Inf to be rounded.
    """
    kept = _kept(weight, mask)
    values, scales = _values(weight, kept, dtype, group, scales, scale_dtype)
    return Packed("bitmask", _shape(weight), values[kept], _to_bits(kept), _starts(kept), scales, group=group)


def pack_nm(
    weight: Tensor,
    n: int,
    mask: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    group: int = 0,
    scales: Tensor | None = None,
    scale_dtype: torch.dtype = torch.float32,
) -> Packed:
    """The same for a matrix with at most `n` kept of every 4 consecutive columns.

    Raises:
        BadInput: also where more than n of some 4 are kept.
    """
    rows, columns = _shape(weight)
    if type(n) is not int or not 1 <= n <= 4 or columns % 4:
        raise BadInput(
            f"{n}:4 does not fit {columns} columns", where="nm", fix="N is 1 to 4 and columns come in fours"
        )
    kept = _kept(weight, mask)
    if over := not_nm(kept, n):
        raise BadInput(over, where="mask")
    # what is kept ranks first, then the cut from the left: NM's own order, with ties cut from the left turned round
    filled = NM(n, 4).select(2.0 * kept.flip(1)).flip(1)
    values, scales = _values(weight, kept, dtype, group, scales, scale_dtype)
    zeroed = torch.where(kept, values, torch.zeros((), dtype=values.dtype))
    return Packed(
        "nm",
        (rows, columns),
        zeroed[filled].view(rows, columns // 4 * n),
        _to_bits(filled),
        None,
        scales,
        n,
        group,
    )


def pack_blocks(
    weight: Tensor,
    kind: str,
    mask: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
    group: int = 0,
    scales: Tensor | None = None,
    scale_dtype: torch.dtype = torch.float32,
) -> Packed:
    """The same for tiles that are kept or cut as a whole: `kind` 1x4 or 16x1 (rows x columns).

    A given mask must be one tile after another all True or all False; without one a tile stays where any bit is set.

    Raises:
        BadInput: also for a mask that splits a tile, and for columns that do not come in fours (1x4).
    """
    one_of(kind, ("1x4", "16x1"), "kind of block")
    rows, columns = _shape(weight)
    if kind == "1x4" and columns % 4:
        raise BadInput(f"tiles of 1x4 do not divide {columns} columns", where="1x4")
    kept = tiles_of(_kept(weight, mask), kind)
    tiles = kept.any(2)
    if (
        mask is not None
        and not torch.equal(tiles, kept.all(2))
        and not _only_padding(kept, tiles, rows, kind)
    ):
        raise BadInput(f"the mask keeps a part of a tile of {kind}", where="mask")
    whole = untiled(tiles.unsqueeze(2).expand(kept.shape), kind, rows)
    values, scales = _values(weight, whole, dtype, group, scales, scale_dtype)
    if kind == "16x1" and group and scales is not None:
        scales = bands(scales).transpose(1, 2).contiguous()
    return Packed(
        kind,
        (rows, columns),
        tiles_of(values, kind)[tiles],
        _to_bits(tiles),
        _starts(tiles),
        scales,
        group=group,
    )


def pack_dense(
    weight: Tensor,
    *,
    dtype: torch.dtype | None = None,
    bits: int | None = None,
    group: int = 0,
    scales: Tensor | None = None,
    scale_dtype: torch.dtype = torch.float32,
) -> Packed:
    """Every entry of `weight` [R, C]; `bits` 4 for int4 (-7 .. 7, a group of 32, 64 or 128), 8 for int8."""
    if bits is not None:
        one_of(str(bits), ("4", "8"), "number of bits")
        dtype = torch.uint8 if bits == 4 else torch.int8
    if dtype == torch.uint8 and not group:
        raise BadInput("int4 needs a group of 32, 64 or 128 columns", where="group")
    shape = _shape(weight)
    values, scales = _values(
        weight, torch.ones_like(weight, dtype=torch.bool), dtype, group, scales, scale_dtype
    )
    if dtype == torch.uint8:
        halves = (values + 8).to(torch.uint8)
        values = halves[:, 0::2] | halves[:, 1::2] << 4
    return Packed("dense", shape, values.contiguous(), None, None, scales, group=group)


def not_nm(kept: Tensor, n: int) -> str:
    """Where bool `kept` [R, C] has more than n of 4 consecutive columns, in words; "" where nowhere."""
    fours = kept.view(len(kept), kept.shape[1] // 4, 4)
    if not (over := fours.sum(2) > n).any():
        return ""
    row, four = (int(i) for i in over.nonzero()[0])
    return f"not {n}:4: row {row} keeps {int(fours[row, four].sum())} of columns {4 * four} to {4 * four + 3}"


def _values(
    weight: Tensor,
    kept: Tensor,
    dtype: torch.dtype | None,
    group: int,
    scales: Tensor | None,
    scale_dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """The weight in the dtype it is stored in, whole numbers with their scales."""
    dtype = dtype or weight.dtype
    rows, columns = weight.shape
    if dtype in FLOATS and weight.dtype.is_floating_point:
        if group or scales is not None:
            raise BadInput(f"{dtype} takes no scales and no group", where="dtype", fix="use int8")
        return weight.detach().to(dtype), None
    if dtype not in MOST:
        raise BadInput(
            f"{weight.dtype} cannot be packed as {dtype}", where="dtype", fix="use float32, bfloat16 or int8"
        )
    check_group(group, columns)
    width = group or columns
    if scales is not None:
        wanted = (rows, columns // group) if group else (rows,)
        if weight.dtype != torch.int8 or tuple(scales.shape) != wanted:
            raise BadInput(
                f"of shape {list(scales.shape)} they do not fit {weight.dtype} {list(weight.shape)}",
                where="scales",
            )
        if scales.dtype not in FLOATS or not bool(scales.isfinite().all()):
            raise BadInput("they must be float32 or bfloat16, and finite", where="scales")
        return weight.detach(), scales.detach().contiguous()
    if scale_dtype not in FLOATS:
        raise BadInput(f"they cannot be {scale_dtype}", where="scales", fix="use float32 or bfloat16")
    exact = torch.where(kept, weight.detach().float(), 0.0)
    if not bool(exact.isfinite().all()):
        raise BadInput("NaN or Inf cannot be rounded to whole numbers", where="weight")
    most = MOST[dtype]
    grouped = exact.view(rows, columns // width if width else 1, width)
    peak = grouped.abs().amax(2) if width else exact.new_zeros(rows, 1)
    scale = (peak / most).to(scale_dtype)
    divisor = torch.where(scale > 0, scale.float(), 1.0)
    whole = (grouped / divisor.unsqueeze(2)).round().clamp(-most, most).to(torch.int8)
    return whole.view(rows, columns), scale if group else scale.view(rows)


def _shape(weight: Tensor) -> tuple[int, int]:
    if weight.dim() != 2:
        raise BadInput(f"only a matrix can be packed, not {weight.dim()} dimensions", where="weight")
    return weight.shape[0], weight.shape[1]


def _kept(weight: Tensor, mask: Tensor | None) -> Tensor:
    _shape(weight)
    if mask is None:
        integer = _BITS.get(weight.element_size())
        if integer is None:
            raise BadInput(f"{weight.dtype} cannot be packed", where="weight", fix="use float32 or bfloat16")
        return weight.detach().contiguous().view(integer) != 0
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        raise BadInput(
            f"the mask is {mask.dtype} {list(mask.shape)}, not bool {list(weight.shape)}", where="mask"
        )
    return mask.contiguous()


def _to_bits(kept: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(kept.cpu().numpy(), axis=1, bitorder="little")).to(kept.device)


def _starts(kept: Tensor) -> Tensor:
    counts = kept.sum(1)
    return counts.cumsum(0) - counts


def _only_padding(kept: Tensor, tiles: Tensor, rows: int, kind: str) -> bool:
    """Whether all that a mask leaves out of kept tiles are the rows that fill the last band."""
    return bool(
        (untiled(kept, kind, rows) == untiled(tiles.unsqueeze(2).expand(kept.shape), kind, rows)).all()
    )
