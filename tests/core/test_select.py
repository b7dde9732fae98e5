"""Exact counts and stable ties for every pattern, against a slow stable sort."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.core.select import (
    NM,
    Blocks,
    PerColumn,
    PerLayer,
    PerRow,
    check_sparsity,
    cut_count,
    keep_top,
    parse_pattern,
)
from secateur.errors import BadInput, Infeasible
from tests.oracles import slow_select


def stable_keep(groups: np.ndarray, cut: int) -> np.ndarray:
    """[groups, n]: the first `cut` of a stable ascending sort go."""
    keep = np.ones(groups.shape, dtype=bool)
    order = np.argsort(groups, axis=1, kind="stable")
    np.put_along_axis(keep, order[:, :cut], False, axis=1)
    return keep


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Any, float]:
    """A score matrix with many ties, a pattern that divides it, and a sparsity."""
    pattern = draw(
        st.sampled_from([PerRow(), PerColumn(), PerLayer(), NM(2, 4), NM(1, 4), NM(4, 8), NM(3, 5), NM(1, 1)])
        | st.builds(lambda m, n: NM(min(n, m), m), st.integers(1, 40), st.integers(1, 40))
        | st.builds(Blocks, st.integers(1, 5), st.integers(1, 17))
    )
    step = pattern.m if isinstance(pattern, NM) else pattern.columns if isinstance(pattern, Blocks) else 1
    tall = pattern.rows if isinstance(pattern, Blocks) else 1
    width = step * draw(st.integers(1, max(1, 4096 // step)))
    out = tall * draw(st.integers(1, max(1, min(6, 8192 // (width * tall)))))
    stream = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kind = draw(st.sampled_from(["equal", "few", "zeros", "normal", "tiny", "signed zero"]))
    score = {
        "equal": torch.full((out, width), draw(st.sampled_from([0.0, -1.5, 3e38, 1e-45]))),
        "few": torch.randint(-2, 2, (out, width), generator=stream).float(),
        "zeros": torch.randn(out, width, generator=stream).relu(),
        "normal": torch.randn(out, width, generator=stream),
        "tiny": torch.randn(out, width, generator=stream) * 1e-42,
        "signed zero": torch.where(torch.rand(out, width, generator=stream) < 0.5, 0.0, -0.0),
    }[kind]
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    hundredths = st.integers(0, 99).map(lambda p: p / 100)
    return (
        score.to(dtype),
        pattern,
        draw(hundredths | st.floats(0, 1, exclude_max=True) | st.just(1 - 2**-53)),
    )


def agrees(case: tuple[Tensor, Any, float]) -> None:
    score, pattern, sparsity = case
    out, width = score.shape
    keep = pattern.select(score.clone(), sparsity)
    values = score.float().nan_to_num(posinf=3e38, neginf=-3e38).double().numpy() + 0.0
    if score.dtype == torch.float64:
        values = score.numpy() + 0.0
    if isinstance(pattern, NM):
        wanted = stable_keep(values.reshape(-1, pattern.m), pattern.m - pattern.n).reshape(out, width)
    elif isinstance(pattern, PerColumn):
        wanted = stable_keep(values.T, cut_count(out, sparsity)).T
    elif isinstance(pattern, PerRow):
        wanted = stable_keep(values, cut_count(width, sparsity))
    elif isinstance(pattern, PerLayer):
        wanted = stable_keep(values.reshape(1, -1), cut_count(out * width, sparsity)).reshape(out, width)
    else:
        tiles = score.float().reshape(out // pattern.rows, pattern.rows, -1, pattern.columns).mean((1, 3))
        flat = stable_keep(tiles.reshape(1, -1).numpy() + 0.0, cut_count(tiles.numel(), sparsity))
        wanted = flat.reshape(tiles.shape).repeat(pattern.rows, 0).repeat(pattern.columns, 1)
    assert keep.dtype == torch.bool and keep.shape == score.shape
    assert np.array_equal(keep.numpy(), wanted)


@settings(max_examples=500, deadline=None)
@given(cases())
def test_every_pattern_equals_a_stable_sort(case: tuple[Tensor, Any, float]) -> None:
    agrees(case)
    assert case[0].dim() == 2


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(cases())
def test_every_pattern_equals_a_stable_sort_10000(case: tuple[Tensor, Any, float]) -> None:
    agrees(case)
    assert case[0].dim() == 2


def test_every_length_with_equal_scores_is_exact() -> None:
    for n in range(1, 4097):
        sparsity = (n * 37 % 100) / 100
        keep = keep_top(torch.zeros(1, n), cut_count(n, sparsity))[0]
        cut = n * 37 % 100 * n // 100  # the same in whole numbers
        assert int((~keep).sum()) == cut and bool(keep[cut:].all()), n


def test_python_loops_agree_with_the_patterns() -> None:
    score = torch.randint(0, 4, (6, 12), generator=torch.Generator().manual_seed(1)).float()
    for pattern in (
        PerRow(),
        PerColumn(),
        PerLayer(),
        NM(2, 4),
        NM(5, 6),
        NM(1, 12),
        Blocks(2, 3),
        Blocks(6, 1),
    ):
        for sparsity in (0.0, 0.29, 0.5, 0.75):
            assert torch.equal(pattern.select(score, sparsity), slow_select(score, pattern, sparsity)), (
                pattern
            )


@given(st.integers(1, 5000), st.integers(0, 999))
def test_cut_count_is_exact_for_decimal_fractions(n: int, thousandths: int) -> None:
    exact = math.floor(Fraction(thousandths, 1000) * n)
    assert cut_count(n, thousandths / 1000) == exact


def test_cut_count_takes_back_what_binary_fractions_lose() -> None:
    assert int(100 * 0.29) == 28 and cut_count(100, 0.29) == 29
    assert cut_count(10, 1 - 0.9) == 1  # density 0.9 of 10
    assert cut_count(1, 0.999999) == 0


@given(st.integers(1, 64), st.integers(1, 300), st.data())
def test_keep_top_counts_whatever_the_cut(groups: int, n: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(-1, n + 2))
    stream = torch.Generator().manual_seed(n)
    score = torch.randint(0, 3, (groups, n), generator=stream).float()
    keep = keep_top(score, cut)
    assert (keep.sum(1) == n - min(max(cut, 0), n)).all()
    assert (score.where(keep, torch.inf).amin(1) >= score.where(~keep, -torch.inf).amax(1)).all()


def test_selecting_leaves_the_scores_alone() -> None:
    for dtype in (torch.float32, torch.float16):
        score = torch.randn(8, 24, generator=torch.Generator().manual_seed(0)).to(dtype)
        before, version = score.clone(), score._version
        for pattern in (PerRow(), PerColumn(), PerLayer(), NM(2, 4), NM(12, 24), Blocks(2, 4)):
            pattern.select(score, 0.5)
        assert torch.equal(score, before) and score._version == version


def test_strided_scores_give_the_same_mask() -> None:
    score = torch.randn(24, 8, generator=torch.Generator().manual_seed(0)).t()
    for pattern in (PerRow(), PerColumn(), PerLayer(), NM(2, 4), NM(20, 24), Blocks(2, 4)):
        assert torch.equal(pattern.select(score, 0.5), pattern.select(score.contiguous(), 0.5)), pattern


def test_nm_keeps_n_of_every_m_and_groups_do_not_mix() -> None:
    score = torch.tensor([[1.0, 2, 3, 4, 9, 9, 9, 9, 5, 1, 5, 1]])
    wanted = [[False, False, True, True, False, False, True, True, True, False, True, False]]
    assert NM(2, 4).select(score).tolist() == wanted
    assert NM(1, 4).select(score).sum() == 3 and NM(3, 4).select(score).sum() == 9
    assert NM(1, 3).sparsity == pytest.approx(2 / 3) and NM(4, 4).select(score).all()


@pytest.mark.parametrize("text", ["row", "column", "layer", "2:4", "1:1", "16x1", "4x4"])
def test_patterns_go_to_text_and_back(text: str) -> None:
    pattern = parse_pattern(text)
    assert (
        str(pattern) == text and parse_pattern(str(pattern)) == pattern and parse_pattern(pattern) is pattern
    )


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "rows",
        "4:2",
        "0:4",
        "0:0",
        "-1:4",
        "2:4:8",
        ":4",
        "2:",
        "0x4",
        "4x0",
        "2.0:4",
        " 2:4",
        "x",
        "2*4",
        5,
        None,
        0.5,
        ("2", "4"),
    ],
)
def test_what_is_no_pattern_is_refused(bad: Any) -> None:
    with pytest.raises(BadInput, match="pattern"):
        parse_pattern(bad)


@pytest.mark.parametrize("sides", [(2.0, 4), (2, 4.5), (True, 4), ("2", 4), (0, 4), (-1, 4)])
def test_sides_are_whole_numbers(sides: Any) -> None:
    for kind in (NM, Blocks):
        with pytest.raises(BadInput, match="pattern"):
            kind(*sides)
    for kind in (PerRow, NM):
        with pytest.raises(BadInput, match="pattern"):
            parse_pattern(kind)  # the class, not a pattern


def test_fits_names_the_site_and_the_number() -> None:
    NM(2, 4).fits((3, 128), "q")
    Blocks(2, 4).fits((4, 8), "q")
    with pytest.raises(Infeasible, match=r"^q: 3:5 does not divide 128"):
        NM(3, 5).fits((128, 128), "q")
    with pytest.raises(Infeasible, match="10"):
        NM(2, 4).fits((4, 10), "q")
    for shape in ((3, 8), (4, 6)):
        with pytest.raises(Infeasible, match="q"):
            Blocks(2, 4).fits(shape, "q")


@pytest.mark.parametrize(
    "bad", [-0.1, 1, 1.0, 1.5, float("nan"), float("inf"), "0.5", None, True, False, [0.5]]
)
def test_sparsity_outside_its_range_is_refused(bad: Any) -> None:
    with pytest.raises(BadInput, match="here"):
        check_sparsity(bad, "here")


def test_sparsity_in_its_range_is_a_float() -> None:
    assert (
        check_sparsity(0) == 0.0 and isinstance(check_sparsity(0), float) and check_sparsity(0.999) == 0.999
    )


@given(
    kind=st.sampled_from(["normal", "ties", "sorted", "constant", "half zero"]),
    part=st.floats(0, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_one_long_row_equals_a_stable_sort(kind: str, part: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    n = (1 << 16) + 7
    row = {
        "normal": torch.randn(n, generator=g),
        "ties": torch.randint(0, 4, (n,), generator=g).float(),
        "sorted": torch.arange(n).float(),
        "constant": torch.zeros(n),
        "half zero": torch.randn(n, generator=g).relu(),
    }[kind]
    cut = int(part * n)
    expected = torch.ones(n, dtype=torch.bool)
    expected[row.sort(stable=True).indices[:cut]] = False
    assert torch.equal(keep_top(row[None], cut)[0], expected)
