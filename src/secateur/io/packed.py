"""Packed weights: what lies on disk and what the kernels of runtime/kernels multiply. Pure tensors in and out.

kind      values                         mask (bits, little end first)      offsets            pattern
bitmask   [kept], row after row          uint8 [R, ceil(C/8)], entries      int64 [R]          any
nm        [R, C/4 * n]                   uint8 [R, ceil(C/8)], entries      none               n kept of every 4
1x4       [tiles, 4], row after row      uint8 [R, ceil(C/32)], tiles       int64 [R]          4 columns of a row
16x1      [tiles, 16], band after band   uint8 [ceil(R/16), ceil(C/8)]      int64 [ceil(R/16)] 16 rows of a column
dense     [R, C]; int4: uint8 [R, C/2]   none                               none               nothing cut

Offsets: entries (tiles) before each row (band). `bitmask` is what io/sparse.py stores, so such a file runs as it lies.
Values are float32, bfloat16, int8, or int4 (dense only: the even column in the low half of a byte, plus 8). int8 and
int4 have scales, float32 or bfloat16: [R], or [R, C/group] where `group` columns share one; for 16x1 with groups
[ceil(R/16), C/group, 16]. An entry is its whole number times its scale. A last band of fewer than 16 rows is filled
with zeros.

nm holds exactly n of every 4: where fewer are kept, the first cut ones are held as zeros, and count as kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from secateur.errors import BadInput, Damaged, one_of

KINDS = ("bitmask", "nm", "1x4", "16x1", "dense")
GROUPS = (0, 32, 64, 128)
FLOATS = (torch.float32, torch.bfloat16)
MOST = {torch.int8: 127, torch.uint8: 7}  # the largest whole number; uint8 holds two of int4
_BYTE = np.arange(256, dtype=np.uint8)
_COUNT = np.array([byte.bit_count() for byte in range(256)], dtype=np.uint8)


@dataclass(frozen=True)
class Form:
    """A layout without its tensors; `count` is values' first length: entries (bitmask), tiles (blocks), else rows."""

    kind: str
    shape: tuple[int, int]
    dtype: torch.dtype
    count: int = 0
    n: int = 0
    group: int = 0
    scales: torch.dtype | None = None

    def specs(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """dtype and shape of each tensor, by its name in `Packed`."""
        (rows, columns), byte = self.shape, torch.uint8
        bands, eighth = -(-rows // 16), -(-columns // 8)
        values, mask, starts = {
            "bitmask": ((self.count,), (rows, eighth), rows),
            "nm": ((rows, columns // 4 * self.n), (rows, eighth), None),
            "1x4": ((self.count, 4), (rows, -(-columns // 32)), rows),
            "16x1": ((self.count, 16), (bands, eighth), bands),
            "dense": ((rows, columns // 2 if self.dtype == byte else columns), None, None),
        }[self.kind]
        scales: tuple[int, ...] = (rows, columns // self.group) if self.group else (rows,)
        if self.group and self.kind == "16x1":
            scales = (bands, columns // self.group, 16)
        return {
            "values": (self.dtype, values),
            **({} if mask is None else {"mask": (byte, mask)}),
            **({} if starts is None else {"offsets": (torch.int64, (starts,))}),
            **({} if self.scales is None else {"scales": (self.scales, scales)}),
        }

    @property
    def bytes(self) -> int:
        return sum(math.prod(shape) * dtype.itemsize for dtype, shape in self.specs().values())


@dataclass(frozen=True)
class Packed:
    """A matrix [R, C] = `shape` in one of the layouts above; `n` for nm, `group` 0 where a row shares a scale."""

    kind: str
    shape: tuple[int, int]
    values: Tensor
    mask: Tensor | None = None
    offsets: Tensor | None = None
    scales: Tensor | None = None
    n: int = 0
    group: int = 0

    @property
    def form(self) -> Form:
        scales = None if self.scales is None else self.scales.dtype
        return Form(self.kind, self.shape, self.values.dtype, len(self.values), self.n, self.group, scales)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors there are, by name; with kind, shape, n and group they are all of it."""
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def words(self) -> str:
        """Such as `bitmask float32` or `2:4 int8 by 64`."""
        dtype = str(self.values.dtype).removeprefix("torch.").replace("uint8", "int4")
        pattern = f"{self.n}:4" if self.kind == "nm" else self.kind
        return f"{pattern} {dtype}" + (f" by {self.group}" if self.group else "")


def unpack(packed: Packed) -> Tensor:
    """The matrix [R, C]: bit for bit in its dtype; int8 and int4 as float32, each whole number times its scale."""
    rows, columns = packed.shape
    values = packed.values
    if packed.kind == "dense":
        if values.dtype == torch.uint8:
            values = torch.stack((values & 15, values >> 4), 2).view(rows, columns).to(torch.int8) - 8
        return _scaled(values, packed)
    kept = kept_of(packed)
    if packed.kind in ("1x4", "16x1"):
        tiles = torch.zeros((*kept.shape, values.shape[1]), dtype=values.dtype, device=values.device)
        tiles[kept] = values
        return _scaled(untiled(tiles, packed.kind, rows).contiguous(), packed)
    out = torch.zeros(rows, columns, dtype=values.dtype, device=values.device)
    out[kept] = values.view(-1)
    return _scaled(out, packed)


def kept_of(packed: Packed) -> Tensor:
    """bool, True where an entry (bitmask, nm) or a tile is kept; [R, C], [R, C/4] or [ceil(R/16), C]."""
    assert packed.mask is not None
    width = packed.shape[1] // 4 if packed.kind == "1x4" else packed.shape[1]
    places = torch.arange(8, dtype=torch.uint8, device=packed.mask.device)
    bits = (packed.mask.unsqueeze(2) >> places & 1).flatten(1)
    return bits[:, :width].bool()


def check(packed: Packed, where: str = "") -> None:
    """Refuse what does not fit together, as a damaged file would have it: shapes, dtypes, bits, offsets, scales.

    Reads the masks and the scales, not the values; the kernels trust what has passed here.

    Raises:
        Damaged: what does not fit; `where` is put in front of the line.
    """
    one_of(packed.kind, KINDS, "kind of packed matrix")
    check_form(packed.form, where)
    if any(not tensor.is_contiguous() for tensor in packed.tensors.values()):
        raise Damaged("a part is not contiguous", where=where)
    expected = packed.form.specs()
    for name in sorted({*expected, *packed.tensors}):
        tensor = packed.tensors.get(name)
        found = None if tensor is None else (tensor.dtype, tuple(tensor.shape))
        if found != expected.get(name):
            what = f"{name} of packed {packed.kind} {list(packed.shape)}"
            raise Damaged(f"{what}: {_said(found)}, not {_said(expected.get(name))}", where=where)
    if packed.scales is not None and not bool(packed.scales.isfinite().all()):
        raise Damaged("NaN or Inf in scales", where=where)
    if packed.mask is not None:
        _check_bits(packed, packed.mask.cpu().numpy(), where)


def check_form(form: Form, where: str = "") -> None:
    """Refuse a layout that there cannot be, before its tensors are looked at.

    Raises:
        Damaged: as for `check`.
    """
    (_, columns), dtype = form.shape, form.dtype
    if dtype not in (*FLOATS, *MOST):
        raise Damaged(f"packed values of {dtype}", where=where)
    if dtype == torch.uint8 and not (form.kind == "dense" and form.group):
        raise Damaged("int4 is for dense matrices with groups", where=where)
    if form.kind in ("nm", "1x4") and (columns % 4 or (form.kind == "nm" and form.n not in (1, 2, 3, 4))):
        raise Damaged(f"packed {form.kind} of {columns} columns, n {form.n}: not in fours", where=where)
    if (form.scales is None) == (dtype in MOST):
        raise Damaged("scales go with int8 and int4, and with nothing else", where=where)
    if form.scales is not None and form.scales not in FLOATS:
        raise Damaged(f"scales are {form.scales}, not float32 or bfloat16", where=where)
    if form.group not in GROUPS or (form.group and columns % form.group):
        raise Damaged(f"groups of {form.group} do not divide {columns} columns", where=where)


def rows_of(packed: Packed, first: int, last: int) -> Packed:
    """Rows first .. last - 1 (for 16x1 `first` is a multiple of 16), on the same memory but for the offsets."""
    columns = packed.shape[1]
    tall = 16 if packed.kind == "16x1" else 1
    at, end = first // tall, -(-last // tall)
    values, offsets = packed.values[at:end], packed.offsets
    if offsets is not None:
        start = int(offsets[at]) if at < len(offsets) else len(packed.values)
        values = packed.values[start : int(offsets[end]) if end < len(offsets) else len(packed.values)]
        offsets = offsets[at:end] - start
    scales = packed.scales
    if scales is not None:
        scales = scales[at:end] if packed.group else scales[first:last]
    mask = None if packed.mask is None else packed.mask[at:end]
    return replace(
        packed, shape=(last - first, columns), values=values, mask=mask, offsets=offsets, scales=scales
    )


def _check_bits(packed: Packed, mask: np.ndarray, where: str) -> None:
    columns = packed.shape[1] // 4 if packed.kind == "1x4" else packed.shape[1]
    if columns % 8 and mask.size and int(np.bitwise_or.reduce(mask[:, -1])) >> columns % 8:
        raise Damaged("the mask has bits after the last column", where=where)
    if packed.offsets is None:
        both, last = (_COUNT[_BYTE & 15] == packed.n) & (_COUNT[_BYTE >> 4] == packed.n), columns % 8
        if not both[mask[:, : columns // 8]].all() or (last and (_COUNT[mask[:, -1]] != packed.n).any()):
            raise Damaged(f"the mask is not {packed.n}:4", where=where)
        return
    counts = _COUNT[mask].sum(1, dtype=np.int64)
    if not np.array_equal(counts.cumsum() - counts, packed.offsets.cpu().numpy()) or int(counts.sum()) != len(
        packed.values
    ):
        raise Damaged(f"the mask keeps {int(counts.sum())}, values and offsets say otherwise", where=where)


def check_group(group: int, columns: int, where: str = "group") -> None:
    """Refuse, with BadInput, a group that is none or does not divide."""
    if group not in GROUPS or (group and columns % group):
        line = f"groups of {group} do not divide {columns} columns"
        raise BadInput(line, where=where, fix="choose 32, 64, 128, or 0 for the row")


def _said(found: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    return "none" if found is None else f"{str(found[0]).removeprefix('torch.')} {list(found[1])}"


def _scaled(values: Tensor, packed: Packed) -> Tensor:
    scales, (rows, columns) = packed.scales, packed.shape
    if scales is None or not columns:
        return values if scales is None else values.float()
    scales = scales.float()
    if packed.group and packed.kind == "16x1":
        scales = scales.transpose(1, 2).flatten(0, 1)[:rows]
    width = packed.group or columns
    return values * scales.view(rows, columns // width).repeat_interleave(width, 1)


def bands(matrix: Tensor) -> Tensor:
    """[R, C] -> [ceil(R/16), 16, C], filled with zeros."""
    filled = torch.nn.functional.pad(matrix, (0, 0, 0, -len(matrix) % 16))
    return filled.view(len(filled) // 16, 16, matrix.shape[1])


def tiles_of(matrix: Tensor, kind: str) -> Tensor:
    """[R, C] -> [R, C/4, 4] or [ceil(R/16), C, 16]."""
    return (
        matrix.view(len(matrix), matrix.shape[1] // 4, 4) if kind == "1x4" else bands(matrix).transpose(1, 2)
    )


def untiled(tiles: Tensor, kind: str, rows: int) -> Tensor:
    if kind == "1x4":
        return tiles.flatten(1)
    return tiles.transpose(1, 2).flatten(0, 1)[:rows]
