"""Packed matrices: rows taken out of the middle, and damage of every part refused before a kernel reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from secateur.errors import Damaged
from secateur.io.packed import Packed, check, rows_of, unpack
from tests.runtime.matrices import every, pack


def test_rows_out_of_the_middle_are_those_rows() -> None:
    for name, packed in every(70, 128, 0.4):
        whole = unpack(packed)
        for first, last in ((0, 70), (16, 48), (64, 70), (16, 16), (0, 3)):
            part = rows_of(packed, first, last)
            check(part)
            assert torch.equal(unpack(part), whole[first:last]), (name, first, last)


def test_rows_share_the_memory() -> None:
    packed = dict(every(64, 128))["2:4 torch.float32"]
    part = rows_of(packed, 32, 64)
    assert part.values.data_ptr() == packed.values[32:].data_ptr()


def good(kind: str, **how: object) -> Packed:
    weight = torch.arange(1.0, 1 + 32 * 68).view(32, 68)
    masks = {
        "2:4": torch.tensor([True, False, True, False]).repeat(17),
        "16x1": torch.arange(68) % 3 == 0,
        "1x4": torch.arange(17).repeat_interleave(4) % 2 == 0,
    }
    return pack(kind, weight, masks.get(kind, torch.arange(68) % 5 == 0).expand(32, 68), **how)


def grown(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return torch.cat((tensor, tensor[-1:]))


def flipped(packed: Packed, row: int, bit: int) -> torch.Tensor:
    assert packed.mask is not None
    mask = packed.mask.clone()
    mask[row, bit // 8] ^= 1 << bit % 8
    return mask


@pytest.mark.parametrize("kind", ["bitmask", "2:4", "1x4", "16x1", "dense"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_what_was_packed_passes(kind: str, dtype: torch.dtype) -> None:
    packed = good(kind, dtype=dtype)
    assert check(packed) is None
    assert packed.bytes == sum(t.numel() * t.element_size() for t in packed.tensors.values())


@pytest.mark.parametrize(
    ("kind", "change", "line"),
    [
        ("bitmask", lambda p: replace(p, mask=flipped(p, 3, 1)), "values and offsets say otherwise"),
        ("bitmask", lambda p: replace(p, mask=flipped(p, 0, 70)), "bits after the last column"),
        ("bitmask", lambda p: replace(p, values=grown(p.values)), "the mask keeps 448"),
        ("bitmask", lambda p: replace(p, offsets=grown(p.offsets)), "packed bitmask"),
        ("bitmask", lambda p: replace(p, offsets=p.offsets.flip(0)), "values and offsets say otherwise"),
        ("bitmask", lambda p: replace(p, offsets=p.offsets.int()), "packed bitmask"),
        ("bitmask", lambda p: replace(p, mask=None), "packed bitmask"),
        ("bitmask", lambda p: replace(p, shape=(32, 80)), "packed bitmask"),
        ("bitmask", lambda p: replace(p, values=p.values.half()), "packed values of torch.float16"),
        ("bitmask", lambda p: replace(p, values=p.values.repeat(2)[::2]), "not contiguous"),
        ("bitmask", lambda p: replace(p, scales=torch.ones(32)), "scales go with int8"),
        ("2:4", lambda p: replace(p, mask=flipped(p, 31, 67)), "the mask is not 2:4"),
        ("2:4", lambda p: replace(p, n=1), "packed nm"),
        ("1x4", lambda p: replace(p, mask=flipped(p, 1, 1)), "values and offsets say otherwise"),
        ("16x1", lambda p: replace(p, mask=flipped(p, 1, 1)), "values and offsets say otherwise"),
        ("16x1", lambda p: replace(p, values=p.values[:, :8].contiguous()), "packed 16x1"),
        ("2:4", lambda p: replace(p, n=0, values=p.values[:, :0], mask=p.mask * 0), "n 0: not in fours"),
        ("2:4", lambda p: replace(p, shape=(32, 66)), "66 columns, n 2: not in fours"),
        ("1x4", lambda p: replace(p, shape=(32, 66)), "not in fours"),
        ("dense", lambda p: replace(p, values=grown(p.values)), "packed dense"),
        (
            "dense",
            lambda p: replace(p, values=p.values.to(torch.uint8)),
            "int4 is for dense matrices with groups",
        ),
        ("bitmask", lambda p: replace(p, values=p.values.to(torch.uint8)), "int4 is for dense"),
    ],
)
def test_damage_is_one_line(kind: str, change: Callable[[Packed], Packed], line: str) -> None:
    with pytest.raises(Damaged, match=line) as caught:
        check(change(good(kind)), where="layer 3")
    assert str(caught.value).startswith("layer 3: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda p: replace(p, scales=None), "scales go with int8"),
        (lambda p: replace(p, scales=p.scales * float("nan")), "NaN or Inf in scales"),
        (lambda p: replace(p, scales=p.scales[:-1]), r"float32 \[31\], not float32 \[32\]"),
        (lambda p: replace(p, scales=p.scales.half()), "scales are torch.float16"),
    ],
)
def test_damaged_scales_are_one_line(change: Callable[[Packed], Packed], line: str) -> None:
    with pytest.raises(Damaged, match=line):
        check(change(good("bitmask", dtype=torch.int8)))


def test_a_group_that_does_not_divide_is_refused() -> None:
    with pytest.raises(Damaged, match="groups of 64 do not divide 68 columns"):
        check(replace(good("bitmask", dtype=torch.int8), group=64))
