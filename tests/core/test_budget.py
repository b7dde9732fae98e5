"""One amount in the user's currency to one sparsity: identities, and what cannot be met."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.core.budget import Budget, parse_fraction
from secateur.core.units import Site
from secateur.errors import BadInput, Infeasible, SecateurError

SITES = [Site("a", (10, 30)), Site("b", (7, 100))]  # 1,000 units


@given(st.floats(0.001, 0.999), st.floats(0, 1e6), st.floats(0.1, 10))
def test_what_is_left_costs_what_was_asked(sparsity: float, fixed: float, unit_cost: float) -> None:
    limit = fixed + 1000 * unit_cost * (1 - sparsity)
    for name in ("params", "flops", "bytes"):
        found = Budget(**{name: limit}).resolve(SITES, fixed, unit_cost)
        assert found == pytest.approx(sparsity, abs=1e-6)


def test_prices_count() -> None:
    sites = [Site("a", (10, 10), price=3.0), Site("b", (10, 10))]
    assert Budget(params=200).resolve(sites) == pytest.approx(0.5)


def test_fractions_need_no_model() -> None:
    assert Budget(sparsity=0.3).resolve([]) == 0.3
    assert Budget(density=0.25).resolve([]) == 0.75 and Budget(density=1).resolve([]) == 0


@given(st.integers(1, 1000))
def test_keep_keeps_that_many(keep: int) -> None:
    from secateur.core.select import cut_count

    assert 1000 - cut_count(1000, Budget(keep=keep).resolve(SITES, fixed=5e9, unit_cost=4)) == keep


def test_what_cannot_be_met_names_the_nearest() -> None:
    with pytest.raises(Infeasible, match="at least 501"):
        Budget(params=500).resolve(SITES, fixed=500)
    with pytest.raises(Infeasible, match="at most 1500"):
        Budget(params=1501).resolve(SITES, fixed=500)
    with pytest.raises(Infeasible, match="at most 1000"):
        Budget(keep=1001).resolve(SITES)
    assert Budget(params=1500).resolve(SITES, fixed=500) == 0


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"sparsity": 0.5, "density": 0.5},
        {"sparsity": 1.0},
        {"sparsity": -0.1},
        {"density": 0},
        {"density": 1.01},
        {"density": "half"},
        {"density": True},
        {"keep": 0},
        {"keep": "5"},
        {"keep": float("nan")},
        {"params": -1},
        {"flops": 0.0},
        {"bytes": [1]},
    ],
)
def test_what_is_no_amount_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Budget(**bad)


def test_an_infinite_limit_is_more_than_the_model_has() -> None:
    with pytest.raises(SecateurError):
        Budget(params=float("inf")).resolve(SITES)


def test_fractions_in_words() -> None:
    assert parse_fraction("50%") == 0.5 and parse_fraction("0.25") == 0.25 and parse_fraction(0.1) == 0.1
    for bad in ("half", "", "%", "1/2", "50 %%"):
        with pytest.raises(BadInput, match="50%"):
            parse_fraction(bad)
