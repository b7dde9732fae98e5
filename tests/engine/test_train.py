"""The reference loop: learning rates, data order, resuming, and what it refuses."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from secateur.engine.events import Event
from secateur.engine.train import Fit, batch_of, fit
from secateur.errors import BadInput
from secateur.methods.weights.gmp import GMP

g = torch.Generator().manual_seed(0)
IMAGES, LABELS = torch.rand(50, 1, 4, 4, generator=g), torch.randint(0, 3, (50,), generator=g)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


def test_equals_a_loop_written_out() -> None:
    how = Fit(epochs=3, batch=8, lr=0.1, momentum=0.9, weight_decay=1e-3, seed=5)
    model, slow = net(), net()
    told: list[Event] = []
    rows = fit(model, IMAGES, LABELS, how, evaluate=lambda m: 0.5, listen=told.append)
    optimizer = torch.optim.SGD(slow.parameters(), 0.1, 0.9, weight_decay=1e-3)
    losses = []
    for step in range(18):
        epoch, part = divmod(step, 6)
        order = torch.randperm(50, generator=torch.Generator().manual_seed(5 * 1_000_003 + epoch))
        chosen = order[8 * part : 8 * part + 8]
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * 0.5 * (1 + math.cos(math.pi * step / 18))
        loss = F.cross_entropy(slow(IMAGES[chosen]), LABELS[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), slow.state_dict().values(), strict=True)
    )
    assert [row["epoch"] for row in rows] == [1, 2, 3] and rows[0]["loss"] == pytest.approx(
        sum(losses[:6]) / 6
    )
    assert [event.done for event in told] == [1, 2, 3] and not model.training


def test_an_epoch_shows_every_sample_once() -> None:
    seen = torch.cat([batch_of(48, 8, position, 3) for position in range(6, 12)])
    assert sorted(seen.tolist()) == list(range(48))
    assert not torch.equal(batch_of(48, 8, 0, 3), batch_of(48, 8, 6, 3))


def test_learning_rates() -> None:
    how = Fit(epochs=8, lr=1.0, schedule="step")
    assert [how.rate(p, 10) for p in (0, 39, 40, 59, 60, 79)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert Fit(epochs=8, lr=1.0, schedule="constant").rate(70, 10) == 1
    warm = Fit(epochs=10, lr=1.0, warmup=0.1)
    assert [warm.rate(p, 10) for p in (0, 4)] == pytest.approx([1 / 11, 5 / 11])
    again = Fit(epochs=8, lr=1.0, cycle=4)  # two trainings: the position goes through four epochs
    assert again.rate(0, 10) == 1 and again.rate(39, 10) < 0.01
    assert again.rate(40, 10) == again.rate(79, 10) == 0.01  # fine-tuning after the first training


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_resume_is_bitwise(optimizer: str) -> None:
    how, kept = Fit(epochs=4, batch=10, lr=0.05, optimizer=optimizer), []

    def go(save: Any = None, state: Any = None) -> tuple[nn.Module, Any]:
        model = net()
        inner = how.make(model)
        pruner = GMP(sparsity=0.7, every=3).attach(model, inner, steps=20)
        rows = fit(model, IMAGES, LABELS, how, optimizer=inner, pruner=pruner, save=save, state=state)
        return model, rows

    whole, rows = go(lambda state: kept.append(copy.deepcopy(state)))
    for state in kept[:3]:
        model, again = go(state=state)
        assert again == rows
        pairs = zip(whole.state_dict().values(), model.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(BadInput, match="one of the two runs has a method"):
        fit(net(), IMAGES, LABELS, how, state=kept[0])


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"lr": 0.0}, {"schedule": "cosin"}, {"optimizer": "sdg"}, {"warmup": 1.0}]
)
def test_settings_that_are_none(wrong: dict) -> None:
    with pytest.raises(BadInput):
        Fit(**wrong)


def test_too_few_samples_and_a_loss_that_explodes() -> None:
    with pytest.raises(BadInput, match="50 samples make no batch of 64"):
        fit(net(), IMAGES, LABELS, Fit(batch=64))
    with pytest.raises(BadInput, match="loss is not finite in epoch 1"):
        fit(net(), IMAGES * float("nan"), LABELS, Fit(batch=10, epochs=1))
