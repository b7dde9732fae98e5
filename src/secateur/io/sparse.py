"""sparse-bitmask: a matrix as one bit for each entry and the entries that are not zero. Pure tensors in, tensors out.

    shape [2] int64 | compressed [kept], row-major | row_offsets [R] int64, how many entries are kept before the row
    bitmask uint8 [R, ceil(C/8)], entry j of a row is bit j % 8 of byte j // 8

Kept is whatever has a bit set, so that -0.0 and every NaN come back as they were. (The layout of compressed-tensors
up to 0.14, which drops the sign of -0.0.) Size at 50%: 1/2 + 1/32 of fp32, 1/2 + 1/16 of bf16, and 8 bytes a row.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from secateur.errors import BadInput, Damaged

PARTS = ("shape", "compressed", "bitmask", "row_offsets")
_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def encode(weight: Tensor) -> dict[str, Tensor]:
    """`weight` [R, C] of any dtype -> its four parts (see the head of this file), on the CPU.

    Raises:
        BadInput: the tensor is not a matrix.
    """
    if weight.dim() != 2:
        raise BadInput(f"only a matrix can be stored sparse, not {weight.dim()} dimensions")
    bits = _bits(weight)
    kept = bits != 0
    counts = np.count_nonzero(kept, axis=1).astype(np.int64)
    return {
        "shape": torch.tensor(weight.shape, dtype=torch.int64),
        "compressed": torch.from_numpy(np.compress(kept.reshape(-1), bits.reshape(-1))).view(weight.dtype),
        "bitmask": torch.from_numpy(np.packbits(kept, axis=1, bitorder="little")),
        "row_offsets": torch.from_numpy(np.cumsum(counts) - counts),
    }


def decode(parts: dict[str, Tensor], where: str = "") -> Tensor:
    """The four parts -> the matrix [R, C], bit for bit.

    Raises:
        Damaged: the parts do not fit one another; `where` is put in front of the line.
    """
    if set(parts) != set(PARTS):
        raise Damaged(f"sparse tensor has the parts {sorted(parts)}, not {sorted(PARTS)}", where=where)
    shape, values, bitmask, offsets = (parts[name] for name in PARTS)
    if shape.dtype != torch.int64 or tuple(shape.shape) != (2,) or bool((shape < 0).any()):
        raise Damaged("sparse tensor's shape is not two whole numbers", where=where)
    rows, columns = (int(v) for v in shape)
    if columns > 1 << 40:  # without rows such a shape costs no bytes and yet overflows
        raise Damaged(f"sparse tensor claims {columns} columns", where=where)
    fits = bitmask.dtype == torch.uint8 and tuple(bitmask.shape) == (rows, -(-columns // 8))
    if not fits or offsets.dtype != torch.int64 or tuple(offsets.shape) != (rows,) or values.dim() != 1:
        raise Damaged(f"sparse tensor's parts do not fit its shape [{rows}, {columns}]", where=where)
    packed = bitmask.numpy()
    if columns % 8 and rows and int(np.bitwise_or.reduce(packed[:, -1])) >> columns % 8:
        raise Damaged("sparse tensor's bitmask has bits after the last column", where=where)
    kept = np.unpackbits(packed, axis=1, count=columns, bitorder="little").view(np.bool_)
    counts = np.count_nonzero(kept, axis=1).astype(np.int64)
    if int(counts.sum()) != values.numel() or not np.array_equal(np.cumsum(counts) - counts, offsets.numpy()):
        raise Damaged(
            f"sparse tensor keeps {values.numel()} values, its bitmask {int(counts.sum())}", where=where
        )
    out = np.zeros((rows, columns), dtype=_bits(values).dtype)
    np.place(out, kept, _bits(values))
    return torch.from_numpy(out).view(values.dtype)


def parts_specs(
    dtype: torch.dtype, rows: int, columns: int, kept: int
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """dtype and shape of each part of a matrix [rows, columns] with `kept` entries, before it is encoded."""
    return {
        "shape": (torch.int64, (2,)),
        "compressed": (dtype, (kept,)),
        "bitmask": (torch.uint8, (rows, -(-columns // 8))),
        "row_offsets": (torch.int64, (rows,)),
    }


def parts_bytes(itemsize: int, rows: int, columns: int, kept: int) -> int:
    """Bytes of the four parts, without the file's header."""
    return 16 + kept * itemsize + rows * -(-columns // 8) + rows * 8


def count_kept(weight: Tensor) -> int:
    """How many entries have a bit set (-0.0 has one)."""
    return int(np.count_nonzero(_bits(weight)))


def _bits(tensor: Tensor) -> np.ndarray:
    integer = _INTEGER.get(tensor.element_size())
    if integer is None:
        raise BadInput(f"{tensor.dtype} cannot be stored sparse")
    return tensor.detach().cpu().contiguous().view(integer).numpy()
