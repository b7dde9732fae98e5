"""The experiments of the sheets lottery-ticket and lottery-jackpots on scikit-learn's digits, 500 test images.

Seen (means over the seeds below; `pytest -s` prints them):
    tickets, 4% left     ticket .950, same mask with new weights .843, shuffled mask .155, dense .967
    jackpots, 90% cut    magnitude mask .912 -> .965, one epoch .954, one epoch from a random mask .877, dense .969
    jackpots, 95% cut    magnitude mask .859 -> .960 (unrestricted .963), one epoch .913, from a random mask .734
    random weights       .08 -> edge-popup .938, biprop .922 at half of the weights, none of them trained
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.apply.training import Masks, Net, Training
from secateur.evaluate.classify import accuracy, to_batch
from secateur.io.images import Images, load_images
from secateur.methods.weights.biprop import Biprop
from secateur.methods.weights.edge_popup import EdgePopup
from secateur.methods.weights.lottery_jackpots import HIGH, LOW, LotteryJackpots
from secateur.methods.weights.lottery_ticket import LotteryTicket, shuffled

pytestmark = pytest.mark.slow
BATCH = 50


@cache
def digits(split: str) -> tuple[Images, Tensor, Tensor]:
    images = load_images("digits", split)
    return images, to_batch(images.images), torch.as_tensor(images.labels)


def mlp(seed: int, *widths: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = [nn.Flatten()]
        for a, b in zip((64, *widths), (*widths, 10), strict=True):
            layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def score(model: nn.Module) -> float:
    images, _, _ = digits("test")
    return accuracy(model, images.images, images.labels)


def fit(
    method: Training, model: nn.Module, seed: int, epochs: int, cosine: bool = False, **sgd: float
) -> float:
    """Train under the method, its first training `epochs` long, batches by the clock's position; test accuracy."""
    _, x, y = digits("train")
    per = len(x) // BATCH
    whole = per * epochs
    rounds = method.trainings if isinstance(method, LotteryTicket) else 0
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, **sgd)
    pruner = method.attach(model, optimizer, steps=whole * (rounds + 1))
    for _ in range(pruner.net.steps):
        epoch, place = divmod(pruner.position, per)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed * 1000 + epoch))
        chosen = order[place * BATCH : (place + 1) * BATCH]
        if cosine:
            optimizer.param_groups[0]["lr"] = (
                sgd["lr"] * (1 + math.cos(math.pi * pruner.position / whole)) / 2
            )
        nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        pruner.optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    return score(model)


def test_a_ticket_beats_new_weights_and_those_beat_a_shuffled_mask() -> None:
    """4% of the weights left after 6 rounds of 15 epochs."""
    found: dict[str, list[float]] = {}
    for seed in range(2):
        for control in ("none", "reinit", "shuffle"):
            method = LotteryTicket(sparsity=0.96, rounds=6, control=control, seed=seed)
            found.setdefault(control, []).append(fit(method, mlp(seed, 100, 50), seed, 15, lr=0.05))
        dense = LotteryTicket(sparsity=0.0, rounds=1)
        found.setdefault("dense", []).append(fit(dense, mlp(seed, 100, 50), seed, 15, lr=0.05))
    mean = {name: sum(values) / len(values) for name, values in found.items()}
    print(mean)
    assert mean["none"] > mean["reinit"] + 0.02 and mean["reinit"] > mean["shuffle"] + 0.1
    assert mean["none"] > mean["dense"] - 0.03


class RandomStart(LotteryJackpots):
    """The same search from a mask of the same counts anywhere in the layers."""

    def start(self, net: Net) -> Masks:
        stream = net.generator()
        masks = {name: shuffled(mask, stream) for name, mask in super().start(net).items()}
        for name, mask in masks.items():
            net.memory[f"score/{name}"].copy_(torch.where(mask, HIGH, LOW))
        return masks


@cache
def trained(seed: int) -> tuple[dict[str, Tensor], float]:
    model = mlp(seed, 128, 128)
    reached = fit(LotteryTicket(sparsity=0.0, rounds=1, rewind="none"), model, seed, 10, lr=0.05)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}, reached


@pytest.mark.parametrize(("sparsity", "restriction"), [(0.9, "cosine"), (0.95, "cosine"), (0.95, "none")])
def test_a_jackpot_wins_back_most_of_what_the_magnitude_mask_loses(sparsity: float, restriction: str) -> None:
    settings: dict[str, Any] = {"sparsity": sparsity, "restriction": restriction}
    sums = dict.fromkeys(("dense", "magnitude", "jackpot", "one epoch", "one epoch, random start"), 0.0)
    for seed in range(3):
        state, dense = trained(seed)

        def fresh(state: dict[str, Tensor] = state, seed: int = seed) -> nn.Module:
            model = mlp(seed, 128, 128)
            model.load_state_dict(state)
            return model

        model = fresh()
        LotteryJackpots(**settings).attach(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=1)
        sums["dense"] += dense / 3
        sums["magnitude"] += score(model) / 3
        sgd = {"cosine": True, "lr": 0.1, "weight_decay": 5e-4}
        sums["jackpot"] += fit(LotteryJackpots(**settings), fresh(), seed, 20, **sgd) / 3
        sums["one epoch"] += fit(LotteryJackpots(**settings), fresh(), seed, 1, **sgd) / 3
        sums["one epoch, random start"] += fit(RandomStart(**settings), fresh(), seed, 1, **sgd) / 3
    print(sparsity, restriction, sums)
    assert sums["jackpot"] - sums["magnitude"] >= 0.7 * (sums["dense"] - sums["magnitude"])
    assert sums["one epoch"] > sums["one epoch, random start"]


@pytest.mark.parametrize("kind", [EdgePopup, Biprop])
def test_a_random_network_holds_one_that_reads_digits(kind: type[EdgePopup]) -> None:
    model = mlp(0, 256, 256)
    before = score(model)
    reached = fit(kind(sparsity=0.5), model, 0, 15, cosine=True, lr=0.1)
    print(kind.__name__, before, reached)
    assert before < 0.3 and reached > 0.85
