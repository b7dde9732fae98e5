"""The walk's parts: the replay to a block, the watch on products, what is put back, sums shared between sites."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.check.probe import state
from secateur.engine.blocks import Measure, Walk, Watch, check_output
from secateur.errors import BadInput
from secateur.signals.hessian import InputHessian
from secateur.signals.norms import InputNorms
from secateur.sites.find import Block, WeightSite, find_blocks
from tests.engine.toy import hooked, tokens, transformer


def batches(data: Any, size: int) -> list[dict[str, Tensor]]:
    return list(data.batches(size))


def test_the_replay_hands_every_block_exactly_what_the_model_would() -> None:
    model = transformer()
    calls: dict[str, Any] = {}
    handles = []
    for i, layer in enumerate(model.layers):
        handles.append(
            layer.register_forward_pre_hook(
                lambda m, args, kwargs, i=i: calls.__setitem__(str(i), (args, dict(kwargs))), with_kwargs=True
            )
        )
    model.eval()
    with torch.no_grad():
        model(**batches(tokens(), 6)[0])
    for handle in handles:
        handle.remove()
    walked = transformer().train()
    blocks = find_blocks(walked)
    with Walk(walked, blocks, batches(tokens(), 6)) as walk:
        for i in range(3):
            args, kwargs = walk.call(0)
            wanted_args, wanted_kwargs = calls[str(i)]
            assert torch.equal(args[0], wanted_args[0]) and kwargs.keys() == wanted_kwargs.keys() == {
                "mask",
                "turn",
            }
            assert torch.equal(kwargs["mask"], wanted_kwargs["mask"]), "another block's mask"
            walk.step(0)
            walk.advance()


def test_walking_leaves_no_trace() -> None:
    model = transformer().train()
    model.layers[1].eval()
    own = lambda x, mask, turn: (x, 0)  # noqa: E731
    model.layers[2].forward = own  # as accelerate does
    before = state(model)
    with torch.enable_grad():
        with Walk(model, find_blocks(model), batches(tokens(), 3)) as walk:
            assert not torch.is_grad_enabled() and not any(m.training for m in model.modules())
            for i in range(2):
                walk.step(i)
            walk.advance()
            walk.forward(0)
        assert torch.is_grad_enabled() and state(model) == before and model.layers[2].forward is own


@pytest.mark.parametrize("where", ["glue", "block", "inside"])
def test_an_exception_inside_leaves_no_trace(where: str) -> None:
    model = transformer().train()
    before = state(model)

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError

    target = {"glue": model.embed, "block": model.layers[0], "inside": model.layers[0].attention.o}[where]
    with pytest.raises(ZeroDivisionError), Walk(model, find_blocks(model), batches(tokens(), 3)) as walk:
        handle = target.register_forward_pre_hook(fails)  # type: ignore[union-attr,operator]
        try:
            walk.forward(0)
        finally:
            handle.remove()
    assert state(model) == before


def test_caches_and_experts_are_switched_off_and_given_back() -> None:
    model: Any = transformer()
    chosen = ["grouped_mm"]
    seen: list[Any] = []
    model.config = SimpleNamespace(use_cache=True, other=1)
    model.layers[0].config = SimpleNamespace(use_cache=None)
    model.layers[1].num_experts = 3
    model.get_experts_implementation = lambda: chosen[0]
    model.set_experts_implementation = lambda name: chosen.__setitem__(0, name)
    model.layers[0].register_forward_pre_hook(lambda *a: seen.append((model.config.use_cache, chosen[0])))
    for crash in (False, True):
        try:
            with Walk(model, find_blocks(model), batches(tokens(), 6)) as walk:
                walk.forward(0)
                if crash:
                    raise ZeroDivisionError
        except ZeroDivisionError:
            assert crash
        assert model.config.use_cache is True and chosen == ["grouped_mm"]
        assert model.layers[0].config.use_cache is None
    assert set(seen) == {(False, "eager")}


# -- the watch on products ---------------------------------------------------------------------------------------------


class Products(nn.Module):
    """One matrix, used in a way chosen by name."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))  # [out, in]
        self.turned = nn.Parameter(torch.randn(4, 6))  # [in, out]
        self.fused = nn.Parameter(torch.randn(2, 6, 4))
        self.bias = nn.Parameter(torch.zeros(6))


def sites_of(module: Products) -> list[WeightSite]:
    from secateur.core.units import Site

    return [
        WeightSite(Site("plain", (6, 4)), module),
        WeightSite(Site("turned", (6, 4)), module, "turned", transposed=True),
        *(WeightSite(Site(f"fused[{i}]", (6, 4)), module, "fused", i) for i in range(2)),
    ]


F = torch.nn.functional


@pytest.mark.parametrize(
    ("use", "site"),
    [
        (lambda m, x: F.linear(x, m.weight), "plain"),
        (lambda m, x: F.linear(x, m.weight, m.bias), "plain"),
        (lambda m, x: x @ m.weight.t(), "plain"),
        (lambda m, x: torch.matmul(x, m.weight.transpose(0, 1)), "plain"),
        (lambda m, x: x.matmul(m.weight.t()), "plain"),
        (lambda m, x: x.reshape(-1, 4).mm(m.weight.t()), "plain"),
        (lambda m, x: torch.mm(x.reshape(-1, 4), m.weight.t()), "plain"),
        (lambda m, x: torch.addmm(m.bias, x.reshape(-1, 4), m.turned), "turned"),
        (lambda m, x: x @ m.turned, "turned"),
        (lambda m, x: F.linear(x, m.fused[1]), "fused[1]"),
        (lambda m, x: x @ m.fused[0].t(), "fused[0]"),
    ],
)
def test_every_product_is_seen_with_its_input(use: Any, site: str) -> None:
    module, x = Products(), torch.randn(2, 5, 4)
    seen: list[tuple[str, Tensor]] = []
    with torch.no_grad():
        plain = use(module, x)
        with Watch(sites_of(module), lambda s, value: seen.append((s.name, value))):
            watched = use(module, x)
    assert [name for name, _ in seen] == [site]
    assert torch.equal(seen[0][1], x.reshape(-1, 4)) and torch.equal(plain, watched)


