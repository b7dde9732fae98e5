"""Packing: every bit comes back, the layouts are what the page says, and what does not fit is refused in one line."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import BadInput
from secateur.io.pack import pack_bitmask, pack_blocks, pack_dense, pack_nm
from secateur.io.packed import check, unpack
from secateur.io.sparse import encode
from tests.runtime.matrices import KINDS, fits, kept_entries, mask_of, pack

INTEGER = {torch.float32: torch.int32, torch.bfloat16: torch.int16}


def any_bits(rows: int, columns: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Any floats at all: NaN payloads, -0.0, denormals, infinities."""
    raw = torch.randint(0, 256, (rows, columns * dtype.itemsize), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(rows, columns) if raw.numel() else torch.empty(rows, columns, dtype=dtype)


@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(0, 40),
    columns=st.integers(0, 150),
    dtype=st.sampled_from(list(INTEGER)),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 999),
)
def test_every_bit_that_is_kept_comes_back(
    kind: str, rows: int, columns: int, dtype: torch.dtype, density: float, seed: int
) -> None:
    columns = columns if fits(kind, columns) else columns // 4 * 4
    generator = torch.Generator().manual_seed(seed)
    weight, mask = (
        any_bits(rows, columns, dtype, generator),
        mask_of(kind, rows, columns, density, generator),
    )
    packed = pack(kind, weight, mask)
    check(packed)
    integer = INTEGER[dtype]
    wanted = weight.view(integer) if kind == "dense" else torch.where(mask, weight.view(integer), 0)
    assert torch.equal(unpack(packed).view(integer), wanted) and unpack(packed).dtype == dtype
    if kind != "dense":
        assert torch.equal(kept_entries(packed), mask)
    assert all(tensor.is_contiguous() for tensor in packed.tensors.values())


@given(
    kind=st.sampled_from([*KINDS, "int4"]),
    rows=st.integers(0, 35),
    groups=st.integers(1, 4),
    group=st.sampled_from([0, 32, 64, 128]),
    scales=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 999),
)
def test_whole_numbers_are_the_nearest_and_their_scales_what_was_said(
    kind: str, rows: int, groups: int, group: int, scales: torch.dtype, seed: int
) -> None:
    group = group or (64 if kind == "int4" else 0)
    columns, most = groups * (group or 36), 7 if kind == "int4" else 127
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 10.0 ** torch.randint(-3, 3, (rows, 1))
    mask = mask_of(kind, rows, columns, 0.5, generator) if kind not in ("dense", "int4") else weight == weight
    how = {} if kind == "int4" else {"dtype": torch.int8}
    packed = pack(kind, weight, mask, group=group, scale_dtype=scales, **how)
    check(packed)
    kept = torch.where(mask, weight, 0.0).view(rows, -1, group or columns) if rows else weight.view(0, 1, 1)
    scale = (kept.abs().amax(2, keepdim=True) / most).to(scales).float()
    back = unpack(packed).view(kept.shape)
    # half a step, or what rounding the scale to bfloat16 cuts off the largest
    assert bool(((back - kept).abs() <= scale * (0.5 + most / 256) + 1e-30).all())
    if scales == torch.float32:
        assert bool(((back - kept).abs() <= scale * 0.500001).all())
    steps = back / torch.where(scale > 0, scale, 1.0)
    assert bool((steps - steps.round()).abs().le(1e-3).all()) and bool(steps.abs().le(most + 1e-3).all())


