"""Packed modules against float64, in every layout; copies, states, moves, and what compilers see of them."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.errors import BadInput, Damaged, Unsupported
from secateur.runtime.linear import (
    PATTERNS,
    PackedLinear,
    TwoWays,
    bytes_of,
    dense_module,
    packed_as,
    weight_of,
)
from secateur.runtime.prepacked import PrepackedLinear, prepacks
from tests.runtime.matrices import mask_of

needs_onednn = pytest.mark.skipif(not prepacks(), reason="this torch has no oneDNN with bfloat16 here")
# sums of a few hundred float32 terms; rounding of weights to 8 and 4 bits: half a step of 1/127 and 1/7 of the peak
BOUND = {None: 1e-6, "bfloat16": 4e-3, "int8": 1e-2, "int4": 0.15}


def linear(kind: str = "bitmask", rows: int = 48, columns: int = 64, bias: bool = True) -> nn.Linear:
    """A random layer whose zeros lie as `kind` has them, half of the weights cut."""
    generator = torch.Generator().manual_seed(rows)
    made = nn.Linear(columns, rows, bias=bias)
    kept = torch.ones(rows, columns, dtype=torch.bool)
    if kind != "dense":
        kept = mask_of(kind, rows, columns, 0.5, generator)
    with torch.no_grad():
        made.weight.copy_(torch.randn(rows, columns, generator=generator) * kept)
        if bias:
            made.bias.copy_(torch.randn(rows, generator=generator))
    return made.eval().requires_grad_(False)


def conv1d(rows: int = 48, columns: int = 64) -> Any:
    from transformers.pytorch_utils import Conv1D

    like = linear("bitmask", rows, columns)
    made = Conv1D(rows, columns)
    made.weight.data, made.bias.data = like.weight.t().contiguous(), like.bias.clone()
    return made.eval().requires_grad_(False)


def exact(module: Any, x: Tensor) -> Tensor:
    y = x.double() @ weight_of(module).double().t()
    return y if module.bias is None else y + module.bias.double()


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


WAYS = [
    *((kind, values, 0) for kind in PATTERNS for values in (None, "bfloat16", "int8")),
    *((kind, "int8", 32) for kind in PATTERNS),
    ("dense", "int4", 64),
]


@pytest.mark.parametrize("kind,values,group", WAYS)
def test_it_is_the_product(kind: str, values: str | None, group: int) -> None:
    for bias in (True, False):
        layer = linear(kind, bias=bias)
        packed = PackedLinear.from_linear(layer, kind=kind, values=values, group=group)
        wide = torch.randn(2, 3, 2 * layer.in_features)
        for x in (
            wide[..., ::2],
            wide[0, 0, :64],
            wide[:, :, 64:],
        ):  # not contiguous, one row, not contiguous
            assert off(packed(x), exact(layer, x)) < BOUND[values]
        x = torch.randn(5, 64).bfloat16()
        y = packed(x)
        assert y.dtype == torch.bfloat16 and off(y, exact(layer, x)) < BOUND[values] + 4e-3
        assert packed(torch.randn(0, 64)).shape == (0, 48)
        assert packed(torch.randn(2, 0, 64)).shape == (2, 0, 48)


@pytest.mark.parametrize("kind", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_gives_the_same_bits_back(kind: str, dtype: torch.dtype) -> None:
    layer = linear(kind).to(dtype)
    packed = PackedLinear.from_linear(layer, kind=kind)
    back: Any = packed.dense()
    assert type(back) is nn.Linear and not back.training
    assert back.weight.dtype == dtype and torch.equal(back.weight, layer.weight)
    assert torch.equal(back.bias, layer.bias) and back.bias.data_ptr() != packed.bias.data_ptr()
    assert packed.density == pytest.approx(
        1 if kind == "dense" else int(kind[0]) / 4 if ":" in kind else 0.5, abs=0.12
    )


def test_a_given_mask_cuts_and_minus_zero_is_cut_without_one() -> None:
    layer = linear("dense", bias=False)
    mask = mask_of("bitmask", 48, 64, 0.5, torch.Generator().manual_seed(5))
    packed = PackedLinear.from_linear(layer, mask)
    assert torch.equal(packed.dense().weight, layer.weight * mask)
    multiplied = dense_module(layer.weight * mask, None, False)
    assert bool((multiplied.weight.signbit() & (multiplied.weight == 0)).any()), "a product leaves -0.0"
    for kind in ("bitmask", "1x4", "16x1"):
        again = PackedLinear.from_linear(multiplied, kind=kind)
        assert not bool((again.dense().weight.signbit() & (again.dense().weight == 0)).any())
        assert torch.equal(again.dense().weight, multiplied.weight)
    assert PackedLinear.from_linear(multiplied).values.numel() == int(mask.sum())


def test_bytes_and_words() -> None:
    layer = linear("2:4", bias=False)
    packed = PackedLinear.from_linear(layer, kind="2:4", values="int8")
    assert packed.nbytes == 48 * 32 + 48 * 8 + 4 * 48 == bytes_of(packed)
    assert bytes_of(layer) == 4 * 48 * 64
    assert repr(packed) == (
        "PackedLinear(in_features=64, out_features=48, bias=False, 2:4 int8, density=0.5, bytes=2112)"
    )
    grouped = PackedLinear.from_linear(linear(), kind="dense", values="int4", group=32)
    assert "bias=True, dense int4 by 32, density=1, bytes=2112)" in repr(grouped)
    assert grouped.nbytes == 48 * 32 + 48 * 2 * 4 + 48 * 4


def test_the_weight_is_made_when_somebody_computes() -> None:
    layer = linear().bfloat16()
    packed = PackedLinear.from_linear(layer)
    calls = []
    made, packed._weight = packed._weight, lambda: calls.append(1) or made()  # type: ignore[method-assign]
    weight = packed.weight
    assert isinstance(weight, Tensor) and weight.dtype == torch.bfloat16 and weight.device.type == "cpu"
    assert weight.shape == (48, 64) and weight.numel() == 48 * 64 and "PackedLinear" in repr(weight)
    assert not calls
    assert torch.equal(weight + 0, layer.weight) and torch.equal(
        torch.mm(weight, weight.t()), layer.weight @ layer.weight.t()
    )
    assert calls
    assert PackedLinear.from_linear(layer, values="int8").weight.dtype == torch.bfloat16, "what it stands for"


def test_conv1d_keeps_its_side(tmp_path: Path) -> None:
    layer = conv1d()
    packed = PackedLinear.from_linear(layer)
    x = torch.randn(2, 3, 64)
    assert off(packed(x), exact(layer, x)) < 1e-6
    back: Any = packed.dense()
    assert type(back) is type(layer) and torch.equal(back.weight, layer.weight) and back.nf == 48
    assert packed.weight.shape == (64, 48) and torch.equal(packed.weight + 0, layer.weight)


@pytest.mark.parametrize(
    "kind,values,group", [("bitmask", None, 0), ("16x1", "int8", 32), ("dense", "int4", 32)]
)
def test_a_state_makes_any_packed_layer_the_same(
    kind: str, values: str | None, group: int, tmp_path: Path
) -> None:
    packed = PackedLinear.from_linear(linear(kind), kind=kind, values=values, group=group)
    save_file(packed.state_dict(), tmp_path / "layer.safetensors")
    other = PackedLinear.from_linear(linear("2:4", 8, 32), kind="2:4")
    other.load_state_dict(load_file(tmp_path / "layer.safetensors"))
    x = torch.randn(3, 64)
    assert torch.equal(other(x), packed(x)) and repr(other) == repr(packed)
    assert other.values.data_ptr() != packed.values.data_ptr()


def test_a_damaged_state_is_refused_before_a_kernel_reads_it() -> None:
    packed = PackedLinear.from_linear(linear())
    state = packed.state_dict()
    spoilt = [
        ({"values": state["values"][:-1]}, "values and offsets say otherwise"),
        ({"layout": torch.tensor([9, 48, 64, 0, 0])}, "layout: no layout of a packed matrix"),
        ({"layout": torch.tensor([0, 48, 65, 0, 0])}, "packed bitmask [48, 65]"),
        ({"mask": state["mask"].flip(0)}, "values and offsets say otherwise"),
    ]
    for change, line in spoilt:
        other = copy.deepcopy(packed)
        with pytest.raises(Damaged, match=line.replace("[", r"\[")):
            other.load_state_dict({**state, **change})
    with pytest.raises(RuntimeError, match="Missing key"):
        packed.load_state_dict({"bias": state["bias"]})
    packed.values = packed.values[:5]  # whoever changes a buffer is checked when the layer is next made ready
    packed.float()
    with pytest.raises(Damaged):
        packed(torch.randn(1, 64))


def test_dtypes_move_as_a_linears_do() -> None:
    layer = linear()
    x = torch.randn(3, 64)
    half = PackedLinear.from_linear(layer).bfloat16()
    assert half.values.dtype == half.weight.dtype == torch.bfloat16 and half.bias.dtype == torch.bfloat16
    assert torch.equal(half.dense().weight, layer.bfloat16().weight)
    whole = PackedLinear.from_linear(linear(), values="int8")
    before = whole(x)
    whole.bfloat16()
    assert whole.scales.dtype == torch.float32 and whole.weight.dtype == torch.bfloat16
    assert off(whole(x), before.double()) < 4e-3, "only the bias was rounded"
    assert torch.equal(whole.half()(x.half()), whole(x.half())) and whole.weight.dtype == torch.float16


def test_moves_it_cannot_make_are_one_line() -> None:
    packed = PackedLinear.from_linear(linear())
    with pytest.raises(Unsupported, match=r"values of torch\.float16; use float32 or bfloat16"):
        packed.half()
    with pytest.raises(Unsupported, match="packed layers run on the CPU, not on meta"):
        packed.to("meta")
    assert torch.equal(
        packed.float()(torch.ones(1, 64)), PackedLinear.from_linear(linear())(torch.ones(1, 64))
    )


def test_copies_have_their_own_memory() -> None:
    packed = PackedLinear.from_linear(linear())
    other = copy.deepcopy(packed)
    x = torch.randn(2, 64)
    wanted = packed(x).clone()
    with torch.no_grad():
        packed.values.zero_()
    assert torch.equal(other(x), wanted) and float(packed(x).abs().sum()) != float(wanted.abs().sum())


def test_compilers_see_operators_and_buffers() -> None:
    model = nn.Sequential(
        PackedLinear.from_linear(linear("bitmask", 48, 64)),
        nn.ReLU(),
        PackedLinear.from_linear(linear("2:4", 16, 48), kind="2:4", values="int8"),
        PackedLinear.from_linear(linear("16x1", 32, 16), kind="16x1"),
    ).eval()
    x = torch.randn(4, 64)
    with torch.no_grad():
        wanted = model(x)
        exported = torch.export.export(model, (x,))
        torch.testing.assert_close(exported.module()(x), wanted)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), wanted)
    called = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert called == [
        "secateur.bitmask_linear.default",
        "aten.relu.default",
        "secateur.nm_linear.default",
        "secateur.block_linear.default",
    ]
    assert {"0.values", "0.mask", "2.scales", "3.offsets"} <= set(exported.state_dict)


def test_there_is_no_gradient_and_that_is_said() -> None:
    packed = PackedLinear.from_linear(linear())
    assert not list(packed.parameters())
    with pytest.raises(BadInput, match="a packed weight has no gradient"):
        packed(torch.randn(1, 64, requires_grad=True))


@pytest.mark.parametrize(
    "how,line",
    [
        ({"kind": "bitmap"}, "'bitmap' is no kind"),
        ({"values": "int3"}, "'int3' is no values"),
        ({"values": "int4"}, "int4 is for dense weights"),
        ({"values": "int8", "group": 128}, "groups of 128 do not divide 64 columns"),
        ({"kind": "1:4"}, "not 1:4: row"),
        ({"mask": torch.ones(64, 48, dtype=torch.bool)}, "the mask is torch.bool"),
    ],
)
def test_what_does_not_fit_is_one_line(how: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput, match=line):
        PackedLinear.from_linear(linear("dense"), **how)


def test_other_modules_are_refused() -> None:
    with pytest.raises(BadInput, match="Embedding is no Linear or Conv1D"):
        PackedLinear.from_linear(nn.Embedding(4, 4))
    with pytest.raises(BadInput, match=r"the bias is \[3\], not \[48\]"):
        PackedLinear(packed_as(linear().weight, kind="bitmask"), torch.zeros(3))
    packed = packed_as(linear().weight, kind="bitmask")
    object.__setattr__(packed, "values", packed.values[:-1])
    with pytest.raises(Damaged, match="PackedLinear"):
        PackedLinear(packed)


def test_two_ways_part_at_their_row() -> None:
    few, many = PackedLinear.from_linear(linear()), linear()
    both = TwoWays(few, many, 8)
    seen = []
    for name, part in (("few", few), ("many", many)):
        part.register_forward_hook(lambda *_, name=name: seen.append(name))
    for shape in ((64,), (7, 64), (8, 64), (2, 4, 64), (1, 7, 64), (0, 64)):
        x = torch.randn(shape)
        assert math.isclose(off(both(x), exact(many, x)), 0, abs_tol=1e-6) or not x.numel()
    assert seen == ["few", "few", "many", "many", "few", "few"]
    assert both.nbytes == bytes_of(few) + bytes_of(many) and both.dense() is many
    assert (both.in_features, both.out_features, both.weight.shape) == (64, 48, (48, 64))
    assert torch.equal(TwoWays(few, few, 8).dense().weight, many.weight)  # type: ignore[arg-type]


@needs_onednn
def test_prepacked_is_the_product_and_travels_as_a_plain_weight() -> None:
    for layer in (linear().bfloat16(), linear(bias=False).bfloat16(), conv1d().bfloat16()):
        packed = PrepackedLinear.from_linear(layer)
        x = torch.randn(2, 3, 64).bfloat16()
        assert off(packed(x), exact(layer, x)) < 4e-3
        assert torch.equal(packed.dense().weight, layer.weight)  # type: ignore[arg-type]
        assert packed.weight.shape == layer.weight.shape and packed.nbytes == bytes_of(layer)
        layer.load_state_dict(packed.state_dict())
        other = PrepackedLinear(torch.zeros(48, 64).bfloat16(), layer.bias, transposed=packed.transposed)
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other(x), packed(x)) and torch.equal(copy.deepcopy(packed)(x), packed(x))
        assert torch.equal(torch.compile(packed, backend="eager")(x), packed(x))


@needs_onednn
def test_prepacked_refuses_what_onednn_has_not() -> None:
    packed = PrepackedLinear.from_linear(linear().bfloat16())
    with pytest.raises(BadInput, match=r"torch\.float32 on cpu; use bfloat16, CPU"):
        PrepackedLinear.from_linear(linear())
    with pytest.raises(BadInput, match=r"x is torch\.float32; use bfloat16"):
        packed(torch.randn(1, 64))
    with pytest.raises(Unsupported, match=r"not torch\.float32 on cpu"):
        packed.float()
    with pytest.raises(RuntimeError, match="Missing key"):
        packed.load_state_dict({"bias": torch.zeros(48)})
    assert packed.bfloat16()(torch.randn(1, 64).bfloat16()).shape == (1, 48)
