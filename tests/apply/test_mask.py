"""A plan applied to a model: zeros where it says, nothing else, and never on the wrong model."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

from secateur.apply.mask import apply
from secateur.check.probe import Probe, state
from secateur.core.plan import Kept
from secateur.errors import BadInput, NoMatch, Unsupported

PROBE = Probe("magnitude")


def test_zeros_where_the_plan_says_and_nothing_else() -> None:
    plan = PROBE.run(PROBE.model()).plan
    model, same = PROBE.model(), PROBE.model().state_dict()
    apply(model, plan)
    for name, tensor in model.state_dict().items():
        site = name.removesuffix(".weight")
        wanted = same[name].masked_fill(~plan.sites[site].mask(), 0) if site in plan.sites else same[name]
        assert torch.equal(tensor, wanted), name


def test_applying_twice_changes_nothing_more_and_undo_is_complete() -> None:
    plan, model = PROBE.run(PROBE.model()).plan, PROBE.model()
    before = state(model)
    first = apply(model, plan)
    once = state(model)
    apply(model, plan)
    assert state(model) == once != before
    first.undo()
    assert state(model) == before


def test_two_plans_merged_cut_what_either_cuts() -> None:
    a, b = (PROBE.run(PROBE.model(), Probe("random").method(seed=s)).plan for s in (1, 2))
    model = PROBE.model()
    apply(model, a.merge(b))
    for name in a.sites:
        weight = model.get_submodule(name).weight  # type: ignore[union-attr]
        assert torch.equal(weight != 0, a.sites[name].mask() & b.sites[name].mask())  # type: ignore[arg-type]


def test_a_model_of_other_names_or_shapes_is_refused_untouched() -> None:
    plan, model = PROBE.run(PROBE.model()).plan, PROBE.model()
    before = state(model)
    missing, other = copy.deepcopy(plan), copy.deepcopy(plan)
    missing.sites["layers.9.up"] = missing.sites["layers.0.up"]
    other.sites["layers.1.down"] = Kept.of(torch.ones(16, 25, dtype=torch.bool))
    with pytest.raises(NoMatch, match=r"layers\.9\.up"):
        apply(model, missing)
    with pytest.raises(BadInput, match=r"layers\.1\.down"):
        apply(model, other)
    assert state(model) == before


def test_a_plan_whose_method_updates_weights_asks_first() -> None:
    plan, model = PROBE.run(PROBE.model(), Probe("sparsegpt").method()).plan, PROBE.model()
    before = state(model)
    with pytest.raises(BadInput, match="masks"):
        apply(model, plan)
    assert state(model) == before
    apply(model, plan, masks_only=True)
    weight = model.get_submodule("layers.0.up").weight.detach()  # type: ignore[union-attr,operator]
    same = PROBE.model().get_submodule("layers.0.up").weight.detach()  # type: ignore[union-attr,operator]
    assert torch.equal(weight, same * plan.sites["layers.0.up"].mask())


def test_tied_weights_are_cut_once_and_stay_tied() -> None:
    model = PROBE.model()
    first, second = model.get_submodule("layers.0.up"), model.get_submodule("layers.1.up")
    assert isinstance(first, nn.Linear) and isinstance(second, nn.Linear)
    second.weight = first.weight
    plan = PROBE.run(copy.deepcopy(model)).plan
    apply(model, plan)
    assert second.weight is first.weight and float((first.weight == 0).float().mean()) == 0.5


def test_a_weight_computed_at_every_forward_is_refused() -> None:
    """What is written into it is gone at the next forward: torch's own parametrisations and pruning masks."""
    plan = PROBE.run(PROBE.model()).plan
    for wrap in (
        torch.nn.utils.parametrizations.weight_norm,
        lambda module: torch.nn.utils.prune.l1_unstructured(module, "weight", 0.3),
    ):
        model = PROBE.model()
        wrap(model.get_submodule("layers.1.up"))
        before = state(model)
        for action in (lambda m=model: apply(m, plan), lambda m=model: PROBE.run(m)):
            with pytest.raises(Unsupported, match=r"layers\.1\.up: its weight is computed"):
                action()
        assert state(model) == before