def test_bitmask_is_what_the_sparse_format_stores() -> None:
    weight = torch.randn(37, 101, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight[torch.rand(37, 101, generator=torch.Generator().manual_seed(1)) < 0.6] = 0
    packed, stored = pack_bitmask(weight), encode(weight)
    assert packed.shape == tuple(stored["shape"].tolist())
    assert packed.mask is not None and packed.offsets is not None
    assert torch.equal(packed.values, stored["compressed"]) and torch.equal(packed.mask, stored["bitmask"])
    assert torch.equal(packed.offsets, stored["row_offsets"])


def test_two_of_four_by_hand() -> None:
    weight = torch.tensor([[0.0, 5.0, 0.0, 6.0, 7.0, 0.0, 0.0, 0.0]])
    packed = pack_nm(weight, 2)
    assert packed.values.tolist() == [[5.0, 6.0, 7.0, 0.0]]  # the second four is filled up from the left
    assert packed.mask is not None and packed.mask.tolist() == [[0b0011_1010]]
    assert torch.equal(unpack(packed), weight)


def test_tiles_by_hand() -> None:
    weight = torch.zeros(17, 3)
    weight[2, 1], weight[16, 0] = 4.0, 5.0
    packed = pack_blocks(weight, "16x1")
    assert packed.mask is not None and packed.mask.tolist() == [[0b010], [0b001]]
    assert packed.offsets is not None and packed.offsets.tolist() == [0, 1]
    assert packed.values.tolist() == [[0, 0, 4.0, *[0] * 13], [5.0, *[0] * 15]]
    wide = torch.zeros(2, 12)
    wide[0, 5], wide[1, 11] = 6.0, 7.0
    packed = pack_blocks(wide, "1x4")
    assert packed.mask is not None and packed.mask.tolist() == [[0b010], [0b100]]
    assert packed.values.tolist() == [[0, 6.0, 0, 0], [0, 0, 0, 7.0]]


def test_int4_by_hand() -> None:
    weight = torch.zeros(1, 32)
    weight[0, :4] = torch.tensor([7.0, -7.0, 1.0, 0.0])
    packed = pack_dense(weight, bits=4, group=32)
    assert packed.values[0, :3].tolist() == [15 | 1 << 4, 9 | 8 << 4, 8 | 8 << 4]
    assert packed.scales is not None and packed.scales.tolist() == [[1.0]]


def test_whole_numbers_that_are_there_already_are_taken_as_they_are() -> None:
    whole = torch.randint(-128, 128, (5, 64), dtype=torch.int8)
    scales = torch.rand(5, 2).bfloat16()
    packed = pack_bitmask(whole, whole > 0, scales=scales, group=32)
    wanted = torch.where(whole > 0, whole, 0) * scales.float().repeat_interleave(32, 1)
    assert torch.equal(unpack(packed), wanted)


def test_the_scale_looks_at_what_is_kept_only() -> None:
    weight = torch.tensor([[100.0, 1.0, -2.0, 0.5]])
    packed = pack_bitmask(weight, torch.tensor([[False, True, True, True]]), dtype=torch.int8)
    assert packed.scales is not None and packed.scales.item() == pytest.approx(2 / 127)
    assert packed.values.tolist() == [64, -127, 32]


W = torch.ones(4, 8)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda: pack_nm(W, 2),
            "mask: not 2:4: row 0 keeps 4 of columns 0 to 3",
        ),
        (lambda: pack_nm(W, 5), "5:4 does not fit 8 columns"),
        (lambda: pack_nm(torch.ones(2, 6), 2), "2:4 does not fit 6 columns"),
        (lambda: pack_blocks(torch.ones(2, 6), "1x4"), "1x4 do not divide 6 columns"),
        (lambda: pack_blocks(W, "1x4", torch.eye(4, 8) > 0), "keeps a part of a tile of 1x4"),
        (lambda: pack_blocks(torch.ones(32, 2), "16x1", torch.eye(32, 2) > 0), "part of a tile of 16x1"),
        (lambda: pack_blocks(W, "4x4"), "'4x4' is no kind of block"),
        (lambda: pack_bitmask(W, dtype=torch.int8, group=32), "groups of 32 do not divide 8 columns"),
        (lambda: pack_bitmask(torch.ones(2, 48), dtype=torch.int8, group=48), "groups of 48 do not divide"),
        (lambda: pack_dense(W, bits=4), "int4 needs a group"),
        (lambda: pack_dense(W, bits=5), "'5' is no number of bits"),
        (lambda: pack_dense(W * math.nan, dtype=torch.int8), "NaN or Inf cannot be rounded"),
        (
            lambda: pack_dense(W.to(torch.int8), scales=torch.full((4,), math.nan)),
            "must be float32 or bfloat16, and finite",
        ),
        (
            lambda: pack_dense(W.to(torch.int8), scales=torch.ones(3)),
            r"scales: of shape \[3\] they do not fit torch.int8 \[4, 8\]",
        ),
        (lambda: pack_dense(W, dtype=torch.int8, scale_dtype=torch.float16), "cannot be torch.float16"),
        (lambda: pack_bitmask(W.half()), "torch.float16 cannot be packed as torch.float16"),
        (lambda: pack_bitmask(W, torch.ones(4, 8)), "the mask is torch.float32"),
        (lambda: pack_bitmask(W, torch.ones(4, 7) > 0), r"the mask is torch.bool \[4, 7\]"),
        (lambda: pack_bitmask(torch.ones(3)), "only a matrix can be packed"),
        (lambda: pack_dense(torch.ones(3)), "only a matrix can be packed, not 1 dimensions"),
        (lambda: pack_bitmask(W, group=32), "torch.float32 takes no scales and no group"),
        (lambda: pack_bitmask(W.double()), "torch.float64 cannot be packed"),
    ],
)
def test_what_does_not_fit_is_one_line(call: object, line: str) -> None:
    with pytest.raises(BadInput, match=line) as caught:
        call()  # type: ignore[operator]
    assert "\n" not in str(caught.value)
