"""Methods by name, settings checked when they are made, and back from JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from secateur.core.budget import Budget
from secateur.core.method import ALLOCATIONS, CLAIMS, OneShot, site_sparsity
from secateur.core.select import NM, PerLayer, PerRow
from secateur.core.units import Site, Unit
from secateur.errors import BadInput, NoMatch
from secateur.registry import find, make, name_of, names

METHODS = ["random", "magnitude", "wanda", "sparsegpt", "l_obs", "essential_sparsity"]


def test_the_table_holds_the_methods_of_this_version() -> None:
    assert names("once") == METHODS


@pytest.mark.parametrize("name", names("once"))
def test_every_method_can_be_found_made_and_named(name: str) -> None:
    method = make(name)
    assert type(method) is find(name) and name_of(method) == name and isinstance(method, OneShot)
    assert method.sparsity == 0.5 and method.card.unit in Unit and method.card.paper and method.card.criterion
    assert set(method.claims) <= set(CLAIMS) and isinstance(method.updates, bool)
    assert dataclasses.is_dataclass(method) and hash(method) == hash(make(name))


@pytest.mark.parametrize("name", names("once"))
@pytest.mark.parametrize("allocate", ALLOCATIONS)
def test_settings_survive_json(name: str, allocate: str) -> None:
    for sparsity in (0.3, "29%", Budget(bytes=1e6), Budget(keep=7)):
        method = make(name, sparsity=sparsity, pattern="layer", allocate=allocate)
        again = make(name, **json.loads(json.dumps(method.settings(), allow_nan=False)))
        assert again == method, method.settings()


def test_a_typo_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(NoMatch, match="wanda"):
        find("wnada")
    with pytest.raises(NoMatch, match="magnitude"):
        make("magnitud")
    with pytest.raises(NoMatch, match=r"sparsty.*sparsity"):
        make("wanda", sparsty=0.5)
    with pytest.raises(NoMatch, match=r"blocksize"):
        make("sparsegpt", block_size=128)


def test_nm_alone_fixes_the_sparsity() -> None:
    assert make("wanda", pattern="2:4").sparsity == 0.5 and make("wanda", pattern="1:4").sparsity == 0.75
    assert make("wanda", pattern="2:4", sparsity=0.5).pattern == NM(2, 4)
    assert make("wanda", pattern="1:3", sparsity=1 - 1 / 3).pattern == NM(1, 3)
    for sparsity in (0.6, 0.25, "70%", Budget(density=0.5)):
        with pytest.raises(BadInput, match="2:4"):
            make("wanda", pattern="2:4", sparsity=sparsity)
    for allocate in set(ALLOCATIONS) - {"uniform"}:
        with pytest.raises(BadInput, match="2:4"):
            make("wanda", pattern="2:4", allocate=allocate)


def test_defaults_are_the_papers() -> None:
    assert make("wanda").pattern == PerRow() and make("wanda").allocate == "uniform"
    for name in ("magnitude", "sparsegpt", "l_obs", "essential_sparsity"):
        assert make(name).pattern == PerLayer()
    assert make("essential_sparsity").allocate == "global"
    assert make("essential_sparsity", pattern="2:4").allocate == "uniform"


@pytest.mark.parametrize(
    "bad",
    [
        {"sparsity": -0.1},
        {"sparsity": 1},
        {"sparsity": 1.5},
        {"sparsity": float("nan")},
        {"sparsity": "half"},
        {"sparsity": True},
        {"sparsity": []},
        {"sparsity": {"densty": 0.5}},
        {"sparsity": {}},
        {"pattern": "4:2"},
        {"pattern": "0:4"},
        {"pattern": 5},
        {"pattern": None},
        {"allocate": "unifrom"},
        {"allocate": None},
        {"owl_m": 0},
        {"owl_m": float("nan")},
        {"owl_m": float("inf")},
        {"owl_m": "5"},
        {"owl_lambda": 0.5},
        {"owl_lambda": -0.1},
    ],
)
@pytest.mark.parametrize("name", names("once"))
def test_settings_outside_their_range_are_refused_when_made(name: str, bad: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        make(name, **bad)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("random", {"seed": -1}),
        ("random", {"seed": 2**31}),
        ("random", {"seed": 0.5}),
        ("random", {"seed": True}),
        ("wanda", {"share": "no"}),
        ("wanda", {"share": 1}),
        ("wanda", {"share": True, "pattern": "layer"}),
        ("wanda", {"share": True, "pattern": "2:4"}),
        ("sparsegpt", {"blocksize": 0}),
        ("sparsegpt", {"blocksize": 12.5}),
        ("sparsegpt", {"damping": -0.01}),
        ("sparsegpt", {"damping": float("nan")}),
        ("sparsegpt", {"damping": 1.01}),
        ("l_obs", {"damping": -1e-9}),
        ("l_obs", {"exact": "yes"}),
    ],
)
def test_a_methods_own_settings_too(name: str, bad: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=next(iter(bad))):
        make(name, **bad)


def test_a_class_outside_the_table_answers_with_its_own_name() -> None:
    class Mine(find("magnitude")):  # type: ignore[misc]
        pass

    assert name_of(Mine()) == "mine"


def test_splitting_by_shapes() -> None:
    sites = [Site("a", (10, 10)), Site("b", (100, 100))]
    assert site_sparsity(make("wanda"), sites, 0.3) == {"a": 0.3, "b": 0.3}
    split = site_sparsity(make("wanda", allocate="erk"), sites, 0.3)
    assert split["a"] < split["b"] and 100 * split["a"] + 10_000 * split["b"] == pytest.approx(3030)
