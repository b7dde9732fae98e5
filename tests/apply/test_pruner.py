"""The mask's keeper: zeros stay zeros whatever trains them, and everything that can go wrong is one line."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.apply.pruner import Pruner
from secateur.apply.training import Masks, Net, Training, dense, keep_largest
from secateur.core.method import Card
from secateur.core.scores import all_finite
from secateur.core.units import Unit
from secateur.errors import BadInput, NoMatch, Unsupported
from secateur.methods.weights.gmp import GMP

CARD = Card(paper="none", unit=Unit.WEIGHT, when="during", criterion="|w|")
OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-2, momentum=0.9, centered=True),
    "mixing": lambda p: Mixing(p),
}


class Mixing(torch.optim.Optimizer):
    """Like Muon: the step of one weight depends on all the others, so a zero gradient does not keep it still."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(list(parameters), {"lr": 0.05})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                held = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                held.mul_(0.9).add_(p.grad + p.grad.mean())
                p.sub_(0.05 * held)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))


def batch(step: int, n: int = 8) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(step)
    return torch.randn(n, 1, 6, 6, generator=g), torch.randint(0, 5, (n,), generator=g)


def train(model: nn.Module, pruner: Pruner, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x, y = batch(step)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()


def expect_zeros(pruner: Pruner, optimizer: torch.optim.Optimizer) -> None:
    for name, weight in pruner.net.weights.items():
        cut = ~pruner.net.masks[name]
        assert not weight[cut].any(), name
        live = dict(pruner.net.model.named_parameters())[name]
        for key, value in optimizer.state.get(live, {}).items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                assert not value[cut].any(), (name, key)


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_weights_and_moments_stay_zero_whatever_the_optimiser(kind: str) -> None:
    model = net()
    names = set(model.state_dict())
    optimizer = OPTIMISERS[kind](model.parameters())
    pruner = GMP(sparsity=0.8, every=3, end=0.6).attach(model, optimizer, steps=20)
    for step in range(20):
        train(model, pruner, optimizer, range(step, step + 1))
        expect_zeros(pruner, optimizer)
    assert pruner.density == pytest.approx(0.2, abs=0.01)
    assert set(model.state_dict()) == names
    report = pruner.report()
    assert (report["peak_density"], report["explored_fraction"], report["steps"]) == (1.0, 1.0, 20)
    pruner.detach()
    assert not optimizer._optimizer_step_pre_hooks


def test_equals_a_loop_written_out() -> None:
    """Masked SGD with momentum, by hand, against the pruner."""
    model, slow = net(), net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    pruner = GMP(sparsity=0.5, every=4, end=0.8).attach(model, optimizer, steps=10)
    masks: dict[str, Tensor] = {}
    velocity = {n: torch.zeros_like(p) for n, p in slow.named_parameters()}
    schedule = pruner.method.schedule(pruner.net)  # type: ignore[attr-defined]
    for step in range(10):
        train(model, pruner, optimizer, range(step, step + 1))
        slow.zero_grad()
        x, y = batch(step)
        F.cross_entropy(slow(x), y).backward()
        with torch.no_grad():
            for name, p in slow.named_parameters():
                assert p.grad is not None
                g = p.grad * masks.get(name, 1) + 0.01 * p
                velocity[name] = 0.9 * velocity[name] + g
                p -= 0.1 * velocity[name]
                p *= masks.get(name, 1)
                velocity[name] *= masks.get(name, 1)
            if schedule.due(step + 1):
                for name in ("0.weight", "4.weight"):
                    p = dict(slow.named_parameters())[name]
                    cut = int(p.numel() * schedule.target(step + 1) + 1e-9)
                    order = p.abs().flatten().sort(stable=True).indices[:cut]
                    masks[name] = torch.ones(p.numel()).index_fill_(0, order, 0).view_as(p)
                    p *= masks[name]
                    velocity[name] *= masks[name]
    for a, b in zip(model.parameters(), slow.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert all(torch.equal(pruner.net.masks[n].float(), masks[n]) for n in masks)


def test_autocast_scaler_and_accumulation() -> None:
    model = net()
    optimizer = OPTIMISERS["adamw"](model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    pruner = GMP(sparsity=0.7, every=2, end=0.8).attach(model, optimizer, steps=10)
    for step in range(10):
        for half in range(2):
            x, y = batch(2 * step + half)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(model(x), y) / 2
            if step == 4:
                loss = loss * float("inf")  # the scaler leaves this step out
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        pruner.step()
        optimizer.zero_grad()
        expect_zeros(pruner, optimizer)
    assert pruner.skipped == 1 and pruner.net.step == 10
    assert pruner.density == pytest.approx(0.3, abs=0.01)


def test_a_gradient_that_is_not_finite_skips_the_step_and_puts_off_the_cut() -> None:
    model = net()
    optimizer = OPTIMISERS["sgd"](model.parameters())
    pruner = GMP(sparsity=0.5, shape="once", begin=0.3, end=0.3).attach(model, optimizer, steps=10)
    train(model, pruner, optimizer, range(2))
    before = copy.deepcopy(model.state_dict())
    x, y = batch(2)
    F.cross_entropy(model(x), y).backward()
    model[4].bias.grad[0] = float("nan")  # type: ignore[union-attr,index]
    optimizer.step()
    pruner.step()
    after = model.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before if "running" not in n and "num_" not in n)
    assert pruner.skipped == 1 and pruner.density == 1.0  # step 3 was the one event
    train(model, pruner, optimizer, range(3, 4))
    assert pruner.density == pytest.approx(0.5, abs=0.01)
    assert pruner.report()["skipped"] == 1


def test_resume_is_bitwise() -> None:
    whole, first = net(), net()
    optimizers = [OPTIMISERS["adamw"](m.parameters()) for m in (whole, first)]
    pruners = [
        GMP(sparsity=0.8, every=3).attach(m, o, steps=16)
        for m, o in zip((whole, first), optimizers, strict=True)
    ]
    train(whole, pruners[0], optimizers[0], range(16))
    train(first, pruners[1], optimizers[1], range(8))
    state, model = copy.deepcopy(pruners[1].state_dict()), net(seed=9)
    optimizer = OPTIMISERS["adamw"](model.parameters())
    pruner = GMP(sparsity=0.8, every=3).attach(model, optimizer, steps=16)
    model.load_state_dict(first.state_dict())
    optimizer.load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    pruner.load_state_dict(state)
    train(model, pruner, optimizer, range(8, 16))
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), model.state_dict().values(), strict=True)
    )
    assert pruner.report() == pruners[0].report()


