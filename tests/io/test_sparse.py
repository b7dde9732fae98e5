"""sparse-bitmask: every bit comes back, the layout is the published one, and it is small and fast."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import BadInput, Damaged
from secateur.io.sparse import count_kept, decode, encode, parts_bytes, parts_specs

INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.float8_e4m3fn]


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(INTEGER[tensor.element_size()])


def slow_encode(weight: torch.Tensor) -> tuple[list[int], list[list[int]], list[int]]:
    """The layout as the format's page says it, entry by entry: values' bits, mask bytes, offsets."""
    columns = weight.shape[1]
    values, masks, offsets = [], [], []
    for row in bits(weight).tolist():
        offsets.append(len(values))
        mask = [0] * -(-columns // 8)
        for j, value in enumerate(row):
            if value:
                values.append(value)
                mask[j // 8] |= 1 << (j % 8)
        masks.append(mask)
    return values, masks, offsets


@given(
    rows=st.integers(0, 9),
    columns=st.integers(1, 35),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 999),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
@settings(max_examples=200, deadline=None)
def test_every_bit_comes_back_and_the_layout_is_the_published_one(
    rows: int, columns: int, dtype: torch.dtype, seed: int, density: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (rows, columns * dtype.itemsize), dtype=torch.uint8, generator=generator)
    weight = raw.view(dtype)  # any bits: NaN payloads, -0.0, denormals
    weight = torch.where(torch.rand(rows, columns, generator=generator) < density, bits(weight), 0)
    weight = weight.to(INTEGER[dtype.itemsize]).view(dtype)
    parts = encode(weight)
    assert torch.equal(bits(decode(parts)), bits(weight)) and decode(parts).dtype == dtype
    values, masks, offsets = slow_encode(weight)
    assert parts["shape"].tolist() == [rows, columns]
    assert bits(parts["compressed"]).tolist() == values
    assert parts["bitmask"].tolist() == masks and parts["bitmask"].shape == (rows, -(-columns // 8))
    assert parts["row_offsets"].tolist() == offsets
    assert {k: (v.dtype, tuple(v.shape)) for k, v in parts.items()} == parts_specs(
        dtype, rows, columns, len(values)
    )
    assert sum(v.nbytes for v in parts.values()) == parts_bytes(dtype.itemsize, rows, columns, len(values))
    assert count_kept(weight) == len(values)


def test_negative_zero_and_nan_payloads_are_kept() -> None:
    weight = torch.tensor([[0.0, -0.0, float("nan"), 1.0, float("-inf")]])
    weight.view(torch.int32)[0, 2] = 0x7FC12345
    back = decode(encode(weight))
    assert back.view(torch.int32).tolist() == weight.view(torch.int32).tolist()
    assert encode(weight)["compressed"].numel() == 4


def test_a_strided_matrix_is_encoded_as_what_it_shows() -> None:
    weight = torch.arange(12.0).reshape(3, 4).T
    assert torch.equal(decode(encode(weight)), weight)


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 0.54), (torch.bfloat16, 0.57), (torch.float16, 0.57)]
)
@pytest.mark.parametrize("shape", [(1536, 576), (192, 576), (576, 1536)])
def test_half_empty_takes_little_more_than_half(
    dtype: torch.dtype, most: float, shape: tuple[int, int]
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[weight.abs() < weight.abs().median()] = 0
    parts = encode(weight.to(dtype))
    assert sum(v.nbytes for v in parts.values()) <= most * weight.numel() * dtype.itemsize


def test_a_matrix_of_1536_by_576_is_encoded_in_under_10_ms() -> None:
    weight = torch.randn(1536, 576)
    weight[torch.rand_like(weight) < 0.5] = 0
    times = []
    for _ in range(20):
        start = time.perf_counter()
        encode(weight)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.010  # measured 1.8 ms


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2), ()])
def test_only_a_matrix_is_encoded(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadInput, match="only a matrix"):
        encode(torch.zeros(shape))


def good() -> dict[str, torch.Tensor]:
    return encode(torch.tensor([[1.0, 0, 2], [0, 0, 3]]))


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.pop("bitmask"),
        lambda p: p.update(extra=torch.zeros(1)),
        lambda p: p.update(shape=torch.tensor([2])),
        lambda p: p.update(shape=torch.tensor([2, -3])),
        lambda p: p.update(shape=torch.tensor([2.0, 3.0])),
        lambda p: p.update(shape=torch.tensor([3, 2])),
        lambda p: p.update(compressed=p["compressed"][:-1]),
        lambda p: p.update(compressed=p["compressed"][None]),
        lambda p: p["bitmask"].__setitem__((0, 0), 0b111),
        lambda p: p["bitmask"].__setitem__(
            (0, 0), 0b1101
        ),  # a bit after the last column, count unchanged elsewhere
        lambda p: p["row_offsets"].add_(1),
        lambda p: p.update(row_offsets=p["row_offsets"].int()),
        lambda p: p.update(bitmask=p["bitmask"].view(torch.int8)),
    ],
)
def test_parts_that_do_not_fit_are_refused(change) -> None:
    parts = good()
    change(parts)
    with pytest.raises(Damaged, match=r"layer\.weight"):
        decode(parts, where="layer.weight")


def test_a_shape_without_entries_costs_nothing() -> None:
    parts = {
        "shape": torch.tensor([0, 1 << 60]),
        "compressed": torch.zeros(0),
        "bitmask": torch.zeros((0, 1 << 57), dtype=torch.uint8),
        "row_offsets": torch.zeros(0, dtype=torch.int64),
    }
    with pytest.raises(Damaged, match="columns"):
        decode(parts)
    assert decode(encode(torch.zeros(3, 5))).tolist() == np.zeros((3, 5)).tolist()
