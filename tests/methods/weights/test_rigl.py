"""RigL: the hand case, counts, the cosine to zero, the end of moving."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.apply.pruner import Pruner
from secateur.apply.training import Net
from secateur.errors import BadInput
from secateur.methods.weights.rigl import RigL


def oracle(weight: list[float], mask: list[bool], fraction: float, gradient: list[float]) -> list[bool]:
    """Algorithm 1 by sorted lists: the first `count` of the smallest |w| go, the largest |gradient| come."""
    active = sorted((i for i, m in enumerate(mask) if m), key=lambda i: abs(weight[i]))
    count = int(fraction * len(active) + 1e-9)
    kept = set(active[count:])
    free = sorted((i for i in range(len(mask)) if i not in kept), key=lambda i: abs(gradient[i]))
    return [i in kept | set(free[len(free) - count :]) for i in range(len(mask))]


def event(weight: Tensor, mask: Tensor, gradient: Tensor, step: int = 0, **settings: object) -> Tensor:
    net = Net(nn.Module(), {"w": weight}, {}, {"w": mask}, steps=100, step=step, gradients={"w": gradient})
    return RigL(**settings).revise(net)["w"]  # type: ignore[arg-type]


def test_the_hand_case() -> None:
    weight = torch.tensor([[5.0, 1, 4, 0, 0]])
    mask = torch.tensor([[True, True, True, False, False]])
    found = event(weight, mask, torch.tensor([[9.0, 2, 9, -3, 1]]), fraction=1 / 3)
    assert found.tolist() == [[True, False, True, True, False]]
    back = event(weight, mask, torch.tensor([[9.0, 4, 9, 3, 1]]), fraction=1 / 3)
    assert back.tolist() == mask.tolist() and weight[0, 1] == 1, "dropped and grown again: it keeps its value"


@pytest.mark.parametrize("step", [0, 20, 60])
def test_an_event_equals_the_oracle(step: int) -> None:
    random = torch.Generator().manual_seed(step)
    mask = torch.rand(8, 9, generator=random) < 0.4
    weight = torch.randn(8, 9, generator=random) * mask
    gradient = torch.randn(8, 9, generator=random)
    fraction = 0.3 / 2 * (1 + math.cos(math.pi * step / 75))
    wanted = oracle(weight.flatten().tolist(), mask.flatten().tolist(), fraction, gradient.flatten().tolist())
    assert event(weight, mask, gradient, step).flatten().tolist() == wanted


def run(steps: int, **settings: object) -> tuple[nn.Module, Pruner, list[Tensor]]:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    pruner = RigL(sparsity=0.7, every=5, **settings).attach(model, optimizer, steps=steps)  # type: ignore[arg-type]
    seen = [pruner.net.masks["0.weight"].clone()]
    data = torch.Generator().manual_seed(2)
    for _ in range(steps):
        x = torch.randn(16, 6, generator=data)
        optimizer.zero_grad()
        F.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
        optimizer.step()
        pruner.step()
        seen.append(pruner.net.masks["0.weight"].clone())
    return model, pruner, seen


def test_masks_move_at_events_only_until_three_quarters_and_the_counts_never_change() -> None:
    model, pruner, seen = run(40)
    moved = [i for i in range(1, 41) if not torch.equal(seen[i], seen[i - 1])]
    assert set(moved) <= {5, 10, 15, 20, 25} and len(moved) >= 3
    assert {int(m.sum()) for m in seen} == {int(seen[0].sum())}
    share = float(seen[0].float().mean())
    assert pruner.dense_steps["0.weight"] == pytest.approx(5 * (1 - share))
    assert pruner.report()["peak_density"] == pytest.approx(0.3)
    for name, mask in pruner.net.masks.items():
        assert not bool(model.get_parameter(name)[~mask].any())


def test_a_layer_that_is_frozen_stays() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = RigL(sparsity=0.7, every=1).attach(model, optimizer, steps=10)
    first = {n: m.clone() for n, m in pruner.net.masks.items()}
    for _ in range(5):
        optimizer.zero_grad()
        x = torch.randn(16, 6)
        F.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
        optimizer.step()
        pruner.step()
    assert torch.equal(pruner.net.masks["0.weight"], first["0.weight"])
    assert not torch.equal(pruner.net.masks["2.weight"], first["2.weight"])


def test_what_is_wrong_is_one_line() -> None:
    for bad in ({"fraction": 1.2}, {"every": 0}, {"layers": "owl"}, {"end": 0.0}):
        with pytest.raises(BadInput):
            RigL(**bad)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no event every 5 steps in the first 5 of 7"):
        run(7)