@pytest.mark.parametrize(
    "other, words",
    [
        (lambda m, o: GMP(sparsity=0.7, every=3).attach(m, o, steps=16), "settings"),
        (lambda m, o: GMP(sparsity=0.8, every=3).attach(m, o, steps=17), "steps 16"),
        (lambda m, o: Still(sparsity=0.8).attach(m, o, steps=16), "method gmp"),
        (lambda m, o: GMP(sparsity=0.8, every=3, skip="0").attach(m, o, steps=16), "settings"),
    ],
)
def test_a_state_of_another_run_is_refused(other: Any, words: str) -> None:
    model = net()
    pruner = GMP(sparsity=0.8, every=3).attach(model, torch.optim.SGD(model.parameters(), 0.1), steps=16)
    state = pruner.state_dict()
    fresh = net()
    second = other(fresh, torch.optim.SGD(fresh.parameters(), 0.1))
    before = second.state_dict()
    with pytest.raises(BadInput, match=rf"resume: was saved with .*{words}"):
        second.load_state_dict(state)
    assert second.net.step == 0 and before["step"] == 0


@dataclass(frozen=True, kw_only=True)
class Still(Training):
    """Magnitude once, before training; or whatever masks a test wants."""

    card = CARD

    def start(self, net: Net) -> Masks:
        return keep_largest({n: w.abs() for n, w in net.weights.items()}, dict.fromkeys(net.weights, 0.5))


def test_bad_input_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(BadInput, match=r"4\.weight: is not among the optimiser's parameters"):
        Still().attach(model, torch.optim.SGD(model[0].parameters(), 0.1), steps=5)
    with pytest.raises(BadInput, match="0 optimiser steps"):
        Still().attach(model, optimizer, steps=0)
    with pytest.raises(NoMatch, match="'5' matches no layer"):
        Still(skip="5").attach(model, optimizer, steps=5)
    with pytest.raises(BadInput, match=r"hold no event every 100 steps"):
        GMP().attach(model, optimizer, steps=50)
    for masks, words in (
        (
            lambda net: {**dense(net), "4.weigth": torch.ones(1)},
            r"4\.weigth: no such weight to cut.*4\.weight",
        ),
        (
            lambda net: {n: m[:1] for n, m in dense(net).items()},
            r"0\.weight: the mask is torch.bool \(1, 1, 3, 3\)",
        ),
        (lambda net: {"0.weight": dense(net)["0.weight"]}, r"4\.weight: the mask is none"),
    ):
        monkeypatch.setattr(Still, "start", lambda self, net, masks=masks: masks(net))
        with pytest.raises(BadInput, match=words):
            Still().attach(model, optimizer, steps=5)
    assert not optimizer._optimizer_step_pre_hooks


def test_a_parameter_that_was_exchanged_is_noticed() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    pruner = Still().attach(model, optimizer, steps=5)
    model[4].weight = nn.Parameter(model[4].weight.detach().clone())
    with pytest.raises(Unsupported, match=r"4\.weight: is another parameter"):
        train(model, pruner, optimizer, range(1))


def test_a_layer_never_becomes_empty() -> None:
    notes: list[str] = []
    scores = {"small": torch.tensor([[0.1, 0.3, 0.2]]), "large": torch.arange(1.0, 101).view(10, 10)}
    masks = keep_largest(scores, 0.95, notes)
    assert masks["small"].tolist() == [[False, True, False]]
    assert notes == ["small: would have lost every weight, keeps its largest"]
    assert int(masks["large"].sum()) == 103 - int(103 * 0.95)


