from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import BadInput
from secateur.methods.weights.grasp import GraSP
from tests.oracles import floor_count, slow_group


class Heads(nn.Module):
    """Two linear layers side by side: outputs [A x, B x], a squared error has the Hessian x x^T in each row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 2, bias=False), nn.Linear(3, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x)], 1)


def squared(output: Tensor, target: Tensor) -> Tensor:
    return ((output - target) ** 2).sum()


def batches() -> list[tuple[Tensor, Tensor]]:
    stream = torch.Generator().manual_seed(1)
    return [(torch.randn(5, 3, generator=stream), torch.randn(5, 6, generator=stream)) for _ in range(2)]


def oracle(model: Heads, data: list[tuple[Tensor, Tensor]], sparsity: float, t: float) -> list[bool]:
    """Keep flags of A's then B's weights: g = 2/t sum (w x/t - y) x, H = 2/t^2 sum x x^T, score w (H g), by loops."""
    rows = [*model.a.weight.tolist(), *model.b.weight.tolist()]
    samples = [(x, y) for xs, ys in data for x, y in zip(xs.tolist(), ys.tolist(), strict=True)]
    scores = []
    for i, row in enumerate(rows):
        g = [0.0] * 3
        for x, y in samples:
            error = sum(p * q for p, q in zip(row, x, strict=True)) / t - y[i]
            g = [a + 2 / t * error * b for a, b in zip(g, x, strict=True)]
        for j, w in enumerate(row):
            hg = sum(2 / t**2 * x[j] * x[k] * g[k] for x, _ in samples for k in range(3))
            scores.append(w * hg)
    return slow_group(scores, floor_count(len(scores), sparsity))


def attach(method: GraSP, model: nn.Module, data: Any = None, loss: Any = squared) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return method.attach(model, optimizer, steps=5, data=batches() if data is None else data, loss=loss)


@pytest.mark.parametrize("temperature", [1.0, 2.5, 200.0])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.6])
def test_masks_are_the_oracles(sparsity: float, temperature: float) -> None:
    model = Heads()
    wanted = oracle(model, batches(), sparsity, temperature)
    masks = attach(GraSP(sparsity=sparsity, temperature=temperature), model).net.masks
    assert torch.cat([mask.flatten() for mask in masks.values()]).tolist() == wanted


def test_the_temperature_matters_and_is_200() -> None:
    model = Heads()
    assert GraSP().temperature == 200
    assert oracle(model, batches(), 0.6, 1.0) != oracle(model, batches(), 0.6, 200.0)


def test_masks_stay_through_training() -> None:
    model = Heads()
    pruner = attach(GraSP(sparsity=0.5), model)
    start = {name: mask.clone() for name, mask in pruner.net.masks.items()}
    for x, y in batches() * 2:
        squared(model(x), y).backward()
        pruner.optimizer.step()
        pruner.step()
        pruner.optimizer.zero_grad()
    for name, weight in pruner.net.weights.items():
        assert torch.equal(pruner.net.masks[name], start[name]) and torch.equal(weight != 0, start[name])


def test_what_is_refused() -> None:
    for temperature in (0.0, -1.0, float("nan"), True):
        with pytest.raises(BadInput, match="temperature"):
            GraSP(temperature=temperature)
    for data, loss in (([], squared), (None, None)):
        with pytest.raises(BadInput, match="grasp: no"):
            attach(GraSP(), Heads(), data, loss)
