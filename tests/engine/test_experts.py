"""Mixtures of experts from transformers: fused tensors, tokens as the router deals them, idle experts, routers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.engine.calibrate import Calibration
from secateur.engine.run import FEEDS
from secateur.methods.weights.magnitude import Magnitude
from secateur.methods.weights.wanda import Wanda
from secateur.sites.find import find_blocks
from tests.engine.models import (
    EXPERTS,
    agreement,
    build,
    data,
    expect_cut,
    run,
    wanda_mask,
)
from tests.engine.toy import hooked


def routed(model: Any, name: str, calibration: Calibration) -> dict[str, Tensor]:
    """What each expert's first matrix reads, from the router's own answer: one forward of the dense model."""
    seen: dict[str, list[Tensor]] = {}
    handles = []
    for place, module in model.named_modules():
        if type(module).__name__.endswith("Experts"):

            def hook(m: Any, args: Any, kwargs: Any, place: str = place) -> None:
                call = [*args, *kwargs.values()]
                hidden = call[0].reshape(-1, call[0].shape[-1])
                chosen = next(
                    value for value in call[1:] if isinstance(value, Tensor) and not value.is_floating_point()
                )
                for e in range(m.num_experts):
                    key = f"{place}.gate_up_proj[{e}]"
                    seen.setdefault(key, []).append(hidden[(chosen == e).any(-1)])

            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    model.eval()
    with torch.no_grad():
        for sample in calibration.samples:
            model(**{key: value[None] for key, value in sample.items()})
    for handle in handles:
        handle.remove()
    assert seen, name
    return {key: torch.cat(parts) for key, parts in seen.items()}


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_are_cut_by_the_tokens_the_router_gave_them(name: str) -> None:
    model, dense = build(name), build(name)
    result = run(name, model, Wanda(), "none")
    sites = {site.name: site for block in find_blocks(dense) for site in block.sites}
    inputs = routed(dense, name, data(name))
    linears = hooked(dense, [n for n in sites if "experts." not in n], data(name))
    assert len(inputs) == 8 and len({len(x) for x in inputs.values()}) > 1
    masks = {n: wanda_mask(sites[n].view(), x, 5) for n, x in (inputs | linears).items()}
    assert agreement(result, masks) == 1.0


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_an_experts_second_matrix_reads_what_the_first_one_gives(name: str) -> None:
    model, dense = build(name), build(name)
    result, masks = run(name, model, Wanda(), "none"), {}
    sites = {site.name: site for block in find_blocks(dense) for site in block.sites}
    for n, x in routed(dense, name, data(name)).items():
        gate, up = (x @ sites[n].view().t()).chunk(2, dim=-1)
        second = n.replace("gate_up", "down")
        masks[second] = wanda_mask(sites[second].view(), torch.nn.functional.silu(gate) * up, 5)
    assert len(masks) == 8 and agreement(result, masks) >= 0.999


@pytest.mark.parametrize("name", EXPERTS)
@pytest.mark.parametrize("feed", FEEDS)
def test_an_expert_without_tokens_is_cut_by_magnitude_and_named(name: str, feed: str) -> None:
    many = {"num_experts": 16} if name.startswith("qwen") else {"num_local_experts": 16}
    few = data(name, samples=2)
    few = Calibration(tuple({"input_ids": s["input_ids"][:2]} for s in few.samples), "four tokens")
    model, dense = build(name, **many), build(name, **many)
    result = run(name, model, Wanda(), feed, few)
    expect_cut(result)
    sites = {site.name: site for block in find_blocks(dense) for site in block.sites}
    named = {note.split(" saw ")[0] for note in result.plan.notes if " saw no token" in note}
    idle = {
        n
        for n, x in routed(dense, name, few).items()
        if not len(x) and n.split(".experts")[0].endswith("0.mlp")
    }
    assert len(idle) >= 8 and named
    assert (
        idle <= named or feed == "layer"
    )  # fed layer by layer, the first router already reads cut attention
    for n in named:
        wanted = wanda_mask(sites[n].view(), torch.ones(1, sites[n].site.shape[1]), 1)
        assert torch.equal(result.plan.sites[n].mask(), wanted), n
    assert set(result.plan.sites) - named, "every expert is idle"


@pytest.mark.parametrize("name", EXPERTS)
def test_the_experts_way_of_computing_is_given_back(name: str) -> None:
    model = build(name)
    before = model.get_experts_implementation()
    run(name, model, Wanda(), "block")
    assert model.get_experts_implementation() == before
    layer: nn.Module = find_blocks(model)[1].module
    layer.register_forward_pre_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(name, model, Wanda(), "block")
    assert model.get_experts_implementation() == before and model.config.use_cache


def test_routers_are_left_alone() -> None:
    for name in EXPERTS:
        model, same = build(name), build(name)
        run(name, model, Magnitude(sparsity=0.9), "none")
        kept = dict(same.named_parameters())
        for n, parameter in model.named_parameters():
            outside = any(
                word in n
                for word in ("router", "mlp.gate.", "_gate", "norm", "embed", "lm_head", "bias", "sinks")
            )
            assert torch.equal(parameter, kept[n]) == outside, n
