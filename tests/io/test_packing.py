"""Which layout a matrix gets: the smallest that holds it, or the one asked for, or one line that says why not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import BadInput
from secateur.io.packed import Form, check, unpack
from secateur.io.packing import Packing, form_of, packed_as
from secateur.io.sparse import parts_bytes
from tests.runtime.matrices import mask_of


def cut(kind: str, rows: int = 32, columns: int = 128, density: float = 0.5, seed: int = 0) -> Tensor:
    """A matrix with zeros in the pattern of `kind`; "" for none."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    return weight * mask_of(kind, rows, columns, density, generator) if kind else weight


def form(weight: Tensor, **how: object) -> Form:
    found = form_of(weight, Packing(**how), "w")  # type: ignore[arg-type]
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("pattern", "density", "kind", "n"),
    [
        ("bitmask", 0.5, "bitmask", 0),
        ("1:4", 0, "nm", 1),
        ("2:4", 0, "nm", 2),
        ("3:4", 0, "nm", 3),
        ("1x4", 0.3, "1x4", 0),
        ("16x1", 0.3, "16x1", 0),
    ],
)
def test_auto_takes_the_layout_the_zeros_lie_in(pattern: str, density: float, kind: str, n: int) -> None:
    weight = cut(pattern, density=density)
    found = form(weight)
    assert (found.kind, found.n) == (kind, n)
    packed = packed_as(weight, found)
    check(packed)
    assert packed.form == found and packed.bytes == found.bytes < weight.nbytes
    assert torch.equal(unpack(packed), weight)


@given(
    pattern=st.sampled_from(["bitmask", "1:4", "2:4", "3:4", "1x4", "16x1", ""]),
    kind=st.sampled_from(["auto", "bitmask"]),
    values=st.sampled_from([None, "float32", "bfloat16", "int8"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    group=st.sampled_from([0, 32, 64]),
    rows=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.2, 0.7, 0.97]),
    seed=st.integers(0, 99),
)
def test_what_is_written_is_what_was_announced_and_the_smallest(
    pattern: str,
    kind: str,
    values: str | None,
    dtype: torch.dtype,
    group: int,
    rows: int,
    density: float,
    seed: int,
) -> None:
    group = group if values == "int8" else 0
    weight = cut(pattern, rows, 64, density, seed).to(dtype)
    packing = Packing(kind, values, group)
    if dtype == torch.float16 and values is None:
        if parts_bytes(2, rows, 64, int(weight.count_nonzero())) < weight.nbytes:
            with pytest.raises(BadInput, match=r"w: torch\.float16 cannot be packed"):
                form_of(weight, packing, "w")
        else:
            assert form_of(weight, packing, "w") is None
        return
    found = None
    try:
        found = form_of(weight, packing, "w")
    except BadInput as error:
        assert kind == "bitmask" and "times what all its entries take" in str(error)
    if found is None:
        return
    packed = packed_as(weight, found)
    check(packed)
    specs = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in packed.tensors.items()}
    assert specs == found.specs() and packed.bytes == found.bytes
    if kind == "auto":
        dense = Form("dense", (rows, 64), found.dtype, rows, 0, group, found.scales)
        assert found.bytes <= dense.bytes
    back = unpack(packed)
    if values != "int8":
        stored = weight.to(found.dtype)
        assert torch.equal(back.float(), stored.float())
    else:
        most = weight.float().abs().view(rows, -1, group or 64).amax(2, keepdim=True)
        assert bool(
            (
                (back.view(rows, -1, group or 64) - weight.float().view(rows, -1, group or 64)).abs()
                <= most / 127
            ).all()
        )


