"""Shares, exact counts and moving connections against slow renderings and the sheet's figures."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.apply.regrow import (
    SHARES,
    check_moves,
    cosine,
    exact_cuts,
    last_linear,
    layer_sparsities,
    move,
    random_masks,
)
from secateur.core.units import Site
from secateur.errors import BadInput, Infeasible
from secateur.methods.weights.rigl import RigL

SHEET = [
    Site("c1", (16, 3, 3, 3)),
    Site("c2", (32, 16, 3, 3)),
    Site("c3", (64, 32, 3, 3)),
    Site("fc", (10, 64)),
]
SIZE = 24_112


def slow_move(weight: list[float], mask: list[bool], count: int, growth: list[float]) -> list[bool]:
    """By sorted lists of indices; the lowest index is dropped first and grown last."""
    active = sorted((i for i, m in enumerate(mask) if m), key=lambda i: abs(weight[i]))
    kept = set(active[count:])
    free = sorted((i for i in range(len(mask)) if i not in kept), key=lambda i: growth[i])
    grown = set(free[len(free) - count :])
    return [i in kept | grown for i in range(len(mask))]


@given(st.data())
def test_move_equals_its_slow_rendering_ties_and_all(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 30))
    few = st.integers(-3, 3).map(float)
    weight, growth = (data.draw(st.lists(few, min_size=n, max_size=n)) for _ in range(2))
    mask = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    count = data.draw(st.integers(0, sum(mask)))
    found = move(torch.tensor(weight), torch.tensor(mask), count, torch.tensor(growth).abs())
    assert found.tolist() == slow_move(weight, mask, count, [abs(g) for g in growth])
    assert int(found.sum()) == sum(mask)


def test_move_leaves_its_arguments_alone() -> None:
    mask = torch.tensor([[True, True], [False, False]])
    before = mask.clone()
    found = move(torch.ones(2, 2), mask, 1, torch.tensor([[0.0, 0], [0, 1]]))
    assert torch.equal(mask, before) and found.tolist() == [[False, True], [False, True]]


@pytest.mark.parametrize(
    ("layers", "density", "wanted"),
    [
        ("erk", 0.1, (0.56630, 0.11468, 0.05415, 1.0)),
        ("erk", 0.2, (1.0, 0.28173, 0.13304, 1.0)),
        ("er", 0.1, (0.61936, 0.14669, 0.07335, 0.18092)),
        ("er", 0.2, (1.0, 0.30044, 0.15022, 0.37054)),
    ],
)
def test_the_sheets_densities(layers: str, density: float, wanted: tuple[float, ...]) -> None:
    found = [1 - s for s in layer_sparsities(SHEET, 1 - density, layers).values()]
    assert found == pytest.approx(wanted, abs=6e-6)


@pytest.mark.parametrize("layers", SHARES)
@given(density=st.floats(0.07, 1.0))
def test_every_way_meets_the_budget(layers: str, density: float) -> None:
    sparsity = max(0.0, 1 - density)
    shares = layer_sparsities(SHEET, sparsity, layers)
    assert list(shares) == [site.name for site in SHEET]
    assert all(-1e-9 <= s < 1 for s in shares.values())
    assert sum((1 - shares[s.name]) * s.size for s in SHEET) == pytest.approx((1 - sparsity) * SIZE, rel=1e-9)
    cuts = exact_cuts(SHEET, shares, sparsity)
    assert sum(cuts.values()) == int(SIZE * sparsity + 1e-9)
    assert all(0 <= cuts[s.name] - int(s.size * shares[s.name] + 1e-9) <= 1 for s in SHEET)


@pytest.mark.parametrize("layers", SHARES)
def test_densities_rise_with_the_budget_and_end_at_one(layers: str) -> None:
    rows = [layer_sparsities(SHEET, s, layers) for s in (0.9, 0.7, 0.5, 0.3, 0.1, 0.01, 0.0)]
    for name in ("c1", "c2", "c3"):
        sparsities = [row[name] for row in rows]
        assert sparsities == sorted(sparsities, reverse=True) and sparsities[-1] == 0


def test_linear_layers_alone_make_er_and_erk_equal() -> None:
    sites = [Site("a", (30, 20)), Site("b", (10, 30)), Site("c", (4, 10))]
    assert layer_sparsities(sites, 0.7, "er") == pytest.approx(layer_sparsities(sites, 0.7, "erk"))


def test_uniform_plus_and_erk_plus_by_hand() -> None:
    rest = (0.1 * SIZE - 432 - 0.2 * 640) / (SIZE - 432 - 640)
    found = {n: 1 - s for n, s in layer_sparsities(SHEET, 0.9, "uniform_plus").items()}
    assert found == pytest.approx({"c1": 1.0, "c2": rest, "c3": rest, "fc": 0.2})
    rest = (0.5 * SIZE - 432) / (SIZE - 432)  # at half, the last layer is as dense as the rest
    found = {n: 1 - s for n, s in layer_sparsities(SHEET, 0.5, "uniform_plus").items()}
    assert found == pytest.approx({"c1": 1.0, "c2": rest, "c3": rest, "fc": rest})
    found = layer_sparsities(SHEET, 0.9, "erk_plus", last_density=0.5)
    inner = layer_sparsities(SHEET[:3], 1 - (0.1 * SIZE - 320) / (SIZE - 640), "erk")
    assert found == pytest.approx({**inner, "fc": 0.5})
    assert last_linear(SHEET) == "fc" and last_linear(SHEET[:3]) is None


def test_what_cannot_be_shared_is_one_line() -> None:
    with pytest.raises(Infeasible, match="fc alone would hold"):
        layer_sparsities(SHEET, 0.98, "erk_plus")
    with pytest.raises(Infeasible, match="c1 alone would hold"):
        layer_sparsities(SHEET[:1], 0.5, "uniform_plus")
    with pytest.raises(Infeasible, match="fewer than one weight a layer"):
        exact_cuts([Site("a", (2, 2)), Site("b", (2, 2))], {"a": 0.9, "b": 0.9}, 0.9)
    with pytest.raises(BadInput, match="did you mean 'erk'"):
        layer_sparsities(SHEET, 0.5, "erkk")
    for fraction, every in ((1.5, 1), (True, 1), (0.5, 0), (0.5, 1.0)):
        with pytest.raises(BadInput):
            check_moves(fraction, every)  # type: ignore[arg-type]


def test_a_small_layer_keeps_one_weight_and_another_makes_up_for_it() -> None:
    sites = [Site("tiny", (1, 2)), Site("big", (10, 10))]
    cuts = exact_cuts(sites, {"tiny": 0.99, "big": 0.88}, 0.9)
    assert cuts == {"tiny": 1, "big": 90}
    notes: list[str] = []
    masks = random_masks(sites, cuts, torch.Generator().manual_seed(0), notes)
    assert {n: int((~m).sum()) for n, m in masks.items()} == cuts and notes == [
        "tiny: one weight of 2 is left"
    ]
    assert all(mask.shape == site.shape for mask, site in zip(masks.values(), sites, strict=True))


def test_the_cosine_runs_from_start_to_end() -> None:
    assert cosine(0.5, 0.005, 0, 100) == 0.5 and cosine(0.5, 0.005, 100, 100) == pytest.approx(0.005)
    assert cosine(0.3, 0.0, 50, 100) == pytest.approx(0.15) and cosine(0.3, 0.1, 200, 100) == pytest.approx(
        0.1
    )


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_weight_cut_and_grown_again_starts_from_nothing(name: str) -> None:
    """Moments of a connection that comes back are 0, although it had some before it was cut."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8))
    weight = model[0].weight
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD([weight, model[0].bias], 0.1, momentum=0.9, weight_decay=0.1)
        if name == "sgd"
        else torch.optim.Adam(model.parameters(), 0.05)
    )
    pruner = RigL(sparsity=0.5, every=2, end=1.0, fraction=0.5).attach(model, optimizer, steps=40)
    had: Tensor = torch.zeros_like(weight, dtype=torch.bool)  # was active once, and is cut now
    came_back = 0
    for _ in range(39):
        before = pruner.net.masks["0.weight"].clone()
        x = torch.randn(16, 8)
        (model(x) - x.flip(1)).square().mean().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
        after = pruner.net.masks["0.weight"]
        grown = after & ~before
        came_back += int((grown & had).sum())
        moments = [
            v for v in optimizer.state[weight].values() if isinstance(v, Tensor) and v.shape == weight.shape
        ]
        assert moments and all(not m[grown].any() and not m[~after].any() for m in moments)
        assert not weight[grown].any() and not weight[~after].any()
        had = (had | before) & ~after
        assert int(after.sum()) == 32
    assert came_back > 5 and prod(weight.shape) == 64
