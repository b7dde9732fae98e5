from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.apply.training import Training
from secateur.errors import BadInput
from secateur.evaluate.classify import accuracy, to_batch
from secateur.io.classifiers import load_classifier
from secateur.io.images import load_images
from secateur.methods.weights.random_pruning import RandomPruning
from secateur.methods.weights.snip import SNIP
from tests.oracles import floor_count, slow_group


class Heads(nn.Module):
    """Two linear layers side by side: outputs [A x, B x], so that gradients are easily written down."""

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


def oracle(model: Heads, data: list[tuple[Tensor, Tensor]], sparsity: float) -> list[bool]:
    """Keep flags of A's then B's weights: |w 2 sum_n (w_i x_n - y_ni) x_nj| by loops, one stable ranking."""
    rows = [*model.a.weight.tolist(), *model.b.weight.tolist()]
    scores = []
    for i, row in enumerate(rows):
        for j, w in enumerate(row):
            slope = 0.0
            for xs, ys in data:
                for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
                    slope += 2 * (sum(p * q for p, q in zip(row, x, strict=True)) - y[i]) * x[j]
            scores.append(abs(w * slope))
    return slow_group(scores, floor_count(len(scores), sparsity))


def attach(method: Training, model: nn.Module, data: Any = None, loss: Any = squared) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return method.attach(model, optimizer, steps=5, data=batches() if data is None else data, loss=loss)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.75])
def test_masks_are_the_oracles(sparsity: float) -> None:
    model = Heads()
    wanted = oracle(model, batches(), sparsity)
    masks = attach(SNIP(sparsity=sparsity), model).net.masks
    assert torch.cat([mask.flatten() for mask in masks.values()]).tolist() == wanted


def test_a_loss_times_a_constant_changes_nothing() -> None:
    plain = attach(SNIP(sparsity=0.5), Heads()).net.masks
    eight = attach(SNIP(sparsity=0.5), Heads(), loss=lambda o, t: 8 * squared(o, t)).net.masks
    assert all(torch.equal(plain[name], eight[name]) for name in plain)


def test_masks_stay_through_training() -> None:
    model = Heads()
    pruner = attach(SNIP(sparsity=0.5), model)
    start = {name: mask.clone() for name, mask in pruner.net.masks.items()}
    for x, y in batches() * 2:
        squared(model(x), y).backward()
        pruner.optimizer.step()
        pruner.step()
        pruner.optimizer.zero_grad()
    for name, weight in pruner.net.weights.items():
        assert torch.equal(pruner.net.masks[name], start[name]) and torch.equal(weight != 0, start[name])


def test_a_layer_without_any_flow_keeps_one_weight_and_a_note() -> None:
    pruner = attach(SNIP(sparsity=0.5), Heads(), loss=lambda o, t: (o[:, 2:] ** 2).sum())
    assert int(pruner.net.masks["a.weight"].sum()) == 1
    assert "a.weight" in pruner.report()["notes"][0]


def test_without_data_or_loss_it_refuses_and_changes_nothing() -> None:
    model = Heads()
    before = [p.clone() for p in model.parameters()]
    for data, loss in (([], squared), (None, None)):
        with pytest.raises(BadInput, match="snip: no"):
            attach(SNIP(), model, data, loss)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.slow
def test_digits_snip_beats_random_masks() -> None:
    """Seen, three seeds: SNIP .81, .72, .73; random ERK masks .25, .26, .27. 98% cut from an MLP before training."""
    pytest.importorskip("sklearn", reason="scikit-learn brings the digits")
    train, test = load_images("digits", "train"), load_images("digits", "test")
    images, labels = to_batch(train.images), torch.from_numpy(train.labels)
    found: dict[str, list[float]] = {"snip": [], "random": []}
    for seed in range(3):
        for name, method in (
            ("snip", SNIP(sparsity=0.98)),
            ("random", RandomPruning(sparsity=0.98, seed=seed)),
        ):
            model = load_classifier("mlp-128-128", channels=1, size=8, classes=10, seed=seed)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
            data = [(images[:256], labels[:256])]
            pruner = method.attach(model, optimizer, steps=300, data=data, loss=F.cross_entropy)
            stream = torch.Generator().manual_seed(seed)
            for _ in range(300):
                places = torch.randint(0, len(images), (64,), generator=stream)
                optimizer.zero_grad()
                F.cross_entropy(model(images[places]), labels[places]).backward()
                optimizer.step()
                pruner.step()
            found[name].append(accuracy(model, test.images, test.labels))
    print(found)
    assert sum(found["snip"]) / 3 > sum(found["random"]) / 3 + 0.05
