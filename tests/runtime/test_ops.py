"""The kernels against a float64 oracle: every kind, dtype, path and number of columns; and what torch sees of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.errors import BadInput
from secateur.io.packed import Packed, unpack
from secateur.runtime import library, ops
from tests.runtime.matrices import KINDS, SUMS, every, fits, kept_entries, mask_of, off, pack, paths, slow

BATCHES = (0, 1, 2, 3, 4, 5, 8, 11, 16, 17, 33, 64, 70)


@pytest.mark.parametrize(
    ("rows", "columns"), [(33, 256), (5, 3), (37, 100), (70, 130), (1, 64), (16, 1000), (2, 96)]
)
def test_every_kind_and_dtype_is_the_oracle(path: str, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    for i, (_, packed) in enumerate(every(rows, columns)):
        bias = torch.randn(rows, generator=generator) if i % 2 else None
        product = ops.Product(packed, bias)
        for batch in BATCHES[i % 3 :: 3]:
            x = torch.randn(batch, columns, generator=generator)
            for one in (x, x.bfloat16()):
                assert off(packed, one, bias, product(one)) <= 1, (packed.kind, packed.values.dtype, batch)


@given(
    kind=st.sampled_from([*KINDS, "int4"]),
    whole=st.booleans(),
    rows=st.integers(0, 50),
    columns=st.integers(0, 260),
    group=st.sampled_from([0, 32, 64, 128]),
    batch=st.integers(0, 40),
    density=st.sampled_from([0.0, 0.05, 0.5, 0.95, 1.0]),
    spread=st.sampled_from([0, 2, 6]),
    way=st.sampled_from(["lean", "operator"]),
    at=st.integers(0, 3),
    seed=st.integers(0, 9999),
)
@settings(max_examples=150)
def test_any_matrix_is_the_oracle(
    kind: str,
    whole: bool,
    rows: int,
    columns: int,
    group: int,
    batch: int,
    density: float,
    spread: int,
    way: str,
    at: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    if kind == "int4":
        group = group or 32
    columns = columns // group * group if group else columns if fits(kind, columns) else columns // 4 * 4
    weight = torch.randn(rows, columns, generator=generator)
    mask = (
        mask_of(kind, rows, columns, density, generator)
        if kind not in ("dense", "int4")
        else weight == weight
    )
    how: dict[str, object] = {"group": group}
    if kind != "int4":
        how = {"dtype": torch.int8, "group": group} if whole else {"dtype": torch.bfloat16}
    packed = pack(kind, weight, mask, **how)
    size = 10.0 ** (torch.rand(batch, columns, generator=generator) * spread - spread / 2)
    x = (
        torch.randn(batch, columns, generator=generator) * size
    )  # up to a million between the entries of a row
    bias = torch.randn(rows, generator=generator) if seed % 2 else None
    available = paths()[1:]
    if available:
        library.use(available[at % len(available)])
    y = (ops.Product if way == "lean" else ops.operator_of)(packed, bias)(x)
    if available:
        library.use(available[-1])
    assert off(packed, x, bias, y) <= 1


@pytest.mark.parametrize("batch", [1, 5, 20])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_at_a_cut_place_does_not_spread_and_at_a_kept_one_does(path: str, batch: int, bad: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, packed in every(40, 128, 0.5):
        kept, x = kept_entries(packed), torch.randn(batch, 128, generator=generator)
        x[batch // 2, 7] = bad
        y = ops.Product(packed)(x)
        reached = ~y.isfinite()
        wanted, _ = slow(packed, x)
        assert torch.equal(reached, ~wanted.isfinite()), name
        assert torch.equal(reached[batch // 2], kept[:, 7]) or (packed.scales is not None), name
        assert not bool(reached[torch.arange(batch) != batch // 2].any()), name
        where = y.isfinite()
        _, size = slow(packed, torch.nan_to_num(x, 0.0, 0.0, 0.0))
        assert bool(((y.double() - wanted).abs()[where] <= SUMS * size[where] + 1e-30).all()), name
        assert torch.equal(y[reached].isnan(), wanted[reached].isnan()), name


def test_an_all_cut_matrix_gives_the_bias_and_nothing_else(path: str) -> None:
    for kind in ("bitmask", "1x4", "16x1"):
        packed = pack(kind, torch.ones(20, 64), torch.zeros(20, 64) > 0, dtype=torch.bfloat16)
        bias = torch.arange(20.0)
        x = torch.full((3, 64), math.nan)
        assert torch.equal(ops.Product(packed, bias)(x), bias.expand(3, 20))
        assert torch.equal(ops.Product(packed)(x), torch.zeros(3, 20))


def test_rows_without_entries_between_full_ones(path: str) -> None:
    mask = torch.zeros(9, 130, dtype=torch.bool)
    mask[4], mask[7, 129] = True, True
    packed = pack("bitmask", torch.ones(9, 130), mask)
    y = ops.Product(packed)(torch.arange(130.0).expand(2, 130))
    assert y.tolist() == [[0, 0, 0, 0, 8385.0, 0, 0, 129.0, 0]] * 2


@pytest.mark.parametrize("batch", [1, 3, 24])
def test_the_same_bits_for_any_number_of_threads(kernels: None, batch: int) -> None:
    generator = torch.Generator().manual_seed(3)
    loaded = library.load()
    assert loaded is not None
    for name, packed in every(515, 256, 0.4):
        x, product = torch.randn(batch, 256, generator=generator), ops.Product(packed)
        results = []
        try:
            for threads in (1, 2, 3, 5):
                torch.set_num_threads(threads)
                for address in (library.openmp(), None):  # torch's threads, and a pool of our own
                    loaded.secateur_set_gomp(address)
                    results.append(product(x))
        finally:
            torch.set_num_threads(1)
            loaded.secateur_set_gomp(library.openmp())
        assert all(torch.equal(result, results[0]) for result in results), name


def test_strides_and_shapes_of_x_do_not_matter(path: str) -> None:
    packed = pack("bitmask", torch.randn(12, 40), torch.rand(12, 40) < 0.5)
    for way in (ops.Product(packed), ops.operator_of(packed)):
        x = torch.randn(4, 3, 40)
        y = way(x)
        assert y.shape == (4, 3, 12)
        assert torch.equal(way(x.transpose(0, 1)), way(x.transpose(0, 1).contiguous()))
        wide = torch.randn(5, 80)[:, ::2]
        assert torch.equal(way(wide), way(wide.contiguous()))
        row = torch.randn(40)
        assert torch.equal(way(row.expand(6, 40)), way(row.repeat(6, 1)))
        assert way(torch.randn(40)).shape == (12,) and way(torch.randn(2, 0, 40)).shape == (2, 0, 12)
        assert torch.allclose(way(x.half()).float(), y, atol=0.02) and way(x.half()).dtype == torch.float16


def test_bfloat16_results_are_the_float32_ones_rounded(path: str) -> None:
    packed = pack("2:4", torch.randn(64, 128), mask_of("2:4", 64, 128, 0.5, torch.Generator()))
    x = torch.randn(9, 128).bfloat16()
    assert torch.equal(ops.Product(packed)(x), ops.Product(packed)(x.float()).bfloat16())


@pytest.mark.parametrize("batch", [1, 3, 9])
def test_bfloat16_entries_at_the_edges_of_their_range(path: str, batch: int) -> None:
    packed = pack("bitmask", torch.eye(64), torch.eye(64) > 0, dtype=torch.bfloat16)
    x = torch.tensor([[1e-45, -1e-40, 3e38, -1e29, 1.5e-30, 0.0, -0.0, 2.0]]).repeat(batch, 8).bfloat16()
    for factor in (x, x * 0, x.clamp(-1e-38, 1e-38), x.clamp(-1e-30, 1e-30)):
        y = ops.Product(packed)(factor)
        least = 2**-126 if float(factor.abs().max()) > 2**-90 else 0.0  # may count as zero beside larger
        assert torch.allclose(y, factor, rtol=0, atol=least)


@pytest.mark.parametrize(
    ("x", "line"),
    [
        (torch.ones(2, 65), r"x is \[2, 65\], the weight takes 64 columns"),
        (torch.ones(()), r"x is \[\], the weight takes 64 columns"),
        (torch.ones(2, 64, dtype=torch.float64), "x is torch.float64"),
        (torch.ones(2, 64, dtype=torch.int64), "x is torch.int64"),
        (torch.ones(2, 64, requires_grad=True), "a packed weight has no gradient"),
    ],
)
def test_what_does_not_fit_is_one_line(path: str, x: Tensor, line: str) -> None:
    for kind in ("bitmask", "2:4", "1x4", "16x1", "dense"):
        packed = pack(kind, torch.randn(8, 64), mask_of(kind, 8, 64, 0.5, torch.Generator()))
        for way in (ops.Product(packed), ops.operator_of(packed)):
            with pytest.raises(BadInput, match=line) as caught:
                way(x)
            assert "\n" not in str(caught.value)


def test_parts_that_do_not_fit_are_one_line(path: str) -> None:
    packed = pack("bitmask", torch.randn(8, 64), torch.rand(8, 64) < 0.5, dtype=torch.int8)
    assert packed.mask is not None and packed.offsets is not None
    x = torch.randn(1, 64)
    for change, line in (
        ({"mask": packed.mask[:7]}, r"the offsets are|the mask is \[7, 8\]"),
        ({"mask": packed.mask[:, :7].contiguous()}, r"the mask is \[8, 7\], not \[8, 8\]"),
        ({"mask": packed.mask.t()}, "not contiguous"),
        ({"offsets": packed.offsets.int()}, "the offsets are"),
        ({"scales": None}, "0 scales, not 8"),
        ({"scales": torch.ones(9)}, "9 scales, not 8"),
        ({"scales": torch.ones(8).half()}, "scales are torch.float16"),
        ({"values": packed.values[:, None]}, "values have 2 dimensions"),
    ):
        with pytest.raises(BadInput, match=line):
            ops.operator_of(replace(packed, **change))(x)
        with pytest.raises(BadInput, match=line):
            ops.Product(replace(packed, **change))
    with pytest.raises(BadInput, match=r"the bias is \[9\], not \[8\]"):
        ops.operator_of(packed, torch.ones(9))(x)
    with pytest.raises(BadInput, match=r"the bias is \[9\], not \[8\]"):
        ops.Product(packed, torch.ones(9))


def arguments(packed: Packed, bias: Tensor | None) -> tuple[str, tuple[object, ...]]:
    """The registered operator's name and what it takes after x."""
    p, (rows, columns) = packed, packed.shape
    return {
        "bitmask": ("bitmask_linear", (p.values, p.mask, p.offsets, p.scales, bias, columns, p.group)),
        "nm": ("nm_linear", (p.values, p.mask, p.scales, bias, p.n, p.group)),
        "1x4": ("block_linear", (p.values, p.mask, p.offsets, p.scales, bias, rows, columns, p.group)),
        "16x1": ("block_linear", (p.values, p.mask, p.offsets, p.scales, bias, rows, columns, p.group)),
        "dense": ("dense_linear", (p.values, p.scales, bias, p.group)),
    }[packed.kind]


