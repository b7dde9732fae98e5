"""A whole run: what is refused before any change, budgets, plans, progress, what is given back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.check.probe import state
from secateur.core.budget import Budget
from secateur.core.method import OneShot
from secateur.engine.calibrate import Calibration
from secateur.engine.events import Event
from secateur.engine.run import FEEDS, Options, compress, plan
from secateur.errors import BadInput, Infeasible, NoMatch
from secateur.methods.weights.l_obs import LOBS
from secateur.methods.weights.magnitude import Magnitude
from secateur.methods.weights.random import Random
from secateur.methods.weights.sparsegpt import SparseGPT
from secateur.methods.weights.wanda import Wanda
from tests.engine.toy import hooked, tokens, transformer

SITES = ["attention.q", "attention.k", "attention.v", "attention.o", "gate", "up", "down"]
ALL = [f"layers.{i}.{site}" for i in range(3) for site in SITES]


def run(model: nn.Module, method: OneShot, data: Calibration | None = None, **options: Any) -> Any:
    return compress(model, method, data or tokens(), Options(**{"products": "float32", **options}))


def site_of(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module


def expect_same(result: Any, masks: dict[str, Tensor]) -> None:
    assert list(result.plan.sites) == list(masks)
    for name, mask in masks.items():
        assert torch.equal(result.plan.sites[name].mask(), mask), name


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [Wanda(), SparseGPT(), LOBS(), Magnitude(), Random(), Magnitude(allocate="global")], ids=str
)
@pytest.mark.parametrize("feed", FEEDS)
def test_a_bad_weight_is_named_before_any_change(method: OneShot, feed: str) -> None:
    for bad in (float("nan"), float("inf")):
        model = transformer()
        site_of(model, "layers.2.down").weight.data[3, 4] = bad
        told: list[Event] = []
        before = state(model)
        with pytest.raises(BadInput, match=r"layers\.2\.down"):
            run(model, method, feed=feed, listen=told.append)
        assert state(model) == before and told == []


@pytest.mark.parametrize("feed", FEEDS)
def test_a_bad_weight_outside_the_sites_is_named_too(feed: str) -> None:
    model = transformer()
    model.get_submodule("layers.1.norm2").weight.data[5] = float("nan")  # type: ignore[union-attr,operator]
    before = state(model)
    with pytest.raises(BadInput, match=r"layers\.1"):
        run(model, Wanda(), feed=feed)
    assert state(model) == before


@pytest.mark.parametrize("feed", FEEDS)
def test_activations_that_overflow_are_refused(feed: str) -> None:
    model = transformer()
    site_of(model, "layers.0.down").bias.data.fill_(3e38)
    site_of(model, "layers.0.down").weight.data.fill_(1e38)
    before = state(model)
    with pytest.raises(BadInput, match=r"layers\.[01]"):
        run(model, Wanda(), feed=feed)
    assert state(model) == before


def test_a_method_whose_scores_or_masks_are_wrong_is_refused() -> None:
    class Bad(Magnitude):
        def score(self, weight: Tensor, signal: Any, site: Any) -> Tensor:
            return weight.abs().float() * float("nan")

    class Short(Magnitude):
        def select(self, score: Tensor, sparsity: float) -> Tensor:
            return super().select(score, sparsity)[:1]

    class Floats(Magnitude):
        def select(self, score: Tensor, sparsity: float) -> Tensor:
            return super().select(score, sparsity).float()

    for method in (Bad(), Short(), Floats(), Bad(allocate="global")):
        model = transformer()
        before = state(model)
        with pytest.raises(BadInput, match=r"layers\.0\.attention\.q"):
            run(model, method)
        assert state(model) == before


@pytest.mark.parametrize(
    ("options", "kind", "word"),
    [
        ({"feed": "blocks"}, BadInput, "block"),
        ({"batch": 0}, BadInput, "batch"),
        ({"products": "int8"}, BadInput, "products"),
        ({"only": ["*.upp"]}, NoMatch, "up"),
        ({"skip": ["*"]}, NoMatch, "skip"),
    ],
)
def test_options_outside_their_range_are_refused(
    options: dict[str, Any], kind: type[Exception], word: str
) -> None:
    with pytest.raises(kind, match=word):
        run(transformer(), Wanda(), **options)


def test_patterns_that_do_not_divide_are_refused_before_measuring() -> None:
    told: list[Event] = []
    with pytest.raises(Infeasible, match=r"layers\.0\.attention\.q"):
        run(transformer(), Wanda(pattern="3:5"), listen=told.append)
    assert not told


def test_no_calibration_is_one_line() -> None:
    for method in (Wanda(), SparseGPT(), LOBS()):
        with pytest.raises(BadInput, match="calibration"):
            compress(transformer(), method)
    with pytest.raises(BadInput, match="owl"):
        compress(transformer(), Magnitude(allocate="owl"))
    assert compress(transformer(), Magnitude()).plan.sparsity == 0.5


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize(
    "sample",
    [
        {"pixel_values": torch.zeros(3)},
        {"input_ids": torch.tensor([3, 999])},
        {"input_ids": torch.tensor([-5, 1])},
    ],
    ids=["wrong name", "id too big", "id too small"],
)
def test_samples_the_model_cannot_read_are_refused(feed: str, sample: dict[str, Tensor]) -> None:
    model = transformer()
    before = state(model)
    with pytest.raises(BadInput, match="calibration"):
        run(model, Wanda(), Calibration((sample, sample), "odd"), feed=feed, batch=1)
    assert state(model) == before


@pytest.mark.parametrize("feed", FEEDS)
def test_samples_without_a_token_are_refused(feed: str) -> None:
    empty = {"input_ids": torch.zeros(0, dtype=torch.int64)}
    with pytest.raises(BadInput, match="token"):
        run(transformer(), Wanda(), Calibration((empty, empty), "nothing"), feed=feed)


@pytest.mark.parametrize("feed", FEEDS)
def test_it_runs_under_inference_mode_too(feed: str) -> None:
    with torch.inference_mode():
        made = run(transformer(), SparseGPT(), feed=feed).plan
    assert made.digest() == run(transformer(), SparseGPT(), feed=feed).plan.digest()


# -- counts and budgets ----------------------------------------------------------------------------------------------


def test_budgets_in_every_currency() -> None:
    model = transformer()
    total = sum(p.numel() for p in model.parameters())
    units = sum(site_of(model, name).weight.numel() for name in ALL)
    rest = total - units
    for budget, kept in (
        (Budget(sparsity=0.25), 0.75 * units),
        (Budget(density=0.25), 0.25 * units),
        (Budget(keep=1000), 1000),
        (Budget(params=rest + 1000), 1000),
        (Budget(flops=2 * (rest + 1000)), 1000),
        (Budget(bytes=4 * (rest + 1000) + units / 8), 1000),
    ):
        made = run(copy.deepcopy(model), Magnitude(sparsity=budget, allocate="global")).plan
        assert sum(k.count for k in made.sites.values()) == pytest.approx(kept, abs=1), budget
    for budget in (Budget(params=rest), Budget(keep=units + 1), Budget(bytes=10)):
        with pytest.raises(Infeasible, match="at"):
            run(copy.deepcopy(model), Magnitude(sparsity=budget))


def test_owl_cuts_less_where_outliers_are() -> None:
    model = transformer()
    site_of(model, "layers.1.up").weight.data[:, 0] *= 100
    made = run(model, Wanda(allocate="owl", sparsity=0.6, pattern="layer")).plan
    per_block = [
        sum(1 - k.sparsity for n, k in made.sites.items() if n.startswith(f"layers.{i}.")) / 7
        for i in range(3)
    ]
    assert max(per_block) == per_block[1] and made.sparsity == pytest.approx(0.6, abs=0.01)


def test_plan_leaves_the_model_and_equals_compress() -> None:
    for feed in FEEDS:
        model = transformer().train()
        before = state(model)
        made = plan(model, SparseGPT(), tokens(), Options(feed=feed, products="float32"))
        assert state(model) == before
        assert made.digest() == run(model, SparseGPT(), feed=feed).plan.digest()


def test_without_undo_nothing_is_kept_beside() -> None:
    result = run(transformer(), Magnitude(), undo=False)
    cut = state(result.model)
    result.undo.undo()
    assert state(result.model) == cut


def test_progress_is_told_block_by_block() -> None:
    for feed in FEEDS:
        told: list[Event] = []
        run(transformer(), Wanda(), feed=feed, listen=told.append)
        assert [(e.stage, e.done, e.total, e.detail) for e in told] == [
            ("cut", i + 1, 3, f"layers.{i}") for i in range(3)
        ]


def test_bfloat16_products_leave_almost_every_decision_as_it_was() -> None:
    data = tokens(samples=20)
    plans = [run(transformer(), Wanda(), data, products=kind).plan for kind in ("float32", "bfloat16")]
    assert 0.99 < plans[0].agreement(plans[1])["positions"] <= 1
    assert [p.made["products"] for p in plans] == ["float32", "bfloat16"]


def test_a_relative_output_error_is_reported_where_known() -> None:
    data = tokens(samples=20)
    dense, model = transformer(), transformer()
    made = run(model, SparseGPT(), data, feed="none").plan
    inputs = hooked(dense, ALL, data)
    assert list(made.errors) == ALL
    for name in ALL:
        before, after = site_of(dense, name).weight.data, site_of(model, name).weight.data
        wanted = float(((after - before) @ inputs[name].t()).norm() / (before @ inputs[name].t()).norm())
        assert made.errors[name] == pytest.approx(wanted, rel=0.05, abs=1e-3), name


def test_auto_products_are_rounded_only_where_the_masks_survive_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.engine.products.has_fast_bfloat16", lambda: True)

    def used(method: OneShot, **options: Any) -> str:
        return compress(transformer(), method, tokens(), Options(**options)).plan.made["products"]

    assert used(Wanda()) == "bfloat16"
    assert used(SparseGPT()) == used(LOBS()) == "float32"
    assert used(SparseGPT(), products="bfloat16") == "bfloat16"
