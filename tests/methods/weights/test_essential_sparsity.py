"""Essential sparsity: one ranking over the whole model, nested masks, and the identities of its sheet."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from secateur.check.probe import Toy
from secateur.core.plan import Plan
from secateur.core.select import NM
from secateur.engine.run import compress
from secateur.methods.weights.essential_sparsity import EssentialSparsity
from secateur.methods.weights.magnitude import Magnitude
from tests.oracles import floor_count, slow_group, slow_select


def oracle(
    method: EssentialSparsity, weight: Tensor, x: Tensor, samples: int, bias: Tensor | None, sparsity: float
) -> Tensor:
    """For the battery: at one site, one sort of |W|."""
    return slow_select(weight.abs(), method.pattern, sparsity)


def model(factor: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    toy = Toy()
    toy.get_submodule("layers.0.up").weight.data *= factor  # type: ignore[union-attr,operator]
    return toy


def plan(net: nn.Module, **settings: object) -> Plan:
    return compress(copy.deepcopy(net), EssentialSparsity(**settings)).plan  # type: ignore[arg-type]


def sites(net: nn.Module) -> dict[str, Tensor]:
    names = [f"layers.{i}.{part}" for i in (0, 1) for part in ("up", "down")]
    return {name: net.get_submodule(name).weight.detach() for name in names}  # type: ignore[union-attr,dict-item]


@pytest.mark.parametrize("sparsity", [0.1, 0.29, 0.5, 0.9])
def test_it_equals_sorting_every_weight_once(sparsity: float) -> None:
    net = model()
    flat = torch.cat([w.abs().reshape(-1) for w in sites(net).values()]).tolist()
    wanted = torch.tensor(slow_group(flat, floor_count(len(flat), sparsity)))
    found = torch.cat([kept.mask().reshape(-1) for kept in plan(net, sparsity=sparsity).sites.values()])
    assert torch.equal(found, wanted)


def test_masks_are_nested() -> None:
    net = model()
    plans = [plan(net, sparsity=p / 10) for p in range(10)]
    for less, more in pairwise(plans):
        for name in less.sites:
            assert (less.sites[name].mask() | ~more.sites[name].mask()).all()


def test_each_point_is_cut_from_the_dense_weights() -> None:
    """torch.nn.utils.prune, applied again, cuts a fraction of what REMAINS (sheet, pitfalls): 0.1, 0.28, 0.496."""
    net = model()
    reached = [plan(net, sparsity=p).sparsity for p in (0.1, 0.2, 0.3)]
    assert reached == pytest.approx([0.1, 0.2, 0.3], abs=1e-3)


def test_multiplying_a_layer_by_ten_moves_cuts_only_in_the_global_variant() -> None:
    plain, scaled = model(), model(10)
    before, after = plan(plain), plan(scaled)
    assert after.sites["layers.0.up"].sparsity < before.sites["layers.0.up"].sparsity
    assert after.sites["layers.1.up"].sparsity > before.sites["layers.1.up"].sparsity
    assert after.sparsity == before.sparsity == 0.5
    layers = [compress(copy.deepcopy(net), Magnitude()).plan.digest() for net in (plain, scaled)]
    assert layers[0] == layers[1]


def test_jaccard_identities() -> None:
    net = model()
    a, b = plan(net, sparsity=0.4), plan(net, sparsity=0.7)
    assert a.agreement(a)["jaccard"] == 1.0
    assert a.agreement(b)["jaccard"] == pytest.approx(0.3 / 0.6, abs=2e-3)  # nested: |smaller| / |larger|


def test_an_n_m_pattern_ranks_inside_its_groups() -> None:
    net = model()
    made = plan(net, pattern="1:4")
    assert made.config["allocate"] == "uniform" and made.sparsity == 0.75
    for name, weight in sites(net).items():
        assert torch.equal(made.sites[name].mask(), slow_select(weight.abs(), NM(1, 4), 0.75))
