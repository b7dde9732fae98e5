"""The walk, feed by feed, against the real forward run again for every step; models of odd shapes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.check.probe import state
from secateur.core.method import OneShot
from secateur.core.select import PerRow, parse_pattern
from secateur.engine.calibrate import Calibration
from secateur.engine.run import FEEDS, Options, compress
from secateur.errors import Unsupported
from secateur.methods.weights.l_obs import LOBS
from secateur.methods.weights.magnitude import Magnitude
from secateur.methods.weights.sparsegpt import SparseGPT
from secateur.methods.weights.wanda import Wanda
from tests.engine.toy import Decide, by_wanda, hooked, slow_walk, steps_of, tokens, transformer
from tests.oracles import slow_l_obs, slow_select, slow_sparsegpt

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


# -- the three feeds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["row", "2:4", "layer"])
@pytest.mark.parametrize("feed", FEEDS)
def test_wanda_equals_the_slow_walk(feed: str, pattern: str) -> None:
    model, slow = transformer(), transformer()
    result = run(model, Wanda(pattern=pattern), feed=feed)
    masks = slow_walk(slow, steps_of(ALL, feed), tokens(), by_wanda(parse_pattern(pattern)))
    expect_same(result, masks)
    for (name, a), b in zip(model.state_dict().items(), slow.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def by_sparsegpt(weight: Tensor, x: Tensor, bias: Tensor | None, samples: int) -> tuple[Tensor, Tensor, None]:
    keep, new, _ = slow_sparsegpt(weight, x, samples, PerRow(), 0.5, 128, 0.01)
    return keep, new.float(), None


def by_l_obs(weight: Tensor, x: Tensor, bias: Tensor | None, samples: int) -> tuple[Tensor, ...]:
    from secateur.methods.weights.l_obs import least_squares

    keep, _ = slow_l_obs(weight, x, bias, PerRow(), 0.3, 1e-3)
    y = x.double() if bias is None else torch.cat([x.double(), torch.ones(len(x), 1)], 1)
    theta = (
        weight.double() if bias is None else torch.cat([weight.double(), bias.detach().double()[:, None]], 1)
    )
    new = least_squares(theta, y.t() @ y / len(x), keep)
    return keep, new[:, : weight.shape[1]].float(), None if bias is None else new[:, -1].float()


@pytest.mark.parametrize(
    ("method", "decide"),
    [
        (SparseGPT(pattern="row"), by_sparsegpt),
        (LOBS(pattern="row", sparsity=0.3, damping=1e-3, exact=True), by_l_obs),
    ],
    ids=["sparsegpt", "l_obs"],
)
@pytest.mark.parametrize("feed", FEEDS)
def test_methods_that_update_weights_equal_the_slow_walk(feed: str, method: OneShot, decide: Decide) -> None:
    data = tokens(samples=20)
    model, slow = transformer(), transformer()
    result = run(model, method, data, feed=feed)
    masks = slow_walk(slow, steps_of(ALL, feed), data, decide)
    agree = sum(int((result.plan.sites[n].mask() == m).sum()) for n, m in masks.items()) / sum(
        m.numel() for m in masks.values()
    )
    assert agree > 0.99  # float32 against float64: one flip moves what comes after it
    if agree == 1.0:
        for (name, a), b in zip(model.state_dict().items(), slow.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=5e-3, atol=5e-4, msg=name)


def test_the_three_feeds_are_three_different_things() -> None:
    plans = {feed: run(transformer(), Wanda(sparsity=0.7), feed=feed).plan for feed in FEEDS}
    assert len({made.digest() for made in plans.values()}) == 3
    first = [f"layers.0.attention.{part}" for part in "qkv"]  # nothing is cut before these, whatever the feed
    assert len({tuple(made.sites[n].bits.tolist() for n in first).__repr__() for made in plans.values()}) == 1
    assert all(made.made["feed"] == feed for feed, made in plans.items())


@pytest.mark.parametrize("feed", FEEDS)
@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_the_batch_size_does_not_matter(feed: str, batch: int) -> None:
    a = run(transformer(), Wanda(), feed=feed, batch=batch).plan
    assert a.agreement(run(transformer(), Wanda(), feed=feed, batch=6).plan)["positions"] >= 0.9999


@pytest.mark.parametrize("feed", FEEDS)
def test_samples_of_different_lengths(feed: str) -> None:
    samples = tuple(s for n in (3, 9, 9, 1, 5) for s in tokens(1, n, seed=n).samples)
    data = Calibration(samples, "uneven")
    slow = transformer()
    masks = slow_walk(slow, steps_of(ALL, feed), data, by_wanda(PerRow()))
    expect_same(run(transformer(), Wanda(), data, feed=feed), masks)


def test_feed_layer_measures_a_site_once_and_refuses_one_used_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.b(self.a(x)))

    torch.manual_seed(0)
    model = Twice()
    data = Calibration(tuple({"x": torch.randn(5, 16)} for _ in range(4)), "noise")
    before = state(model)
    with pytest.raises(Unsupported, match=r"a: used more than once"):
        run(model, Wanda(), data, feed="layer")
    assert state(model) == before
    for feed in ("block", "none"):  # both uses count
        made = run(copy.deepcopy(model), Wanda(), data, feed=feed).plan
        seen = hooked(model, ["a", "b"], data)
        assert len(seen["a"]) == 2 * len(seen["b"])
        score = model.a.weight.double().abs() * seen["a"].double().square().sum(0).sqrt()
        assert torch.equal(made.sites["a"].mask(), slow_select(score.detach(), PerRow(), 0.5))


# -- shapes of models ------------------------------------------------------------------------------------------------


def test_a_model_that_repeats_nothing_is_cut_as_one_block() -> None:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 8))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    data = Calibration(tuple({"x": torch.randn(5, 16)} for _ in range(4)), "noise")
    for feed in FEEDS:
        model, slow = copy.deepcopy(Net()), copy.deepcopy(Net())
        names = ["body.0", "body.2"]
        steps = [names] if feed in ("none", "block") else [[n] for n in names]
        masks = slow_walk(slow, steps, data, by_wanda(PerRow()))
        expect_same(run(model, Wanda(), data, feed=feed), masks)


@pytest.mark.parametrize("tie", ["object", "memory"])
def test_shared_weights_are_measured_at_every_use(tie: str) -> None:
    def tied() -> nn.Module:
        model = transformer()
        first, last = site_of(model, "layers.0.up"), site_of(model, "layers.2.up")
        last.weight = first.weight if tie == "object" else nn.Parameter(first.weight.data)
        return model

    model, dense = tied(), tied()
    seen = hooked(dense, ["layers.0.up", "layers.2.up"], tokens())
    x = torch.cat(list(seen.values())).double()
    score = site_of(dense, "layers.0.up").weight.double().abs() * x.square().sum(0).sqrt()
    made = run(model, Wanda(), feed="none").plan
    assert torch.equal(made.sites["layers.0.up"].mask(), slow_select(score.detach(), PerRow(), 0.5))
    assert "layers.2.up" not in made.sites and len(made.sites) == 20
    assert float((site_of(model, "layers.2.up").weight == 0).float().mean()) == 0.5
    for feed in ("block", "layer"):
        with pytest.raises(Unsupported, match=r"layers\.0\.up.*shared by 2.*feed none"):
            run(tied(), Wanda(), feed=feed)
    for allocate in ("global", "owl", "erk"):
        assert run(tied(), Wanda(allocate=allocate), feed="none").plan.sparsity == pytest.approx(
            0.5, abs=0.04
        )


def test_a_list_of_the_same_layers_again_is_measured_at_every_pass() -> None:
    def looped() -> nn.Module:
        model = transformer(layers=2)
        a, b = model.layers
        model.layers = nn.ModuleList([a, b, a, b])
        return model

    model, dense = looped(), looped()
    seen = hooked(dense, ["layers.0.up"], tokens())["layers.0.up"]
    assert len(seen) == 2 * 6 * 9
    score = site_of(dense, "layers.0.up").weight.double().abs() * seen.double().square().sum(0).sqrt()
    made = run(model, Wanda(), feed="none").plan
    assert torch.equal(made.sites["layers.0.up"].mask(), slow_select(score.detach(), PerRow(), 0.5))


def test_blocks_that_are_no_chain_are_refused() -> None:
    """A connection that skips blocks: the walk would feed it the wrong activations."""

    class Unet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            first = self.layers[0](x)
            second = self.layers[1](first)
            return self.layers[3](self.layers[2](second) + first)

    torch.manual_seed(0)
    model = Unet()
    before = state(model)
    data = Calibration(tuple({"x": torch.randn(5, 16)} for _ in range(4)), "noise")
    for feed in FEEDS:
        with pytest.raises(Unsupported, match=r"layers\.3.*chain"):
            run(model, Wanda(), data, feed=feed)
        assert state(model) == before
    assert run(model, Magnitude(), data).plan.sparsity == 0.5


def test_blocks_used_in_another_order_are_refused() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer in reversed(self.layers):
                x = layer(x)
            return x

    data = Calibration(({"x": torch.randn(5, 16)},), "noise")
    with pytest.raises(Unsupported, match="order"):
        run(Backwards(), Wanda(), data)


def test_a_block_the_forward_never_reaches_is_refused() -> None:
    class Short(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for layer in list(self.layers)[:3]:
                x = layer(x)
            return x

    model, data = Short(), Calibration(({"x": torch.randn(5, 16)},), "noise")
    before = state(model)
    for feed in FEEDS:
        with pytest.raises(Unsupported, match=r"layers\.3: .*never reaches"):
            run(model, Wanda(), data, feed=feed)
        assert state(model) == before


def test_auto_is_the_methods_own_feed_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tokens()
    ragged = Calibration((*data.samples, {"input_ids": data.samples[0]["input_ids"][:3]}), "ragged")
    shared = transformer()
    site_of(shared, "layers.2.up").weight = site_of(shared, "layers.0.up").weight

    def fed(model: nn.Module, method: OneShot, samples: Calibration) -> str:
        return run(model, method, samples).plan.made["feed"]

    assert fed(transformer(), Wanda(), data) == "none"
    assert fed(transformer(), SparseGPT(), data) == "layer"
    assert fed(transformer(), SparseGPT(), ragged) == "layer"
    assert fed(shared, SparseGPT(), data) == "none"
    monkeypatch.setattr("secateur.engine.run.LAYER_LIMIT", 1000)
    assert fed(transformer(), SparseGPT(), data) == "block"
