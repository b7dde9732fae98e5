from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import BadInput
from secateur.methods.weights.synflow import SynFlow
from tests.oracles import floor_count, slow_group


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))


def oracle(model: nn.Sequential, sparsity: float, rounds: int) -> list[bool]:
    """Keep flags of both layers: a path counts |a_ji b_kj|, a weight's score is the sum over its paths; cut, again."""
    a, b = ([[abs(w) for w in row] for row in layer.weight.tolist()] for layer in (model[0], model[2]))
    keep = [True] * (len(a) * len(a[0]) + len(b) * len(b[0]))
    for done in range(1, rounds + 1):
        scores = []
        for row, out in zip(a, zip(*b, strict=True), strict=True):
            scores += [w * sum(out) for w in row]
        for row in b:
            scores += [w * sum(a[j]) for j, w in enumerate(row)]
        scores = [score if kept else -1.0 for score, kept in zip(scores, keep, strict=True)]
        keep = slow_group(scores, floor_count(len(scores), 1 - (1 - sparsity) ** (done / rounds)))
        a = [[w * keep[i * 3 + j] for j, w in enumerate(row)] for i, row in enumerate(a)]
        b = [[w * keep[12 + i * 4 + j] for j, w in enumerate(row)] for i, row in enumerate(b)]
    return keep


def attach(method: SynFlow, model: nn.Module, data: Any = None) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return method.attach(
        model, optimizer, steps=5, data=[(torch.randn(7, 3), None)] if data is None else data
    )


@pytest.mark.parametrize("rounds", [1, 3, 100])
@pytest.mark.parametrize("sparsity", [0.0, 0.4, 0.7])
def test_masks_are_the_oracles(sparsity: float, rounds: int) -> None:
    model = net()
    wanted = oracle(model, sparsity, rounds)
    masks = attach(SynFlow(sparsity=sparsity, rounds=rounds), model).net.masks
    assert torch.cat([mask.flatten() for mask in masks.values()]).tolist() == wanted


def deep() -> nn.Sequential:
    """A wide layer among narrow ones: one shot empties the wide one, whose flow is spread over many weights."""
    torch.manual_seed(0)
    widths = (8, 8, 200, 200, 8, 4)
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        parts += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def test_rounds_keep_a_network_connected_where_one_shot_does_not() -> None:
    data = [(torch.zeros(1, 8), None)]
    once = attach(SynFlow(sparsity=0.995, rounds=1), deep(), data)
    often = attach(SynFlow(sparsity=0.995), deep(), data)
    assert any("would have lost every weight" in note for note in once.net.notes)
    assert not often.net.notes and all(int(mask.sum()) > 1 for mask in often.net.masks.values())


def test_the_values_of_the_data_and_the_signs_of_the_weights_do_not_matter() -> None:
    model, flipped = net(), net()
    with torch.no_grad():
        flipped[0].weight.neg_()
    plain = attach(SynFlow(sparsity=0.5), model).net.masks
    other = attach(SynFlow(sparsity=0.5), flipped, [(torch.full((1, 3), -9.0), None)]).net.masks
    assert all(torch.equal(plain[name], other[name]) for name in plain)


def test_masks_stay_and_weights_keep_their_values() -> None:
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    pruner = attach(SynFlow(sparsity=0.5), model)
    for p, value, mask in zip(model.parameters(), before, pruner.net.masks.values(), strict=True):
        assert torch.equal(p, value * mask)
    for _ in range(3):
        inputs: Tensor = torch.ones(2, 3)
        model(inputs).square().sum().backward()
        pruner.optimizer.step()
        pruner.step()
    assert all(
        torch.equal(w != 0, m) for w, m in zip(model.parameters(), pruner.net.masks.values(), strict=True)
    )


def test_what_is_refused() -> None:
    for rounds in (0, 1.5, True):
        with pytest.raises(BadInput, match="rounds"):
            SynFlow(rounds=rounds)  # type: ignore[arg-type]
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(BadInput, match="no input of floats"):
        attach(SynFlow(), model, [])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
