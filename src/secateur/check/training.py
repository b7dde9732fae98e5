"""The checks of a method that cuts while a network trains: what holds for every one of them, on a small network."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.apply.pruner import Pruner
from secateur.apply.training import Training
from secateur.errors import SecateurError
from secateur.registry import find

STEPS = 24
# What a run this short needs: events within 24 steps, rounds that divide them, a radius that leaves 24 steps something.
SHORT: dict[str, Any] = {"every": 4, "rounds": 3, "removals": 3, "rho_max": 0.5}


class TrainingProbe:
    """A method under test: how to make it, and runs of it that several checks look at."""

    def __init__(self, method: str | type[Training], settings: dict[str, Any] | None = None) -> None:
        self.cls: type[Training] = find(method) if isinstance(method, str) else method
        known = self.cls.__dataclass_fields__
        short = {key: value for key, value in SHORT.items() if key in known}
        self.settings = {"sparsity": 0.6, **short, **(settings or {})}
        self._whole: dict[str, Run] = {}

    def make(self, **more: Any) -> Training:
        return self.cls(**{**self.settings, **more})

    def whole(self, optimizer: str = "sgd") -> Run:
        """A finished run, made once."""
        if optimizer not in self._whole:
            self._whole[optimizer] = Run(self.make(), optimizer)
            self._whole[optimizer].go(range(STEPS))
        return self._whole[optimizer]


class Run:
    """One network, optimiser and pruner; `masks` after attaching and after every step."""

    def __init__(self, method: Training, optimizer: str = "sgd") -> None:
        self.model = small_network()
        self.optimizer = optimizer_of(optimizer, self.model)
        data = [batch(1000 + i) for i in range(3)]
        self.pruner: Pruner = method.attach(
            self.model, self.optimizer, steps=STEPS, data=data, loss=F.cross_entropy
        )
        self.masks = [self._now()]

    def go(self, steps: range, spoil: int | None = None) -> None:
        """Train; the gradients of step `spoil` are NaN."""
        outer: Any = self.pruner.optimizer
        for step in steps:
            x, y = batch(step)

            def closure(x: Tensor = x, y: Tensor = y, bad: bool = step == spoil) -> Tensor:
                for p in self.model.parameters():
                    p.grad = None
                outer.zero_grad()
                loss = F.cross_entropy(self.model(x), y) * (float("nan") if bad else 1.0)
                loss.backward()
                return loss

            closure()
            if getattr(outer, "two_pass", False):
                outer.step(closure)
            else:
                outer.step()
            self.pruner.step()
            self.masks.append(self._now())

    def counts(self) -> list[int]:
        return [sum(int(m.sum()) for m in masks.values()) for masks in self.masks]

    def grown(self) -> bool:
        """True if a weight ever came back."""
        return any(bool((b[n] & ~a[n]).any()) for a, b in pairwise(self.masks) for n in a)

    def _now(self) -> dict[str, Tensor]:
        return {name: mask.clone() for name, mask in self.pruner.net.masks.items()}


def declares_its_axes(probe: TrainingProbe) -> None:
    """The card stands on the known axes, and names a paper and a criterion."""
    card = probe.cls.card
    assert card.when in ("before", "during", "after"), card.when
    assert card.start in ("dense", "sparse") and card.topology in ("static", "dynamic", "conditional")
    assert card.purpose in ("inference", "training", "robustness") and card.paper and card.criterion


def settings_through_json(probe: TrainingProbe) -> None:
    """Settings come back equal from JSON, and a sparsity outside [0, 1) is refused."""
    method = probe.make()
    again = probe.cls(**json.loads(json.dumps(method.settings())))
    assert again.settings() == method.settings(), "settings differ after JSON"
    for wrong in (1.0, -0.1, "half"):
        with _refused(f"sparsity {wrong!r}"):
            probe.make(sparsity=wrong)


def zeros_are_zero(probe: TrainingProbe) -> None:
    """After every step cut weights and their moments are zero, and no layer is empty (SGD with momentum, AdamW)."""
    for kind in ("sgd", "adamw"):
        run = Run(probe.make(), kind)
        for step in range(STEPS):
            run.go(range(step, step + 1))
            own = dict(run.model.named_parameters())
            for name, weight in run.pruner.net.weights.items():
                mask = run.pruner.net.masks[name]
                assert not bool(weight[~mask].any()), f"{name} has cut weights that are not zero ({kind})"
                assert bool(mask.any()), f"{name} is empty"
                for value in run.optimizer.state.get(own[name], {}).values():
                    if isinstance(value, Tensor) and value.shape == weight.shape:
                        assert not bool(value[~mask].any()), f"{name} keeps moments of cut weights ({kind})"


def as_sparse_as_asked(probe: TrainingProbe) -> None:
    """The run ends at the sparsity asked for: to a weight a layer, or to a channel where channels are cut."""
    run = probe.whole()
    masks = run.masks[-1]
    if bool(getattr(run.pruner.method, "dense_classifier", False)):
        masks = dict(list(masks.items())[:-1])
    size = sum(m.numel() for m in masks.values())
    cut = size - sum(int(m.sum()) for m in masks.values())
    channels = str(getattr(run.pruner.method, "unit", "")) == "channel"
    room = max(m[0].numel() for m in masks.values()) if channels else len(masks)
    assert abs(cut - 0.6 * size) <= room, f"{cut} of {size} are cut, 0.6 was asked for"


def mask_moves_as_declared(probe: TrainingProbe) -> None:
    """Before training: one mask. Static: nothing comes back. Dynamic: something does. Sparse start: never denser."""
    run, card = probe.whole(), probe.cls.card
    if card.when == "before":
        assert all(torch.equal(masks[n], run.masks[0][n]) for masks in run.masks for n in masks)
    if card.start == "sparse":
        assert max(run.counts()) <= run.counts()[0], "denser than it started"
    if card.topology == "dynamic":
        assert run.grown(), "nothing ever came back"
    elif run.pruner.method.trains == "weights":
        assert not run.grown(), "a cut weight came back"


def report_is_consistent(probe: TrainingProbe) -> None:
    """density <= explored fraction and peak density <= 1, and the report is JSON."""
    report = probe.whole().pruner.report()
    json.dumps(report)
    assert report["density"] <= report["explored_fraction"] + 1e-9 <= 1 + 1e-8, report
    assert report["density"] <= report["peak_density"] + 1e-9 <= 1 + 1e-8, report
    assert report["steps"] == STEPS and report["skipped"] == 0


def resumes_bitwise(probe: TrainingProbe) -> None:
    """Stopped after 11 steps and gone on, from saved state, the run ends with the same bytes; so does a second run."""
    whole, first = probe.whole(), Run(probe.make())
    first.go(range(11))
    saved = copy.deepcopy((first.model.state_dict(), first.optimizer.state_dict(), first.pruner.state_dict()))
    second = Run(probe.make())
    second.model.load_state_dict(saved[0])
    second.optimizer.load_state_dict(saved[1])
    second.pruner.load_state_dict(saved[2])
    for run in (first, second):
        run.go(range(11, STEPS))
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, run.model.state_dict()[name]), f"{name} differs"
        assert all(torch.equal(m, run.masks[-1][n]) for n, m in whole.masks[-1].items())
    assert whole.pruner.report() == second.pruner.report()


def bad_gradient_costs_one_step(probe: TrainingProbe) -> None:
    """A step whose gradients are NaN changes no weight, is counted, and the run ends finite."""
    run = Run(probe.make())
    run.go(range(7))
    before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
    run.go(range(7, 8), spoil=7)
    assert all(torch.equal(before[n], p) for n, p in run.model.named_parameters()), "a weight changed"
    run.go(range(8, STEPS))
    assert run.pruner.skipped == 1, f"{run.pruner.skipped} steps counted"
    assert all(bool(torch.isfinite(p).all()) for p in run.model.parameters()), "weights are not finite"


def failed_attach_changes_nothing(probe: TrainingProbe) -> None:
    """An attach that is refused leaves weights, requires_grad, the optimiser's parameters and hooks as they were."""
    model = small_network()
    optimizer = optimizer_of("sgd", model)
    before, needs = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    with _refused("a glob that matches nothing"):
        probe.make(only="nothing.*").attach(model, optimizer, steps=STEPS)
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items()), "weights changed"
    assert [p.requires_grad for p in model.parameters()] == needs, "requires_grad changed"
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == held
    assert not optimizer._optimizer_step_pre_hooks, "a hook stayed"


