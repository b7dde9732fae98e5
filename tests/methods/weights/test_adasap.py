from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.apply.pruner import Pruner
from secateur.apply.training import Net
from secateur.errors import BadInput, Infeasible, Unsupported
from secateur.methods.weights.adasap import (
    FOLLOWS,
    AdaptiveStep,
    AdaSAP,
    Group,
    channels_kept,
    companions,
    least_important,
    radius_map,
)
from secateur.recover.sharpness import asam_step

STEPS = 12


def oracle(scores: list[float], rho_min: float, rho_max: float) -> list[float]:
    """The sheet's affine map, number by number."""
    low, high = min(scores), max(scores)
    if low == high:
        return [rho_min] * len(scores)
    return [rho_max - (s - low) / (high - low) * (rho_max - rho_min) for s in scores]


class Small(nn.Module):
    """Registered in another order than run: norm_b stands right behind conv_a, whose output goes into norm_a."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv_a, self.norm_b = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv_b, self.norm_a = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.free, self.linear = nn.Conv2d(6, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm_a(self.conv_a(x)))
        x = x + self.norm_b(self.conv_b(x))
        return self.linear(F.relu(self.free(x)).mean((2, 3)))


class Run:
    """A network, its optimiser and its pruner, trained step by step."""

    def __init__(self, method: AdaSAP | None, steps: int = STEPS, momentum: float = 0.9) -> None:
        self.model = Small()
        self.plain = torch.optim.SGD(self.model.parameters(), 0.05, momentum=momentum, weight_decay=1e-2)
        self.pruner = method.attach(self.model, self.plain, steps=steps) if method else None
        self.taken = 0

    @property
    def net(self) -> Net:
        assert self.pruner is not None
        return self.pruner.net

    @property
    def optimizer(self) -> AdaptiveStep:
        assert self.pruner is not None and isinstance(self.pruner.optimizer, AdaptiveStep)
        return self.pruner.optimizer

    def closure(self) -> Callable[[], Tensor]:
        stream = torch.Generator().manual_seed(self.taken)
        x, y = torch.randn(8, 1, 5, 5, generator=stream), torch.randint(0, 4, (8,), generator=stream)

        def closure() -> Tensor:
            self.plain.zero_grad()
            loss = F.cross_entropy(self.model(x), y)
            loss.backward()
            return loss

        return closure

    def go(self, steps: int) -> Run:
        for _ in range(steps):
            closure = self.closure()
            closure()
            if self.pruner is None:
                self.plain.step()
            else:
                self.pruner.optimizer.step(closure)
                self.pruner.step()
            self.taken += 1
        return self


def method(**more: Any) -> AdaSAP:
    return AdaSAP(**{"sparsity": 0.4, "begin": 0.25, "end": 0.5, "removals": 3, **more})


def same(one: nn.Module, other: nn.Module) -> bool:
    there = other.state_dict()
    return all(torch.equal(value, there[name]) for name, value in one.state_dict().items())


def test_the_sheets_radii_exactly() -> None:
    found = radius_map(torch.tensor([1.0, 2.0, 3.0]), 0.01, 2.0)
    assert torch.equal(found, torch.tensor([2.0, 1.005, 0.01]))
    assert torch.equal(radius_map(torch.tensor([1.0, 2.0, 3.0]), 0.01, 2.0, invert=True), found.flip(0))
    for invert in (False, True):
        alike = radius_map(torch.tensor([5.0, 5.0]), 0.01, 2.0, invert=invert)
        assert torch.equal(alike, torch.tensor([0.01, 0.01]))
    kept = torch.tensor([False, True, True, False])
    ranged = radius_map(torch.tensor([0.0, 2.0, 3.0, 9.0]), 0.01, 2.0, kept)
    assert torch.equal(ranged, torch.tensor([0.0, 2.0, 0.01, 0.0])), "what is cut neither counts nor moves"


@given(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=8), st.floats(0, 1), st.floats(1, 3))
def test_radii_are_the_oracles(scores: list[float], rho_min: float, rho_max: float) -> None:
    found = radius_map(torch.tensor(scores, dtype=torch.float64), rho_min, rho_max)
    assert found.tolist() == pytest.approx(oracle(scores, rho_min, rho_max), abs=1e-9)


def test_unimportant_channels_get_the_large_radius() -> None:
    weight = torch.tensor([[3.0, 4.0], [0.3, 0.4], [1.5, 2.0]])
    gradient = torch.tensor([[0.0, 0.1], [5.0, 5.0], [1.0, -0.75]])
    wanted = oracle([5.0, 0.5, 2.5], 0.01, 2.0)
    assert AdaSAP().radii(weight, gradient).tolist() == pytest.approx(wanted)
    taylor = oracle([0.4, 3.5, 0.0], 0.01, 2.0)  # |sum of w g|
    assert AdaSAP(importance="taylor").radii(weight, gradient).tolist() == pytest.approx(taylor)
    single = AdaSAP(unit="weight").radii(weight, gradient)
    assert single.flatten().tolist() == pytest.approx(oracle(weight.flatten().tolist(), 0.01, 2.0))
    kept = torch.tensor([True, False, True])
    assert AdaSAP().radii(weight, gradient, kept).tolist() == pytest.approx([0.01, 0.0, 2.0])
    assert float(single[1, 0]) == 2.0 and float(single[0, 1]) == pytest.approx(0.01)


@pytest.mark.parametrize("unit", ["channel", "weight"])
def test_radii_of_zero_are_sgd_bit_for_bit(unit: str) -> None:
    sharp = Run(method(unit=unit, sparsity=0.0, rho_min=0.0, rho_max=0.0)).go(STEPS)
    assert same(sharp.model, Run(None).go(STEPS).model)
    moved = Run(method(unit=unit, sparsity=0.0)).go(STEPS)
    assert not same(moved.model, sharp.model)


def test_what_moves_in_each_phase() -> None:
    run = Run(method())
    run.closure()()
    moves = run.optimizer.moves()
    names = {id(p): name for name, p in run.model.named_parameters()}
    assert [names[id(p)] for p, _ in moves] == ["conv_a.weight", "conv_b.weight", "free.weight"]
    for p, e in moves:
        assert p.grad is not None
        for i, rho in enumerate(oracle(p.flatten(1).norm(dim=1).tolist(), 0.01, 2.0)):
            assert torch.allclose(e[i], asam_step([p[i]], [p.grad[i]], rho)[0], atol=1e-6)
    run.go(6)  # the last removal is after step 6: from now on one radius
    run.closure()()
    parts = [p for p, _ in run.optimizer.moves()]
    slopes = [p.grad for p in parts if p.grad is not None]
    for (p, e), wanted in zip(run.optimizer.moves(), asam_step(parts, slopes, 2.0), strict=True):
        assert torch.equal(e, wanted) and not e[p == 0].any()


def test_removals_at_equal_distances_and_never_above_the_budget() -> None:
    run = Run(method())
    assert run.pruner is not None and run.pruner.method.events(run.net) == [3, 4, 6]  # type: ignore[attr-defined]
    density = [run.go(1).pruner.density for _ in range(STEPS)]  # type: ignore[union-attr]
    whole = 54 + 324 + 36 + 24
    assert density[:2] == [1, 1] and density[6:] == [density[5]] * 6
    for step, target in ((3, 0.4 / 3), (4, 0.8 / 3), (6, 0.4)):
        assert 0 <= target - (1 - density[step - 1]) < 54 / whole  # less than one channel below
    assert density[2] > density[3] > density[5]
    assert run.net.masks["linear.weight"].all(), "the classes keep their outputs"
    for mask in run.net.masks.values():
        assert torch.equal(mask.flatten(1).all(1), channels_kept(mask)), "whole channels"


def test_one_ranking_of_all_channels_by_norm() -> None:
    run = Run(method(sparsity=0.3, removals=1)).go(2)
    closure = run.closure()
    closure()
    run.optimizer.step(closure)
    norms = {n: w.flatten(1).norm(dim=1).tolist() for n, w in run.net.weights.items() if n != "linear.weight"}
    assert run.pruner is not None
    run.pruner.step()
    gone = [(n, i) for n in norms for i in range(6) if not channels_kept(run.net.masks[n])[i]]
    order = sorted((value, n, i) for n, values in norms.items() for i, value in enumerate(values))
    assert len(gone) > 3 and sorted(gone) == sorted((n, i) for _, n, i in order[: len(gone)])


def test_least_important_by_hand() -> None:
    def group(name: str, channel: int, importance: float, price: float) -> Group:
        return Group(((name, channel),), importance, price)

    groups = [group("a", 0, 0.1, 1), group("a", 1, 0.2, 1), group("b", 0, 0.3, 5), group("b", 1, 0.3, 5)]
    weights = {"a": torch.zeros(2, 1), "b": torch.zeros(3, 1)}
    assert least_important(groups, 0.5, weights) == []
    assert least_important(groups, 1, weights) == groups[:1]
    assert least_important(groups, 6, weights) == [groups[0], groups[2]], "a's last channel is passed over"
    assert least_important(groups, 5.9, weights) == groups[:1], (
        "stops, and takes nothing more important instead"
    )
    assert least_important(groups, 11, weights) == [groups[0], groups[2], groups[3]]
    coupled = [Group((("a", 0), ("b", 0)), 0.1, 6), Group((("a", 1), ("b", 1)), 0.2, 6), groups[3]]
    assert least_important(coupled, 100, weights) == [coupled[0], coupled[2]]


def test_a_removed_channel_is_silent_to_the_end() -> None:
    run = Run(method())
    for step in range(STEPS):
        run.go(1)
        gone = companions(run.net, run.net.masks)
        assert bool(gone) == (step >= 2)
        for name, rows in gone.items():
            assert not run.net.state[name][rows].any(), name
        for p, state in run.plain.state.items():
            name = next(n for n, q in run.model.named_parameters() if q is p)
            if name in gone and step > 5:
                assert not state["momentum_buffer"][gone[name]].any(), name
    gone = companions(run.net, run.net.masks)
    assert {"conv_a.bias", "norm_a.weight", "norm_a.bias", "norm_a.running_var"} <= set(gone)
    seen: list[Tensor] = []
    for training in (True, False):
        run.model.train(training)
        run.model.norm_a.register_forward_hook(lambda m, a, out: seen.append(out))
        run.model(torch.randn(4, 1, 5, 5))
    assert not seen[0][:, gone["norm_a.weight"]].any() and not seen[-1][:, gone["norm_a.weight"]].any()
    assert seen[-1][:, ~gone["norm_a.weight"]].any()


def test_the_norm_is_found_by_running_not_by_its_place() -> None:
    run = Run(method()).go(1)
    wanted = torch.zeros(4, 2, dtype=torch.bool)  # conv_a, conv_b, free, linear by norm_b, norm_a
    wanted[0, 1] = wanted[1, 0] = True
    assert torch.equal(run.net.memory[FOLLOWS], wanted)
    assert not run.model.conv_a._forward_hooks and not run.model.norm_a._forward_pre_hooks


def test_unit_weight_cuts_the_smallest_weights_and_no_norms() -> None:
    run = Run(method(unit="weight", removals=1)).go(2)
    closure = run.closure()
    closure()
    assert run.pruner is not None
    run.pruner.optimizer.step(closure)
    sizes = torch.cat([w.abs().flatten() for w in run.net.weights.values()])
    run.pruner.step()
    cut = torch.cat([~mask.flatten() for mask in run.net.masks.values()])
    assert int(cut.sum()) == int(len(sizes) * 0.4) and float(sizes[cut].max()) <= float(sizes[~cut].min())
    assert not run.net.memory[FOLLOWS].any() and run.model.norm_a.weight.all()


def test_first_gradient_with_nan_is_skipped_and_a_removal_is_made_up_for() -> None:
    run = Run(method()).go(2)
    closure = run.closure()
    closure()
    assert run.model.linear.bias.grad is not None and run.pruner is not None
    run.model.linear.bias.grad[0] = float("nan")
    before = copy.deepcopy(run.model)
    run.pruner.optimizer.step(closure)
    run.pruner.step()
    assert same(run.model, before) and run.pruner.skipped == 1 and run.pruner.density == 1
    run.go(1)
    assert run.pruner.density < 1


def test_a_resumed_run_ends_in_the_same_bits() -> None:
    whole = Run(method()).go(STEPS)
    half = Run(method()).go(5)
    assert half.pruner is not None and whole.pruner is not None
    saved = copy.deepcopy((half.model.state_dict(), half.plain.state_dict(), half.pruner.state_dict()))
    rest = Run(method())
    assert rest.pruner is not None
    rest.model.load_state_dict(saved[0])
    rest.plain.load_state_dict(saved[1])
    rest.pruner.load_state_dict(saved[2])
    rest.taken = 5
    assert same(rest.go(STEPS - 5).model, whole.model)


def test_schedulers_take_it_and_loops_can_tell() -> None:
    run = Run(method())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(run.optimizer, STEPS)
    run.go(1)
    schedule.step()
    assert run.optimizer.two_pass and run.plain.param_groups[0]["lr"] < 0.05


def test_what_is_refused() -> None:
    for wrong, word in (
        ({"unit": "chanel"}, "channel"),
        ({"importance": "l1"}, "importance"),
        ({"rho_min": 3.0}, "invert=True"),
        ({"rho_max": -1.0}, "rho_max"),
        ({"begin": 0.8}, "begin"),
        ({"removals": 0}, "removals"),
        ({"removals": 2.5}, "removals"),
    ):
        with pytest.raises(BadInput, match=word):
            method(**wrong)
    with pytest.raises(BadInput, match="hold no 5 removals"):
        Run(method(removals=5))
    with pytest.raises(Infeasible, match="unit=weight"):
        Run(method(sparsity=0.9))
    run = Run(method())
    closure = run.closure()
    closure()
    before = copy.deepcopy(run.model)
    with pytest.raises(Unsupported, match="watched"):  # another network than the pruner's
        run.optimizer.step(lambda: None)
    assert same(run.model, before)


def test_the_pruner_hands_out_the_wrapper() -> None:
    run = Run(method())
    assert isinstance(run.pruner, Pruner) and run.optimizer.inner is run.plain
