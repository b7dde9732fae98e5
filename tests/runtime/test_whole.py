"""Whole-number weights and one row of x, which becomes whole numbers too: as exact as floats, whatever x is."""

from __future__ import annotations

import itertools

import pytest
import torch

from secateur.io.packed import unpack
from secateur.runtime import ops
from tests.runtime.matrices import DIGITS, mask_of, off, pack, slow


@pytest.mark.parametrize("widest", [1.0, 8.0, 100.0, 3e3, 1e5, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_accurate_however_large_an_entry_is(path: str, widest: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(64, 512, generator=generator)
    for kind, group in itertools.product(("bitmask", "1x4", "16x1", "dense"), (0, 32, 128)):
        mask = mask_of(kind, 64, 512, 0.5, generator)
        x = torch.randn(1, 512, generator=generator)
        x[0, 100:104] = widest
        if kind != "dense":  # where the large ones are cut, what is left is summed as if they were not there
            mask[:, 100:104] = False
        packed = pack(kind, weight, mask, dtype=torch.int8, group=group)
        assert off(packed, x.to(dtype), None, ops.Product(packed)(x.to(dtype))) <= 1, (kind, group)


@pytest.mark.parametrize(
    ("kind", "group"), [("dense", 0), ("dense", 32), ("dense", 64), ("int4", 32), ("16x1", 0)]
)
@pytest.mark.parametrize("most", [20.0, 1e4, 1e8, 1e12])
def test_a_few_large_entries_cost_the_others_nothing(path: str, kind: str, group: int, most: float) -> None:
    """Beside them the others are as exact as without them, and they are themselves, wherever they stand."""
    generator = torch.Generator().manual_seed(1)
    columns = 1000 if group == 0 else 1024
    anywhere = torch.randperm(columns, generator=generator)[:12].tolist()
    for places in ([0], [63, 64, 65], [columns - 1], anywhere):
        weight = torch.randn(32, columns, generator=generator)
        x = torch.randn(1, columns, generator=generator)
        small = x.abs().mean()
        x[0, places] = most * torch.randn(len(places), generator=generator).sign()
        mask = mask_of(kind, 32, columns, 0.7, generator) if kind == "16x1" else weight.abs() >= 0
        others = weight.clone()
        others[:, places] = 0
        packed = pack(kind, others, mask, dtype=torch.int8, group=group)
        y = ops.Product(packed)(x.bfloat16()).double()
        wanted = x.bfloat16().double() @ unpack(packed).double().t()
        slack = 5 * DIGITS * unpack(packed).double().norm(dim=1) * small + wanted.abs() * 2**-8
        assert bool(((y - wanted).abs() <= slack + 1e-6).all()), places
        alone = pack(kind, weight - others, mask, dtype=torch.int8, group=group)
        for given in (x, x.bfloat16()):
            assert off(alone, given, None, ops.Product(alone)(given)) <= 1, (places, given.dtype)


@pytest.mark.parametrize("kind", ["bitmask", "2:4", "1x4", "16x1", "dense"])
@pytest.mark.parametrize("group", [0, 32, 64])
def test_sums_of_the_largest_whole_numbers_fit(path: str, kind: str, group: int) -> None:
    rows, columns = 16, 12352
    mask = mask_of(kind, rows, columns, 1.0, torch.Generator())
    packed = pack(kind, torch.ones(rows, columns), mask, dtype=torch.int8, group=group)
    packed.values.fill_(-128)
    for x in (
        torch.ones(1, columns).nextafter(torch.zeros(1)),
        torch.full((1, columns), 1 - 2**-8).bfloat16(),
    ):
        for y, wanted in (
            (ops.Product(packed)(x), slow(packed, x)[0]),
            (ops.Product(packed)(-x), slow(packed, -x)[0]),
        ):
            assert torch.allclose(y.double(), wanted, rtol=5e-3 if y.dtype == torch.bfloat16 else 1e-4)


def test_entries_of_x_at_the_edges_of_float32(path: str) -> None:
    packed = pack("dense", torch.eye(64), torch.ones(64, 64) > 0, dtype=torch.int8)
    x = torch.tensor([[1e-45, -1e-40, 1e29, -1.1e29, 1.5e-30, 0.0, -0.0, 2.0]]).repeat(1, 8)
    for factor in (x, x * 0, x.clamp(-1e-38, 1e-38)):
        y = ops.Product(packed)(factor)
        assert torch.allclose(y, factor * 1.0, rtol=1e-6, atol=float(factor.abs().max()) * 2**-22)