def state_of_another_method_is_refused(probe: TrainingProbe) -> None:
    """`load_state_dict` refuses another method's state and another sparsity's, and changes nothing."""
    run, other = Run(probe.make()), Run(probe.make(sparsity=0.5))
    state = run.pruner.state_dict()
    for wrong in ({**state, "method": "another"}, other.pruner.state_dict()):
        with _refused("a state of another run"):
            run.pruner.load_state_dict(wrong)
    assert run.pruner.net.step == 0


def detaches_clean(probe: TrainingProbe) -> None:
    """After `detach` no hook stays, the optimiser has its parameters again, and the zeros are still there."""
    run = Run(probe.make())
    run.go(range(STEPS))
    run.pruner.detach()
    assert not run.optimizer._optimizer_step_pre_hooks, "a hook stayed"
    held = [id(p) for group in run.optimizer.param_groups for p in group["params"]]
    assert held == [id(p) for p in run.model.parameters()], "the optimiser lost parameters"
    for name, weight in run.pruner.net.weights.items():
        assert not bool(weight[~run.masks[-1][name]].any()), f"{name} lost its zeros"


CHECKS: tuple[Callable[[TrainingProbe], None], ...] = (
    declares_its_axes,
    settings_through_json,
    zeros_are_zero,
    as_sparse_as_asked,
    mask_moves_as_declared,
    report_is_consistent,
    resumes_bitwise,
    bad_gradient_costs_one_step,
    failed_attach_changes_nothing,
    state_of_another_method_is_refused,
    detaches_clean,
)


@contextmanager
def _refused(what: str) -> Iterator[None]:
    try:
        yield
    except SecateurError:
        return
    raise AssertionError(f"{what} was accepted")


def small_network() -> nn.Module:
    """A convolution with batch norm and two linear layers; equal weights every time, the global state kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*parts, nn.Linear(96, 20), nn.ReLU(), nn.Linear(20, 5))


def optimizer_of(kind: str, model: nn.Module) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    return torch.optim.AdamW(model.parameters(), 1e-2, weight_decay=0.1)


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Images [16, 1, 6, 6] and labels [16], by the step."""
    g = torch.Generator().manual_seed(step)
    return torch.randn(16, 1, 6, 6, generator=g), torch.randint(0, 5, (16,), generator=g)
