"""How a budget is split: the sheet's numbers, sums to the digit, a ranking against a full sort."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.core.allocate import by_price, erk, global_ranking, owl, uniform
from secateur.core.select import cut_count
from secateur.core.units import Site
from secateur.errors import BadInput, Infeasible

# Sheet random-pruning, "How to check it": 24,112 weights in all.
SHEET = [
    Site("c1", (16, 3, 3, 3)),
    Site("c2", (32, 16, 3, 3)),
    Site("c3", (64, 32, 3, 3)),
    Site("fc", (10, 64)),
]


def densities(sites: list[Site], density: float, kernel: bool = True) -> dict[str, float]:
    return {name: 1 - s for name, s in erk(sites, 1 - density, kernel).items()}


@pytest.mark.parametrize(
    ("density", "kernel", "wanted"),
    [
        (0.1, True, (0.56630, 0.11468, 0.05415, 1.0)),
        (0.2, True, (1.0, 0.28173, 0.13304, 1.0)),
        (0.1, False, (0.61936, 0.14669, 0.07335, 0.18092)),
        (0.2, False, (1.0, 0.30044, 0.15022, 0.37054)),
    ],
)
def test_erk_and_er_give_the_sheets_numbers(density: float, kernel: bool, wanted: tuple[float, ...]) -> None:
    found = densities(SHEET, density, kernel)
    assert [round(found[s.name], 5) for s in SHEET] == list(wanted)
    kept = sum(found[s.name] * s.size for s in SHEET)
    assert sum(s.size for s in SHEET) == 24112 and abs(kept - density * 24112) < 1e-9


shapes = st.lists(st.tuples(st.integers(1, 600), st.integers(1, 600)), min_size=1, max_size=9)


@given(shapes, st.floats(0, 0.9999), st.booleans())
def test_erk_meets_the_total_and_never_leaves_its_range(
    sides: list[tuple[int, int]], sparsity: float, kernel: bool
) -> None:
    sites = [Site(f"s{i}", shape) for i, shape in enumerate(sides)]
    found = erk(sites, sparsity, kernel)
    assert all(0 <= s <= 1 for s in found.values())
    total = sum(site.size for site in sites)
    cut = sum(found[site.name] * site.size for site in sites)
    assert abs(cut - sparsity * total) <= 1e-9 * total
    assert found == erk(sites, sparsity, not kernel)  # linear layers: ER and ERK agree


@given(shapes, st.floats(0.01, 0.95))
def test_erk_density_does_not_fall_when_the_budget_grows(
    sides: list[tuple[int, int]], sparsity: float
) -> None:
    sites = [Site(f"s{i}", shape) for i, shape in enumerate(sides)]
    less, more = erk(sites, sparsity), erk(sites, sparsity * 0.9)
    assert all(more[name] <= less[name] + 1e-9 for name in less)


def test_erk_at_sparsity_0_keeps_everything() -> None:
    assert max(erk(SHEET, 0.0).values()) < 1e-12


def test_uniform_is_uniform_and_checks_its_range() -> None:
    assert uniform(SHEET, 0.3) == dict.fromkeys(("c1", "c2", "c3", "fc"), 0.3)
    for bad in (-0.1, 1.0, float("nan")):
        for split in (uniform, erk):
            with pytest.raises(BadInput):
                split(SHEET, bad)


# -- one ranking over all sites ------------------------------------------------------------------------------------


def ranked(scores: list[Tensor], sparsity: float) -> list[Tensor]:
    """Masks that a PerLayer selection makes of the split."""
    from secateur.core.select import PerLayer

    sites = [Site(f"s{i}", tuple(score.shape)) for i, score in enumerate(scores)]

    def again() -> Iterator[tuple[str, Tensor]]:
        yield from ((site.name, score) for site, score in zip(sites, scores, strict=True))

    split = global_ranking(sites, again, sparsity)
    return [PerLayer().select(score, split[site.name]) for site, score in zip(sites, scores, strict=True)]


def full_sort(scores: list[Tensor], sparsity: float) -> list[np.ndarray]:
    flat = np.concatenate([score.float().reshape(-1).numpy() for score in scores]) + 0.0
    keep = np.ones(len(flat), dtype=bool)
    keep[np.argsort(flat, kind="stable")[: cut_count(len(flat), sparsity)]] = False
    return np.split(keep, np.cumsum([score.numel() for score in scores])[:-1])


@st.composite
def rankings(draw: st.DrawFn) -> tuple[list[Tensor], float]:
    stream = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    scores = []
    for _ in range(draw(st.integers(1, 5))):
        shape = (draw(st.integers(1, 20)), draw(st.integers(1, 20)))
        kind = draw(st.sampled_from(["normal", "few", "equal", "huge", "tiny"]))
        score = torch.randn(shape, generator=stream)
        scores.append(
            {
                "normal": score,
                "few": score.round(),
                "equal": torch.full(shape, draw(st.sampled_from([0.0, -0.0, 1.0, -1.0]))),
                "huge": score * 1e38,
                "tiny": score * 1e-40,
            }[kind]
        )
    return scores, draw(st.integers(0, 99).map(lambda p: p / 100) | st.floats(0, 1, exclude_max=True))


@settings(max_examples=300, deadline=None)
@given(rankings())
def test_global_ranking_equals_one_full_sort(case: tuple[list[Tensor], float]) -> None:
    scores, sparsity = case
    for found, wanted in zip(ranked(scores, sparsity), full_sort(scores, sparsity), strict=True):
        assert np.array_equal(found.reshape(-1).numpy(), wanted)


def test_global_ranking_is_exact_over_a_million_units() -> None:
    stream = torch.Generator().manual_seed(0)
    scores = [
        torch.randn(500, 800, generator=stream),
        torch.randn(600, 1000, generator=stream).mul(30).round(),
    ]
    for sparsity in (0.1, 0.5, 0.987654):
        found = ranked(scores, sparsity)
        assert sum(int((~keep).sum()) for keep in found) == cut_count(1_000_000, sparsity)
        for keep, wanted in zip(found, full_sort(scores, sparsity), strict=True):
            assert np.array_equal(keep.reshape(-1).numpy(), wanted)


def test_global_ranking_may_empty_a_site_and_spare_another() -> None:
    masks = ranked([torch.full((4, 5), 0.1), torch.full((2, 10), 9.0)], 0.5)
    assert not masks[0].any() and masks[1].all()


def test_a_negative_zero_is_a_zero_and_ties_with_it() -> None:
    masks = ranked([torch.zeros(2, 3), torch.full((2, 3), -0.0)], 0.5)
    assert (
        not masks[0].any() and masks[1].all()
    )  # the earlier site goes first, whatever the sign of its zeros


def test_multiplying_one_site_by_ten_moves_the_cuts_to_the_others() -> None:
    stream = torch.Generator().manual_seed(0)
    scores = [torch.rand(10, 10, generator=stream) for _ in range(3)]
    before = [int((~keep).sum()) for keep in ranked(scores, 0.4)]
    after = [int((~keep).sum()) for keep in ranked([scores[0] * 10, *scores[1:]], 0.4)]
    assert after[0] < before[0] and after[1] > before[1] and sum(after) == sum(before) == 120


# -- unequal prices ---------------------------------------------------------------------------------------------------


def test_by_price_ranks_by_score_for_money_and_stays_in_budget() -> None:
    scores = {"cheap": torch.tensor([1.0, 2.0, 3.0]), "dear": torch.tensor([4.0, 40.0])}
    keep = by_price(scores, {"cheap": 1.0, "dear": 4.0}, 0.5)  # for a price of 1: 1, 2, 3 and 1, 10; total 11
    assert keep["cheap"].tolist() == [False, True, True]
    assert keep["dear"].tolist() == [False, True]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.floats(0, 0.99), st.floats(0.5, 9))
def test_by_price_never_cuts_more_than_its_share(values: list[int], sparsity: float, price: float) -> None:
    scores = {
        "a": torch.tensor(values, dtype=torch.float32),
        "b": torch.tensor(values[::-1], dtype=torch.float32),
    }
    keep = by_price(scores, {"a": 1.0, "b": price}, sparsity)
    total = len(values) * (1 + price)
    spent = int((~keep["a"]).sum()) + price * int((~keep["b"]).sum())
    assert spent <= total * sparsity + 1e-6
    assert sum(
        int((~k).sum()) for k in by_price(scores, {"a": 1.0, "b": 1.0}, sparsity).values()
    ) == cut_count(2 * len(values), sparsity)


# -- OWL ----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 1000)), min_size=1, max_size=12),
    st.floats(0, 0.99),
    st.floats(0, 0.49),
)
def test_owl_meets_the_mean_inside_its_band(
    blocks: list[tuple[float, int]], sparsity: float, lam: float
) -> None:
    shares, sizes = [s for s, _ in blocks], [n for _, n in blocks]
    found = owl(shares, sparsity, lam, sizes)
    assert sum(s * n for s, n in zip(found, sizes, strict=True)) / sum(sizes) == pytest.approx(
        sparsity, abs=1e-9
    )
    assert min(found) >= 0 and max(found) <= max(0.99, sparsity) + 1e-12
    assert max(found) - min(found) <= 2 * lam + 1e-9


def test_owl_keeps_more_where_there_are_more_outliers() -> None:
    found = owl([0.01, 0.02, 0.05], 0.7)
    assert found[0] > found[1] > found[2]
    assert max(found) - min(found) == pytest.approx(0.16)  # the band of 2 * lam, lam 0.08
    z = [0.0, 0.25, 1.0]
    assert found == pytest.approx([0.7 - 0.16 * (v - sum(z) / 3) for v in z])
    assert owl([0.3, 0.3], 0.5) == [0.5, 0.5]


def test_owl_refuses_what_is_not_finite_or_empty() -> None:
    for bad in ([], [0.1, float("nan")], [float("inf")]):
        with pytest.raises(BadInput, match="owl"):
            owl(bad, 0.5)


def test_erk_says_when_nothing_is_left_to_cut() -> None:
    with pytest.raises(Infeasible, match="dense"):
        erk([], 0.5)