@pytest.mark.parametrize("kind", ["bitmask", "2:4", "1x4", "16x1", "dense"])
def test_the_operators_are_registered_as_torch_wants_them(kind: str) -> None:
    packed = dict(every(24, 64))[f"{kind} int8 32 torch.float32"]
    name, rest = arguments(packed, torch.randn(24))
    operator = getattr(torch.ops.secateur, name).default
    for x in (torch.randn(3, 64), torch.randn(2, 2, 64).bfloat16()):
        found = torch.library.opcheck(operator, (x, *rest))
        assert set(found.values()) == {"SUCCESS"}


class Two(nn.Module):
    """A packed product between ordinary modules."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.product, self.norm = (
            ops.Product(packed, torch.ones(packed.shape[0])),
            nn.LayerNorm(packed.shape[1]),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.product(self.norm(x))) * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["bitmask torch.float32", "2:4 int8 32 torch.float32", "16x1 torch.bfloat16", "int4 32"]
)
def test_compile_takes_the_whole_graph(name: str) -> None:
    model = Two(dict(every(24, 64))[name])
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        for batch in (1, 3, 7):
            x = torch.randn(batch, 64)
            assert torch.allclose(compiled(x), model(x), atol=1e-5)


@pytest.mark.parametrize("kind", ["bitmask", "2:4", "1x4", "16x1", "dense"])
def test_export_holds_the_operator_for_any_batch(kind: str) -> None:
    packed = pack(kind, torch.randn(24, 64), mask_of(kind, 24, 64, 0.5, torch.Generator()))
    model = Two(packed)
    batch = {"x": {0: torch.export.Dim("batch", min=2, max=100)}}
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(3, 64),), dynamic_shapes=batch)
        x = torch.randn(9, 64)
        assert torch.allclose(program.module()(x), model(x), atol=1e-5)
    assert f"torch.ops.secateur.{arguments(packed, None)[0]}" in program.graph_module.code


def test_without_kernels_the_rows_are_taken_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load", lambda: None)
    monkeypatch.setattr(ops, "_ROWS", 16)
    for _, packed in every(70, 64):
        x = torch.randn(5, 64)
        assert off(packed, x, None, ops.Product(packed)(x)) <= 1
        x[2, 3] = math.nan
        assert torch.equal(ops.Product(packed)(x).isnan(), slow(packed, x)[0].isnan())


@pytest.mark.parametrize(("rows", "columns"), [(13, 8260), (4, 8320)])
def test_long_rows_are_the_oracle(path: str, rows: int, columns: int) -> None:
    """Past 4,096 columns (float32), 6,144 (int8, two digits), 8,192 (bfloat16) more rows are read side by side."""
    generator = torch.Generator().manual_seed(rows)
    plain = torch.randn(1, columns, generator=generator)
    wide = plain.clone()
    wide[0, 1000:1004] = 100.0  # one digit more
    for _, packed in every(rows, columns):
        product = ops.Product(packed)
        for x in (plain, wide, plain.bfloat16(), wide.bfloat16()):
            assert off(packed, x, None, product(x)) <= 1, (packed.kind, packed.values.dtype)


def test_a_wide_matrix_is_what_torch_multiplies(path: str) -> None:
    packed = pack("bitmask", torch.randn(300, 4096), torch.rand(300, 4096) < 0.5, dtype=torch.bfloat16)
    x = torch.randn(2, 4096)
    y = ops.Product(packed)(x)
    assert torch.allclose(y, x @ unpack(packed).float().t(), atol=2e-3)
