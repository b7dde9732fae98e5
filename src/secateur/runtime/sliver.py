"""A matrix that keeps little or nothing, for measurements: what a call of the kernels costs beside its weights."""

from __future__ import annotations

import numpy as np
import torch

from secateur.io.packed import Packed
from secateur.runtime.linear import PackedLinear


def sliver(rows: int, columns: int, kept: int, dtype: torch.dtype = torch.float32) -> PackedLinear:
    """[rows, columns] in bfloat16, in tiles of 16x1, of which `kept` of every 8 columns are kept, 0 to 8: its time is
    the same for any x."""
    bands, bits = -(-rows // 16), torch.zeros(columns, dtype=torch.bool)
    for first in range(kept):
        bits[first::8] = True
    mask = torch.from_numpy(np.packbits(bits.numpy(), bitorder="little"))
    tiles = int(bits.sum())
    packed = Packed(
        "16x1",
        (rows, columns),
        values=torch.full((bands * tiles, 16), 1e-3, dtype=torch.bfloat16),
        mask=mask.repeat(bands, 1),
        offsets=torch.arange(bands) * tiles,
    )
    packed.values[len(packed.values) - tiles :, rows - 16 * (bands - 1) :] = 0
    return PackedLinear(packed, dtype=dtype).eval()
