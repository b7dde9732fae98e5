"""Random pruning against its sheet: exact seeded counts, static masks, the scored densities, the digits experiment."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.apply.training import Net, keep_largest
from secateur.core.units import Site
from secateur.errors import BadInput, Infeasible
from secateur.evaluate.classify import accuracy, to_batch
from secateur.io.classifiers import load_classifier
from secateur.io.images import load_images
from secateur.methods.weights.random_pruning import RandomPruning
from secateur.signals.gradients import grasp_scores
from secateur.sites.trainable import trainable_weights

SHEET_COUNTS = {"c1.weight": 432, "c2.weight": 4_608, "c3.weight": 18_432, "fc.weight": 640}


class Small(nn.Module):
    """The sheet's four layers."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2, self.c3 = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.Conv2d(32, 64, 3)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.c1, self.c2, self.c3):
            x = F.relu(layer(x))
        return self.fc(x.mean((2, 3)))


def oracle(densities: dict[str, float], seed: int) -> dict[str, set[int]]:
    """Kept places of each layer: the floor of what is to be cut, drawn by python's own generator."""
    draw = random.Random(seed)
    kept = {}
    for name, size in SHEET_COUNTS.items():
        cut = int((1 - densities[name]) * size + 1e-9)
        kept[name] = set(draw.sample(range(size), size - cut))
    return kept


def start(seed: int = 0, model: nn.Module | None = None, **settings: object) -> tuple[dict[str, Tensor], Net]:
    torch.manual_seed(3)
    model = model or Small()
    method = RandomPruning(seed=seed, **settings)  # type: ignore[arg-type]
    random_images = torch.Generator().manual_seed(1)
    data = [
        (torch.randn(6, 3, 8, 8, generator=random_images), torch.arange(6)),
        (torch.randn(6, 3, 8, 8, generator=random_images), torch.arange(4, 10)),
    ]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = method.attach(model, optimizer, steps=10, data=data, loss=F.cross_entropy)
    return pruner.net.masks, pruner.net


def test_counts_are_those_of_the_oracle_and_their_sum_is_the_budget() -> None:
    densities = {"c1.weight": 0.56630, "c2.weight": 0.11468, "c3.weight": 0.05415, "fc.weight": 1.0}
    masks, _ = start(sparsity=0.9)
    slow = oracle(densities, 0)
    for name, mask in masks.items():
        assert abs(int(mask.sum()) - len(slow[name])) <= 1, "one weight a layer makes the sum exact"
    assert sum(int((~m).sum()) for m in masks.values()) == int(24_112 * 0.9 + 1e-9)
    assert bool(masks["fc.weight"].all())


def test_a_seed_gives_one_mask_and_two_seeds_overlap_by_chance() -> None:
    first, again, other = (start(seed, sparsity=0.9)[0]["c3.weight"] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    overlap = float((first & other).sum() / first.sum())
    assert overlap == pytest.approx(0.05415, abs=0.03)
    slow = (
        oracle({n: 0.05415 for n in SHEET_COUNTS}, 0)["c3.weight"],
        oracle({n: 0.05415 for n in SHEET_COUNTS}, 1)["c3.weight"],
    )
    assert len(slow[0] & slow[1]) / len(slow[0]) == pytest.approx(overlap, abs=0.04)


@pytest.mark.parametrize("layers", ["uniform", "uniform_plus", "er", "erk", "erk_plus", "snip", "grasp"])
def test_every_way_meets_the_budget_exactly(layers: str) -> None:
    for sparsity in (0.0, 0.5, 0.9):
        masks, _ = start(layers=layers, sparsity=sparsity)
        assert sum(int((~m).sum()) for m in masks.values()) == int(24_112 * sparsity + 1e-9)
        assert all(bool(m.any()) for m in masks.values())
    assert all(bool(m.all()) for m in start(layers=layers, sparsity=0.0)[0].values())


def test_the_mask_and_the_count_of_nonzero_weights_never_change() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    pruner = RandomPruning(sparsity=0.8).attach(model, optimizer, steps=100)
    first = {n: m.clone() for n, m in pruner.net.masks.items()}
    for _ in range(100):
        F.cross_entropy(model(torch.randn(16, 6)), torch.randint(3, (16,))).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    assert all(torch.equal(m, first[n]) for n, m in pruner.net.masks.items())
    for name, weight in trainable_weights(model).items():
        assert int(weight.count_nonzero()) == int(first[name].sum())
    assert pruner.report()["explored_fraction"] == pytest.approx(pruner.density)


def test_grasp_shares_are_the_counts_of_its_ranking_but_not_its_mask() -> None:
    masks, net = start(layers="grasp", sparsity=0.7)
    torch.manual_seed(3)
    plain = Small()
    weights = {n: w.detach() for n, w in trainable_weights(plain).items()}
    ranked = keep_largest(grasp_scores(plain, weights, net.data, F.cross_entropy), 0.7)
    assert [int(m.sum()) for m in masks.values()] == [int(m.sum()) for m in ranked.values()]
    assert not torch.equal(masks["c3.weight"], ranked["c3.weight"])


def test_snip_shares_do_not_depend_on_the_networks_own_weights_or_the_losses_scale() -> None:
    counts = []
    for scale, times in ((1.0, 1.0), (1.0, 4.0), (0.01, 1.0)):
        torch.manual_seed(3)
        model = Small()
        with torch.no_grad():
            model.c2.weight.mul_(scale)  # a Glorot draw stands in for it
        data = [(torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6))]
        pruner = RandomPruning(layers="snip", sparsity=0.9).attach(
            model,
            torch.optim.SGD(model.parameters(), 0.1),
            steps=10,
            data=data,
            loss=lambda o, t, times=times: times * F.cross_entropy(o, t),  # type: ignore[misc]
        )
        counts.append([int(m.sum()) for m in pruner.net.masks.values()])
    assert counts[0] == counts[1] == counts[2]