def test_compiled_models_keep_their_names() -> None:
    model = net()
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(compiled.parameters(), 0.1)  # type: ignore[attr-defined]
    pruner = Still().attach(compiled, optimizer, steps=4)  # type: ignore[arg-type]
    train(compiled, pruner, optimizer, range(4))  # type: ignore[arg-type]
    assert list(pruner.net.masks) == ["0.weight", "4.weight"]
    expect_zeros(pruner, optimizer)


@dataclass(frozen=True, kw_only=True)
class Search(Training):
    """Trains scores; keeps the half of the weights with the highest."""

    card = CARD
    trains = "scores"

    def start(self, net: Net) -> Masks:
        for name in net.weights:
            net.memory[f"score/{name}"].copy_(net.memory[f"weight/{name}"].abs())
        return self.revise(net)

    def due(self, net: Net) -> bool:
        return True

    def revise(self, net: Net) -> Masks:
        scores = {n: net.memory[f"score/{n}"] for n in net.weights}
        return keep_largest(scores, dict.fromkeys(scores, 0.5))


def test_scores_are_trained_and_the_weights_stay() -> None:
    model = net()
    first = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    pruner = Search().attach(model, optimizer, steps=4)
    masks = {n: m.clone() for n, m in pruner.net.masks.items()}
    x, y = batch(0)
    F.cross_entropy(model(x), y).backward()
    gradient = model[4].weight.grad.clone()  # type: ignore[union-attr]
    score = pruner.net.memory["score/4.weight"].clone()
    optimizer.step()
    assert torch.allclose(pruner.net.memory["score/4.weight"], score - 0.5 * gradient * first["4.weight"])
    pruner.step()
    train(model, pruner, optimizer, range(1, 4))
    for name in masks:
        weight = dict(model.named_parameters())[name]
        assert torch.equal(weight, first[name] * pruner.net.masks[name])
        assert torch.equal(pruner.net.memory[f"weight/{name}"], first[name])
    assert any(not torch.equal(masks[n], pruner.net.masks[n]) for n in masks)
    assert torch.equal(model[1].weight, first["1.weight"]) and torch.equal(model[4].bias, first["4.bias"])
    pruner.detach()
    assert all(p.requires_grad for p in model.parameters())
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in model.parameters()]


def _rank(rank: int, port: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = net()
    wrapped = nn.parallel.DistributedDataParallel(model)
    optimizer = OPTIMISERS["sgd"](wrapped.parameters())
    pruner = GMP(sparsity=0.8, every=3, scope="global").attach(wrapped, optimizer, steps=12)
    for step in range(12):
        x, y = batch(2 * step + rank)
        F.cross_entropy(wrapped(x), y).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    torch.save({n: m for n, m in pruner.net.masks.items()}, f"{out}{rank}")
    dist.destroy_process_group()


def test_two_workers_have_the_same_masks(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path / "meet"), str(tmp_path / "masks")), nprocs=2)  # type: ignore[attr-defined]
    a, b = (torch.load(f"{tmp_path}/masks{rank}", weights_only=True) for rank in range(2))
    assert list(a) == ["0.weight", "4.weight"]
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert sum(int(m.sum()) for m in a.values()) == 356 - int(356 * 0.8)


def test_gradients_whose_squares_overflow_are_finite_all_the_same() -> None:
    assert all_finite([torch.full((3,), 1e30), torch.zeros(2)]) and all_finite([])
    assert not all_finite([torch.tensor([1e30, float("inf")])]) and not all_finite(
        [torch.tensor([float("nan")])]
    )


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_optimiser_state_loaded_later_is_cleaned(kind: str) -> None:
    """The short way past the moments holds only as long as the optimiser's state is the one that was cleaned."""
    model = net()
    optimizer = OPTIMISERS[kind](model.parameters())
    train_dense = net()
    other = OPTIMISERS[kind](train_dense.parameters())
    for step in range(3):
        x, y = batch(step)
        other.zero_grad()
        F.cross_entropy(train_dense(x), y).backward()
        other.step()
    pruner = Still().attach(model, optimizer, steps=20)
    train(model, pruner, optimizer, range(5))
    optimizer.load_state_dict(other.state_dict())
    train(model, pruner, optimizer, range(5, 6))
    expect_zeros(pruner, optimizer)
    with torch.no_grad():
        model[4].weight.add_(1.0)  # somebody writes into the weights
    train(model, pruner, optimizer, range(6, 7))
    assert not model[4].weight[~pruner.net.masks["4.weight"]].any()


def test_a_search_that_cannot_start_gives_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    monkeypatch.setattr(Search, "start", lambda self, net: {})
    with pytest.raises(BadInput, match=r"0\.weight: the mask is none"):
        Search().attach(model, optimizer, steps=5)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert held == [id(p) for p in model.parameters()] and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
