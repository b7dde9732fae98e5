"""Packed embeddings: the rows that a dense one gives, of every layout, and nothing for ids that there are not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.io.packed import unpack
from secateur.runtime.embedding import PackedEmbedding, rows_at
from secateur.runtime.linear import packed_as
from tests.runtime.matrices import mask_of

IDS = torch.tensor([[3, 0, 36], [3, 17, 16]])


@pytest.mark.parametrize("kind", ["dense", "bitmask", "2:4", "1x4", "16x1"])
@pytest.mark.parametrize(
    ("values", "group"), [(None, 0), ("bfloat16", 0), ("int8", 0), ("int8", 32), ("int4", 32)]
)
def test_rows_are_those_of_the_table(kind: str, values: str | None, group: int) -> None:
    if values == "int4" and kind != "dense":
        return
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(37, 64, generator=generator)
    mask = mask_of(kind, 37, 64, 0.5, generator) if kind != "dense" else None
    packed = packed_as(table, mask, kind=kind, values=values, group=group)
    wanted = unpack(packed).float()
    assert torch.equal(rows_at(packed, IDS.flatten()).float(), wanted[IDS.flatten()])
    module = PackedEmbedding(packed, dtype=torch.float32)
    found = module(IDS)
    assert found.dtype == torch.float32 and torch.equal(found, wanted[IDS])
    dense = module.dense()
    assert type(dense) is nn.Embedding and torch.equal(dense(IDS), wanted[IDS])
    assert module(IDS[:0]).shape == (0, 3, 64)
    assert module.nbytes == packed.bytes and module.weight.shape == (37, 64)


@pytest.mark.parametrize("kind", ["dense", "bitmask", "16x1"])
@pytest.mark.parametrize("row", [-1, 37])
def test_an_id_outside_the_table_is_refused(kind: str, row: int) -> None:
    packed = packed_as(torch.eye(37, 64), kind=kind)
    with pytest.raises((IndexError, RuntimeError), match=r"out of range|row"):
        PackedEmbedding(packed)(torch.tensor([row]))


def test_it_computes_in_the_dtype_it_is_told() -> None:
    module = PackedEmbedding(packed_as(torch.eye(4, 64), kind="dense", values="int8"), dtype=torch.bfloat16)
    assert module(torch.tensor([1])).dtype == torch.bfloat16 and module.weight.dtype == torch.bfloat16