def test_a_matrix_that_is_not_cut_stays_or_becomes_dense() -> None:
    weight = cut("")
    assert form_of(weight, Packing(), "w") is None and form_of(weight, Packing("2:4"), "w") is None
    assert form_of(weight, Packing(values="float32"), "w") is None
    assert form(weight, values="bfloat16") == Form("dense", (32, 128), torch.bfloat16, 32)
    assert form(weight, values="int8") == Form("dense", (32, 128), torch.int8, 32, scales=torch.float32)
    whole = torch.ones(4, 8, dtype=torch.int8)
    assert form_of(whole, Packing(values="int8"), "w") is None  # no weights of a model
    assert form_of(torch.ones(0, 8), Packing(values="int8"), "w") is None


def test_groups_have_small_scales_and_rows_exact_ones() -> None:
    weight = cut("bitmask")
    assert form(weight, values="int8").scales == torch.float32
    grouped = form(weight, values="int8", group=64)
    assert grouped.scales == torch.bfloat16 and grouped.group == 64
    packed = packed_as(weight, grouped)
    assert packed.scales is not None and packed.scales.shape == (32, 2)


def test_the_kind_asked_for_is_the_one_there_is() -> None:
    weight = cut("1:4")
    assert [form(weight, kind=kind).n for kind in ("1:4", "2:4", "3:4", "nm")] == [1, 2, 3, 1]
    assert form(weight, kind="bitmask").kind == "bitmask"
    both = cut("16x1", density=0.2)
    assert form(both, kind="bitmask").kind == "bitmask" and form(both, kind="16x1").kind == "16x1"
    whole = torch.zeros(8, 16)
    assert [form(whole, kind=kind).n for kind in ("nm", "2:4")] == [1, 2]


def test_negative_zero_is_a_zero() -> None:
    weight = torch.full((8, 64), -0.0)
    weight[3, 5] = -2.0
    for kind in ("bitmask", "1:4", "1x4", "16x1"):
        packed = packed_as(weight, form(weight, kind=kind))
        assert packed.values.count_nonzero() == 1 and (packed.kind != "bitmask" or len(packed.values) == 1)
        back = unpack(packed)
        assert torch.equal(back, weight) and not bool((back.signbit() & (back == 0)).any())


HALF = cut("bitmask")


@pytest.mark.parametrize(
    ("weight", "how", "line"),
    [
        (HALF, {"kind": "nm"}, "w: not 3:4: row 0 keeps 4 of columns"),
        (
            cut("3:4"),
            {"kind": "2:4"},
            r"w: not 2:4: row 0 keeps 3 of columns 0 to 3; choose --kind auto or bitmask",
        ),
        (HALF, {"kind": "16x1"}, r"w: as 16x1 it would take 1\.0\d times what all its entries take"),
        (cut("bitmask", density=0.8), {"kind": "1x4"}, r"w: as 1x4 it would take 1\.0\d times"),
        (cut("bitmask", 8, 66), {"kind": "nm"}, "w: nm does not fit 66 columns"),
        (cut("bitmask", 8, 66), {"kind": "1x4"}, "w: 1x4 does not fit 66 columns"),
        (cut("bitmask", 8, 66), {"values": "int8", "group": 32}, "w: groups of 32 do not divide 66 columns"),
        (cut("", 8, 66), {"values": "int8", "group": 64}, "w: groups of 64 do not divide 66 columns"),
        (HALF.half(), {}, "w: torch.float16 cannot be packed as torch.float16; pass --values"),
        (HALF / 0, {"values": "int8"}, "w: NaN or Inf cannot be rounded"),
        (HALF, {"kind": "2x4"}, "'2x4' is no kind"),
        (HALF, {"values": "int4"}, "'int4' is no values"),
        (HALF, {"values": "int8", "group": 48}, "groups of 48 columns"),
        (HALF, {"values": "bfloat16", "group": 32}, "only int8 has scales"),
    ],
)
def test_what_does_not_fit_is_one_line(weight: Tensor, how: dict[str, object], line: str) -> None:
    with pytest.raises(BadInput, match=line) as caught:
        form(weight, **how)
    assert "\n" not in str(caught.value)
