"""Biprop against its sheet: three values a layer, alpha, the gradient with alpha held, the ramp of the first epochs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.apply.pruner import Pruner
from secateur.errors import BadInput
from secateur.methods.weights.biprop import Biprop, binary
from secateur.methods.weights.edge_popup import EdgePopup
from tests.oracles import floor_count, slow_group


def oracle(weight: Tensor, score: Tensor, sparsity: float) -> Tensor:
    """Sheet step 8 in a loop over single weights."""
    values, ranked = weight.flatten().tolist(), score.flatten().tolist()
    keep = slow_group(ranked, floor_count(len(ranked), sparsity))
    alpha = sum(abs(v) for v, kept in zip(values, keep, strict=True) if kept) / sum(keep)
    signs = [(v > 0) - (v < 0) for v in values]
    return torch.tensor([alpha * s * k for s, k in zip(signs, keep, strict=True)]).view_as(weight)


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))


def attach(model: nn.Module, steps: int = 10, **settings: Any) -> Pruner:
    return Biprop(**settings).attach(
        model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), steps=steps
    )


def train(pruner: Pruner, count: int) -> list[float]:
    densities = []
    for step in range(count):
        x = torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(pruner.net.model(x), x.flatten(1)[:, :5].argmax(1)).backward()
        pruner.optimizer.step()
        pruner.step()
        pruner.optimizer.zero_grad()
        densities.append(pruner.density)
    return densities


@pytest.mark.parametrize("weights", ["own", "kaiming_normal", "signed_constant"])
def test_the_network_computes_with_the_sheet_s_binary_weights(weights: str) -> None:
    pruner = attach(network(), sparsity=0.7, weights=weights)
    frozen = {n: t.clone() for n, t in pruner.net.memory.items() if n.startswith("weight/")}
    for _ in range(3):
        for name, live in pruner.net.weights.items():
            weight, score = frozen[f"weight/{name}"], pruner.net.memory[f"score/{name}"]
            torch.testing.assert_close(live, oracle(weight, score, 0.7), rtol=1e-6, atol=0)
            assert len(live.unique()) <= 3 and int((live != 0).sum()) == int(pruner.net.masks[name].sum())
        train(pruner, 1)
    assert all(torch.equal(pruner.net.memory[n], t) for n, t in frozen.items())
    pruner.detach()
    assert len(pruner.net.weights["0.weight"].unique()) <= 3


def test_a_hand_worked_layer() -> None:
    weight, mask = torch.tensor([[0.5, -1.5, 3.0, 0.0]]), torch.tensor([[True, True, False, False]])
    assert binary(weight, mask).tolist() == [[1.0, -1.0, 0.0, 0.0]]
    assert binary(weight, torch.tensor([[True, False, False, True]])).tolist() == [[0.25, 0.0, 0.0, 0.0]]
    assert binary(weight.bfloat16(), mask).dtype == torch.bfloat16


@given(st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=40), st.integers(0, 2**32))
def test_alpha_is_the_mean_magnitude_of_the_kept(values: list[float], bits: int) -> None:
    weight = torch.tensor(values)
    mask = torch.tensor([bool(bits >> (i % 32) & 1) for i in range(len(values))])
    mask[0] = True
    found = binary(weight, mask)
    kept = [abs(v) for v, flag in zip(weight.tolist(), mask.tolist(), strict=True) if flag]
    alpha = torch.tensor(sum(kept) / len(kept))
    torch.testing.assert_close(found, torch.where(mask, weight.sign() * alpha, 0.0), rtol=1e-5, atol=1e-30)


def test_the_score_s_gradient_is_that_of_the_binary_weight_times_the_real_one() -> None:
    model, twin = network(), network()
    pruner = attach(model, sparsity=0.5)
    twin.load_state_dict(model.state_dict())
    x, y = torch.randn(16, 2, 4, 4, generator=torch.Generator().manual_seed(3)), torch.arange(16) % 5
    nn.functional.cross_entropy(twin(x), y).backward()
    nn.functional.cross_entropy(model(x), y).backward()
    before = pruner.net.memory["score/0.weight"].clone()
    pruner.optimizer.param_groups[0]["lr"] = 1.0
    pruner.optimizer.step()
    assert isinstance(twin[0], nn.Conv2d) and twin[0].weight.grad is not None
    wanted = twin[0].weight.grad * pruner.net.memory["weight/0.weight"]
    moved = before - pruner.net.memory["score/0.weight"]
    torch.testing.assert_close(moved, wanted, rtol=1e-4, atol=1e-6)


def test_the_ramp_starts_at_half_and_is_cubic_over_its_part_of_the_training() -> None:
    pruner = attach(network(), steps=40, sparsity=0.9, scope="global", ramp=0.25)
    size = sum(w.numel() for w in pruner.net.weights.values())
    targets = [0.9 - 0.4 * (1 - min(step, 10) / 10) ** 3 for step in range(13)]
    assert targets[0] == 0.5 and targets[10:] == [0.9] * 3
    densities = [pruner.density, *train(pruner, 12)]
    assert densities == pytest.approx([(size - floor_count(size, t)) / size for t in targets])


@pytest.mark.parametrize(
    "settings", [{"sparsity": 0.4, "ramp": 0.5}, {"sparsity": 0.5, "ramp": 1.0}, {"sparsity": 0.9}]
)
def test_there_is_no_ramp_up_to_half_and_none_unless_asked_for(settings: dict[str, float]) -> None:
    pruner = attach(network(), scope="global", **settings)
    size = sum(w.numel() for w in pruner.net.weights.values())
    wanted = (size - floor_count(size, settings["sparsity"])) / size
    assert [pruner.density, *train(pruner, 3)] == pytest.approx([wanted] * 4)


def test_its_masks_are_edge_popup_s() -> None:
    ours = attach(network(), sparsity=0.8, seed=4, weights="own")
    model = network()
    theirs = EdgePopup(sparsity=0.8, seed=4, weights="own").attach(
        model, torch.optim.SGD(model.parameters(), lr=0.5), steps=10
    )
    assert all(torch.equal(mask, theirs.net.masks[name]) for name, mask in ours.net.masks.items())


@pytest.mark.parametrize("ramp", [-0.1, 1.1, True, float("nan")])
def test_a_ramp_that_is_no_fraction_is_refused(ramp: float) -> None:
    with pytest.raises(BadInput, match="ramp"):
        Biprop(ramp=ramp)