def test_a_product_of_all_experts_at_once_is_seen_expert_by_expert() -> None:
    module, x = Products(), torch.randn(2, 5, 4)
    seen: list[tuple[str, Tensor]] = []
    with torch.no_grad(), Watch(sites_of(module), lambda s, value: seen.append((s.name, value))):
        torch.bmm(x, module.fused.transpose(1, 2))
    assert [name for name, _ in seen] == ["fused[0]", "fused[1]"]
    assert all(torch.equal(value, x[i]) for i, (_, value) in enumerate(seen))


def test_the_product_uses_what_the_watcher_wrote() -> None:
    module, x = Products(), torch.ones(3, 4)

    def zero(site: WeightSite, value: Tensor) -> None:
        site.view().zero_()

    with torch.no_grad(), Watch(sites_of(module), zero):
        assert not F.linear(x, module.weight).any() and not (x @ module.turned).any()


def test_other_products_are_not_seen() -> None:
    module, other, x = Products(), nn.Linear(4, 6), torch.randn(3, 4)
    seen: list[Any] = []
    with torch.no_grad(), Watch(sites_of(module), lambda *a: seen.append(a)):
        other(x)
        x @ module.weight.t().clone()
        module.weight.sum()
        F.linear(x, module.weight[:2])
    assert seen == []


# -- sums -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [InputNorms, InputHessian])
def test_sites_with_the_same_inputs_share_one_signal(kind: type) -> None:
    model = transformer()
    (block, *_), data = find_blocks(model), batches(tokens(), 3)
    measure = Measure(kind, block.sites)
    with Walk(model, [block, *find_blocks(model)[1:]], data) as walk, Watch(block.sites, measure.see):
        for i in range(2):
            walk.forward(i)
    signals = measure.finish(6)
    name = "layers.0.attention."
    assert signals[name + "q"] is signals[name + "k"] is signals[name + "v"]
    assert signals["layers.0.gate"] is signals["layers.0.up"]
    assert len({id(s) for s in signals.values()}) == 4 and all(s.samples == 6 for s in signals.values())
    wanted = hooked(transformer(), [name + "o"], tokens())[name + "o"].square().sum(0).div(6).sqrt()
    torch.testing.assert_close(signals[name + "o"].norm, wanted, rtol=1e-4, atol=1e-6)
    assert all(s.tokens == 54 for s in signals.values())


def test_a_tensor_changed_in_place_or_freed_is_measured_anew() -> None:
    """An address says nothing: the same memory may hold other numbers a moment later."""
    sites = find_blocks(nn.ModuleList([nn.Linear(4, 6), nn.Linear(4, 6)]))
    a, b = (block.sites[0] for block in sites)
    measure = Measure(InputNorms, [a, b])
    x = torch.ones(3, 4)
    measure.see(a, x)
    x.mul_(2)
    measure.see(b, x)
    for _ in range(20):
        fresh = torch.rand(3, 4)
        measure.see(a, fresh)
        del fresh
    signals = measure.finish(1)
    assert signals[b.name].norm.tolist() == pytest.approx([12**0.5] * 4)
    assert signals[a.name].tokens == 63 and signals[a.name] is not signals[b.name]


def test_sites_that_differ_in_one_product_do_not_share() -> None:
    sites = find_blocks(nn.ModuleList([nn.Linear(4, 6), nn.Linear(4, 6)]))
    a, b = (block.sites[0] for block in sites)
    measure, x = Measure(InputNorms, [a, b]), torch.ones(3, 4)
    measure.see(a, x)
    measure.see(b, x)
    measure.see(b, x * 3)
    signals = measure.finish(1)
    assert signals[a.name].tokens == 3 and signals[b.name].tokens == 6
    assert float(signals[b.name].square_sum[0]) == pytest.approx(30)


def test_an_unseen_site_has_an_empty_signal_of_its_own() -> None:
    a, b = (block.sites[0] for block in find_blocks(nn.ModuleList([nn.Linear(4, 6), nn.Linear(4, 6)])))
    signals = Measure(InputNorms, [a, b]).finish(1)
    assert signals[a.name].empty and signals[b.name].empty


def test_a_bad_output_names_the_bad_weight_or_the_block() -> None:
    layer = nn.Linear(2, 2)
    block = Block("layers.3", layer, ())
    good, bad = torch.ones(2), torch.tensor([1.0, float("nan")])
    assert check_output((good, None), block) == (good, None) and check_output("words", block) == "words"
    for output in (bad, (bad, None), [bad]):
        with pytest.raises(BadInput, match=r"^layers\.3: 1 NaN and 0 Inf among 2 outputs"):
            check_output(output, block)
    layer.bias.data[0] = float("inf")
    with pytest.raises(BadInput, match=r"^layers\.3\.bias: 0 NaN and 1 Inf"):
        check_output(bad, block)
