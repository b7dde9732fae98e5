"""The battery of the methods that cut while a network trains: what holds for every one of them, from the registry."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.apply.pruner import Pruner
from secateur.apply.training import Training
from secateur.core.method import find, make, training_names
from secateur.core.units import Unit
from secateur.errors import SecateurError

STEPS = 24
# What a run this short needs; nothing that changes what is claimed below.
SETTINGS: dict[str, dict[str, Any]] = {
    "gmp": {"every": 4},
    "granet": {"every": 4},
    "rigl": {"every": 4},
    "set": {"every": 4},
    "lottery_ticket": {"rounds": 3},
    "adasap": {"removals": 3, "rho_max": 0.5},
}
CHANNELS = {"adasap"}  # cut whole channels: their counts come in channels


def settings(name: str) -> dict[str, Any]:
    return {"sparsity": 0.6, **SETTINGS.get(name, {})}


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 20),
        nn.ReLU(),
        nn.Linear(20, 5),
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(step)
    return torch.randn(16, 1, 6, 6, generator=g), torch.randint(0, 5, (16,), generator=g)


@dataclass
class Run:
    model: nn.Module
    optimizer: torch.optim.Optimizer
    pruner: Pruner
    masks: list[dict[str, Tensor]]

    def go(self, steps: range, spoil: int | None = None) -> None:
        outer = self.pruner.optimizer
        for step in steps:
            x, y = batch(step)

            def closure(x: Tensor = x, y: Tensor = y, bad: bool = step == spoil) -> Tensor:
                outer.zero_grad()
                for p in self.model.parameters():
                    p.grad = None
                loss = F.cross_entropy(self.model(x), y) * (float("nan") if bad else 1.0)
                loss.backward()
                return loss

            closure()
            outer.step(closure) if getattr(outer, "two_pass", False) else outer.step()
            self.pruner.step()
            self.masks.append({n: m.clone() for n, m in self.pruner.net.masks.items()})


def start(name: str, kind: str = "sgd", **more: Any) -> Run:
    model = net()
    if kind == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3
        )
    else:
        optimizer = torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)
    data = [batch(1000 + i) for i in range(3)]
    method = make(name, **{**settings(name), **more})
    pruner = method.attach(model, optimizer, steps=STEPS, data=data, loss=F.cross_entropy)
    run = Run(model, optimizer, pruner, [])
    run.masks.append({n: m.clone() for n, m in pruner.net.masks.items()})
    return run


def count(masks: dict[str, Tensor]) -> int:
    return sum(int(m.sum()) for m in masks.values())


@pytest.mark.parametrize("name", training_names())
def test_declares_where_it_stands(name: str) -> None:
    card = find(name).card
    assert card.unit in Unit and card.when in ("before", "during", "after")
    assert card.start in ("dense", "sparse") and card.topology in ("static", "dynamic", "conditional")
    assert card.purpose in ("inference", "training", "robustness") and card.paper and card.criterion


@pytest.mark.parametrize("name", training_names())
def test_settings_go_through_json_and_are_checked(name: str) -> None:
    method = make(name, **settings(name))
    assert isinstance(method, Training)
    assert make(name, **json.loads(json.dumps(method.settings()))).settings() == method.settings()
    for wrong in ({"sparsity": 1.0}, {"sparsity": -0.1}, {"sparsity": "half"}, {"sparsty": 0.5}):
        with pytest.raises(SecateurError):
            make(name, **wrong)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("name", training_names())
def test_ends_as_sparse_as_asked_with_zeros_that_are_zero(name: str, kind: str) -> None:
    run = start(name, kind)
    size = sum(m.numel() for m in run.masks[0].values())
    for step in range(STEPS):
        run.go(range(step, step + 1))
        for weight, mask in zip(run.pruner.net.weights.values(), run.pruner.net.masks.values(), strict=True):
            assert not weight[~mask].any()
            assert bool(mask.any())
    for p in run.model.parameters():
        for value in run.optimizer.state.get(p, {}).values():
            for name_, w in run.pruner.net.weights.items():
                if w.data_ptr() == p.data_ptr() and isinstance(value, Tensor) and value.shape == w.shape:
                    assert not value[~run.pruner.net.masks[name_]].any()
    layers = len(run.masks[0])
    room = 0.15 * size if name in CHANNELS else 0.02 * size if name == "lottery_jackpots" else layers
    if name == "lottery_jackpots":  # its classifier stays dense: the sparsity is of the other layers
        size -= list(run.masks[0].values())[-1].numel()
        assert abs((size - count(dict(list(run.masks[-1].items())[:-1]))) - 0.6 * size) <= room
    else:
        assert abs((size - count(run.masks[-1])) - 0.6 * size) <= room
    report = run.pruner.report()
    assert (
        report["density"] <= report["explored_fraction"] <= 1
        and report["density"] <= report["peak_density"] <= 1
    )
    run.pruner.detach()
    assert not run.optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("name", training_names())
def test_the_card_says_how_the_mask_moves(name: str) -> None:
    run, card = start(name), find(name).card
    run.go(range(STEPS))
    counts = [count(m) for m in run.masks]
    first, last = run.masks[0], run.masks[-1]
    if card.start == "sparse":
        assert max(counts) <= run.pruner.peak_density * sum(m.numel() for m in first.values()) + 0.5
        assert run.pruner.peak_density < 0.5
    if card.when == "before":
        assert all(torch.equal(a[n], first[n]) for a in run.masks for n in first)
    if card.topology == "dynamic":
        grown = [
            any(bool((b[n] & ~a[n]).any()) for n in a) for a, b in zip(run.masks, run.masks[1:], strict=False)
        ]
        assert any(grown)
    elif run.pruner.method.trains == "weights":
        assert all(
            not bool((b[n] & ~a[n]).any()) for a, b in zip(run.masks, run.masks[1:], strict=False) for n in a
        )
    assert first.keys() == last.keys()


@pytest.mark.parametrize("name", training_names())
def test_the_same_seed_gives_the_same_run_and_resumes_bitwise(name: str) -> None:
    a, b = start(name), start(name)
    a.go(range(STEPS))
    b.go(range(11))
    saved = copy.deepcopy((b.model.state_dict(), b.optimizer.state_dict(), b.pruner.state_dict()))
    c = start(name)
    c.model.load_state_dict(saved[0])
    c.optimizer.load_state_dict(saved[1])
    c.pruner.load_state_dict(saved[2])
    b.go(range(11, STEPS))
    c.go(range(11, STEPS))
    for other in (b, c):
        for key, value in a.model.state_dict().items():
            assert torch.equal(value, other.model.state_dict()[key]), key
        assert all(torch.equal(a.masks[-1][n], other.masks[-1][n]) for n in a.masks[-1])
    assert a.pruner.report() == c.pruner.report()


@pytest.mark.parametrize("name", training_names())
def test_a_bad_gradient_costs_one_step_and_no_weight(name: str) -> None:
    run = start(name)
    run.go(range(7))
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    run.go(range(7, 8), spoil=7)
    assert all(torch.equal(before[n], p) for n, p in run.model.named_parameters())
    run.go(range(8, STEPS))
    assert run.pruner.skipped == 1
    assert all(bool(torch.isfinite(p).all()) for p in run.model.parameters())


@pytest.mark.parametrize("name", training_names())
def test_an_exception_while_attaching_leaves_the_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    needs = [p.requires_grad for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    groups = [list(group["params"]) for group in optimizer.param_groups]
    with pytest.raises(SecateurError):
        make(name, **{**settings(name), "only": "nothing.*"}).attach(model, optimizer, steps=STEPS)
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == needs
    assert all(
        a is b
        for held, group in zip(groups, optimizer.param_groups, strict=True)
        for a, b in zip(held, group["params"], strict=True)
    )
    assert not optimizer._optimizer_step_pre_hooks
