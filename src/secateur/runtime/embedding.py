"""An embedding whose table is held packed, as io/tensors.py finds it in a folder; drop-in for nn.Embedding.

Where a model's head is tied to its embedding, a `PackedLinear` on the same tensors is the head: they are held once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.io.packed import Packed, rows_of, unpack
from secateur.runtime.linear import PackedLinear


class PackedEmbedding(PackedLinear):
    """x, ids [...] -> their rows [..., columns] in `dtype`; rows are expanded one by one, the table never is.

    Takes what PackedLinear takes, and raises what it raises; an id outside the table is an IndexError.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows = rows_at(self.packed, x.flatten()).to(self.dtype)
        return rows.view(*x.shape, self.in_features)

    def dense(self) -> nn.Module:
        made: Any = nn.Embedding(self.out_features, self.in_features, device="meta")
        made.weight = nn.Parameter(self._weight(), requires_grad=False)
        return made.eval()


def rows_at(packed: Packed, ids: Tensor) -> Tensor:
    """The rows [n, C] of these numbers [n]: in the dtype of the values, whole numbers times their scales."""
    if packed.kind == "dense":
        scales = packed.scales if packed.scales is None else packed.scales.index_select(0, ids)
        values = packed.values.index_select(0, ids)
        return unpack(replace(packed, shape=(len(ids), packed.shape[1]), values=values, scales=scales))
    tall = 16 if packed.kind == "16x1" else 1
    found = [packed.values.new_zeros(0, packed.shape[1])]
    for row in ids.tolist():
        if not 0 <= row < packed.shape[0]:
            raise IndexError(f"row {row} of {packed.shape[0]}")
        first = row // tall * tall
        found.append(unpack(rows_of(packed, first, min(first + tall, packed.shape[0])))[row - first :][:1])
    return torch.cat(found if len(found) == 1 else found[1:])