def test_bernoulli_meets_the_budget_on_average_and_leaves_no_layer_empty() -> None:
    kept = [sum(int(m.sum()) for m in start(s, exact=False, sparsity=0.9)[0].values()) for s in range(8)]
    assert len(set(kept)) > 1 and sum(kept) / 8 == pytest.approx(2_411, rel=0.03)
    tiny = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 400))
    masks, net = None, None
    method = RandomPruning(exact=False, layers="uniform", sparsity=0.99)
    pruner = method.attach(tiny, torch.optim.SGD(tiny.parameters(), 0.1), steps=5)
    masks, net = pruner.net.masks, pruner.net
    assert bool(masks["0.weight"].any()) and any(
        note.startswith("0.weight: would have lost") for note in net.notes
    )


def test_what_is_missing_or_wrong_is_one_line() -> None:
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for layers in ("snip", "grasp"):
        with pytest.raises(BadInput, match=f"layers={layers}: no batches and no loss"):
            RandomPruning(layers=layers).attach(model, optimizer, steps=5)
    with pytest.raises(Infeasible, match=r"fc\.weight alone"):
        RandomPruning(layers="erk_plus", sparsity=0.98).attach(model, optimizer, steps=5)
    for bad in ({"layers": "erkk"}, {"exact": 1}, {"last_density": 0.0}, {"last_density": 2.0}):
        with pytest.raises(BadInput):
            RandomPruning(**bad)  # type: ignore[arg-type]
    assert Site("x", (2, 3)).size == 6


@pytest.mark.slow
def test_the_wider_the_network_the_smaller_the_gap_to_dense() -> None:
    """The sheet's digits experiment, shortened: 90% sparse ERK, widths 16, 64, 256, 2 seeds."""
    train, test = load_images("digits", "train"), load_images("digits", "test")
    x, y = to_batch(train.images), torch.as_tensor(train.labels)

    def trained(width: int, sparsity: float, seed: int) -> float:
        model = load_classifier(f"mlp-{width}-{width}", channels=1, size=8, classes=10, seed=seed)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        pruner = RandomPruning(sparsity=sparsity, seed=seed).attach(model, optimizer, steps=400)
        order = torch.Generator().manual_seed(seed)
        for _ in range(400):
            pick = torch.randperm(len(x), generator=order)[:64]
            optimizer.zero_grad()
            F.cross_entropy(model(x[pick]), y[pick]).backward()
            optimizer.step()
            pruner.step()
        return accuracy(model, test.images, test.labels)

    gaps = [
        sum(trained(width, 0.0, seed) - trained(width, 0.9, seed) for seed in (0, 1)) / 2
        for width in (16, 64, 256)
    ]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[0] > 0.1 and gaps[2] < 0.05
