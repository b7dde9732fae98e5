"""adasap: train so that what is going to be cut lies in a flat valley, cut it, and stay flat to the end.

    rho_i = rho_max - (s_i - s_min) / (s_max - s_min) (rho_max - rho_min)          s_i = ||w_i||_2, s range of one layer
    e_i   = rho_i T_i^2 g_i / (||T_i g_i||_2 + 1e-12)                              T_i = |w_i|, i an output channel

    warm-up      the steps before the first removal: w - lr g'(w + e), the LEAST important channels moved furthest
    pruning      `removals` removals at equal distances, in one ranking of all channels by ||w_i||; e as before
    robustness   from the last removal on: one radius, rho_max, for all: ASAM over these layers together

Shapes:  w [out, in, ...]; s, rho [out].       Unit: channel (or weight).       Needs: two passes a step.
Departs: the sheet leaves open whether s is ranged a layer (it is, over the channels kept) and whether a norm is of one
         channel (in the first two phases it is). Norms, biases and layers that are never cut have e = 0: with the
         linear layer of the classes moved too, a digits network lost .14 at a removal, and .01 without (one seed).
         With unit "weight" s = |w| and a radius is of one weight, while the norm stays that of its output channel:
         of one weight alone it would turn the gradient into its sign. Cut rows are zero, not yet sliced away.
Oracle:  s = 1, 2, 3 with radii .01 to 2 gives 2, 1.005, .01; radii 0 give the plain optimiser bit for bit.
Paper:   Adaptive Sharpness-Aware Pruning for Robust Sparse Networks (2023), section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.apply.training import Masks, Net, Training, dense, keep_largest
from secateur.core.method import Card
from secateur.core.units import Unit
from secateur.errors import BadInput, Infeasible, Unsupported, one_of
from secateur.recover.sharpness import (
    Closure,
    Moves,
    TwoPass,
    asam_step,
    channel_asam_step,
    check_radius,
    gradients,
)

if TYPE_CHECKING:
    from secateur.apply.pruner import Pruner

FOLLOWS = (
    "follows"  # in net.memory: bool [layers, batch norms], True where the norm's input is the layer's output
)


@dataclass(frozen=True)
class Group:
    """Channels that go together.

    Attributes:
        members: weight's name and output channel of each.
        importance: what is ranked, lowest first.
        price: what the network saves, in the budget's currency.
    """

    members: tuple[tuple[str, int], ...]
    importance: float
    price: float


@dataclass(frozen=True, kw_only=True)
class AdaSAP(Training):
    """Adaptive sharpness-aware pruning: call `pruner.optimizer.step(closure)`, see recover/sharpness.py.

    Args:
        sparsity: fraction of the layers' weights that go with the channels; never more, at most one channel less.
        unit: channel (with its bias and the batch norm behind it; the last linear layer, whose outputs are the
            classes, keeps all of its own) or weight.
        rho_min, rho_max: radius of the most and of the least important channel.
        importance: of the radii: norm, or taylor (|sum of w g|). Channels are always removed by norm.
        begin, end: of the pruning phase, fractions of the training; the first and last removal.
        removals: how many, each of the same share.
        invert: a control for experiments: the most important channels get rho_max.
    """

    sparsity: float | str = 0.5
    unit: str = "channel"
    rho_min: float = 0.01
    rho_max: float = 2.0
    importance: str = "norm"
    begin: float = 0.11
    end: float = 0.5
    removals: int = 30
    invert: bool = False

    card = Card(
        paper="Adaptive Sharpness-Aware Pruning for Robust Sparse Networks (2023)",
        unit=Unit.CHANNEL,
        when="during",
        criterion="||w_i|| of an output channel",
        purpose="robustness",
        retrains=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for word, known in (("unit", ("channel", "weight")), ("importance", ("norm", "taylor"))):
            one_of(getattr(self, word), known, word)
        if check_radius(self.rho_min, "rho_min") > check_radius(self.rho_max, "rho_max"):
            what = f"from {self.rho_min:g} to {self.rho_max:g}"
            raise BadInput(what, where="rho_min, rho_max", fix="invert=True turns the map round")
        if not 0 <= self.begin <= self.end <= 1:
            what = f"from {self.begin:g} to {self.end:g} of the training"
            raise BadInput(what, where="begin, end", fix="0 <= begin <= end <= 1")
        if type(self.removals) is not int or self.removals < 1:
            raise BadInput(f"{self.removals!r} removals", where="removals", fix="give at least 1")

    # -- when ----------------------------------------------------------------------------------------------------------

    def events(self, net: Net) -> list[int]:
        """The optimiser steps after which something is removed."""
        first, last = max(1, round(self.begin * net.steps)), round(self.end * net.steps)
        if self.removals == 1:
            return [first]
        if last - first < self.removals - 1:
            what = f"{last - first + 1} of {net.steps} steps hold no {self.removals} removals"
            raise BadInput(what, where="removals", fix="lower it, widen begin to end or train longer")
        return [first + k * (last - first) // (self.removals - 1) for k in range(self.removals)]

    def target(self, net: Net) -> float:
        """The sparsity asked for after `net.step` steps."""
        done = sum(step <= net.step for step in self.events(net))
        return float(self.sparsity) * done / self.removals

    # -- what ----------------------------------------------------------------------------------------------------------

    def budget(self, net: Net) -> tuple[list[Group], float]:
        """What may be removed now and at which price, and the price of the whole network.

        The one place that knows the currency (weights) and what goes together (each channel alone): a latency table
        or coupled layers come in here. Channels that are gone already have importance -1.
        """
        groups: list[Group] = []
        for name in self.layers(net):
            weight = net.weights[name]
            norms = weight.flatten(1).norm(dim=1).masked_fill(~channels_kept(net.masks[name]), -1).tolist()
            price = weight[0].numel()
            groups += [Group(((name, i),), norm, price) for i, norm in enumerate(norms)]
        return groups, sum(weight.numel() for weight in net.weights.values())

    def layers(self, net: Net) -> list[str]:
        """The weights that are moved and cut: all, but with unit "channel" not those of the last linear layer."""
        last = _last_linear(net.model) if self.unit == "channel" else ""
        return [name for name in net.weights if name != last]

    def prepare(self, net: Net) -> None:
        self.events(net)
        for name, module in net.model.named_modules():
            if type(module).__name__ == "Conv1D" and f"{name}.weight" in net.weights:
                raise Unsupported("keeps its output channels in columns", where=name, fix="skip this layer")
        if self.unit == "weight":
            return
        groups, whole = self.budget(Net(**{**vars(net), "masks": dense(net)}))
        most = sum(group.price for group in least_important(groups, float("inf"), net.weights)) / whole
        if float(self.sparsity) > most:
            what = f"{self.sparsity:g} of the weights, and with one channel left in each layer {most:.4f} are gone"
            raise Infeasible(what, where="sparsity", fix="lower it, or cut single weights: unit=weight")

    def start(self, net: Net) -> Masks:
        norms = sum(isinstance(module, _BatchNorm) for module in net.model.modules())
        net.memory[FOLLOWS] = torch.zeros(len(net.weights), norms, dtype=torch.bool)
        return dense(net)

    def due(self, net: Net) -> bool:
        return net.step in self.events(net)

    def revise(self, net: Net) -> Masks:
        if self.unit == "weight":
            scores = {n: w.abs().masked_fill(~net.masks[n], -1) for n, w in net.weights.items()}
            return keep_largest(scores, self.target(net), net.notes)
        groups, whole = self.budget(net)
        masks = {name: mask.clone() for name, mask in net.masks.items()}
        for group in least_important(groups, whole * self.target(net) + 1e-9, net.weights):
            for name, channel in group.members:
                masks[name][channel] = False
        for name, gone in companions(net, masks).items():
            net.state[name][gone.to(net.state[name].device)] = 0
        return masks

    # -- how it trains -------------------------------------------------------------------------------------------------

    def wrap(self, pruner: Pruner) -> AdaptiveStep:
        """The optimiser that takes two passes a step; the pruner calls this at the end of `attach`."""
        return AdaptiveStep(self, pruner.net, pruner.optimizer)

    def radii(self, weight: Tensor, gradient: Tensor, kept: Tensor | None = None) -> Tensor:
        """The adaptive radius of each channel [out], or of each weight in the weight's shape; `kept` in that shape."""
        values = weight if self.importance == "norm" else weight * gradient
        if self.unit == "weight":
            return radius_map(values.abs(), self.rho_min, self.rho_max, kept, invert=self.invert)
        rows = values.flatten(1)
        score = rows.norm(dim=1) if self.importance == "norm" else rows.sum(1).abs()
        return radius_map(score, self.rho_min, self.rho_max, kept, invert=self.invert)


class AdaptiveStep(TwoPass):
    """AdaSAP's optimiser: e by the phase of the training; the norms and biases of removed channels stay at zero."""

    def __init__(self, method: AdaSAP, net: Net, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer, model=net.model)
        self.method, self.net = method, net
        own = dict(net.model.named_parameters())
        self._own, self._layers = own, {name: own[name] for name in method.layers(net)}
        self._last = method.events(net)[-1]
        self._watched = method.unit != "channel"
        self._masks: Masks = {}
        self._gone: dict[str, Tensor] = {}
        self._kept: dict[str, Tensor] = {}  # of the layers that have lost something

    def moves(self) -> Moves:
        self._adopt()
        # weights that are cut are 0, and so is their e
        graded = {name: p for name, p in self._layers.items() if p.grad is not None}
        parameters, slopes = list(graded.values()), gradients(list(graded.values()))
        if self.net.step >= self._last:
            steps = asam_step(parameters, slopes, self.method.rho_max)
        else:
            steps = [
                channel_asam_step(p, grad, self.method.radii(p, grad, self._kept.get(name)))
                for (name, p), grad in zip(graded.items(), slopes, strict=True)
            ]
        return list(zip(parameters, steps, strict=True))

    def step(self, closure: Closure | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self._watched or closure is None:
            loss = super().step(closure)
        else:
            loss = super().step(lambda: self._watching(closure))
        self._silence()
        return loss

    def _watching(self, closure: Closure) -> Any:
        with watching(self.net) as ran:
            loss = closure()
        if not ran:
            fix = "compile the model after training, and run this very model in the closure"
            raise Unsupported("no layer's output could be watched", where="adasap", fix=fix)
        self._watched = True
        return loss

    def _adopt(self) -> None:
        """What the masks say of channels, worked out when they change."""
        if self._masks is self.net.masks:
            return
        self._masks, single = self.net.masks, self.method.unit == "weight"
        kept = {name: mask if single else channels_kept(mask) for name, mask in self._masks.items()}
        self._kept = {name: rows for name, rows in kept.items() if not bool(rows.all())}
        gone = {} if single else companions(self.net, self._masks)
        self._gone = {name: rows.to(self.net.state[name].device) for name, rows in gone.items()}

    @torch.no_grad()
    def _silence(self) -> None:
        self._adopt()
        for name, gone in self._gone.items():
            tensor = self.net.state[name]
            tensor[gone] = 0
            own = self._own.get(name)
            for moment in [] if own is None else self.inner.state.get(own, {}).values():
                if isinstance(moment, Tensor) and moment.shape == tensor.shape:
                    moment[gone] = 0


@contextmanager
def watching(net: Net) -> Iterator[list[str]]:
    """Note in `net.memory` which batch norm takes which layer's output, from a forward pass; yields the layers run."""
    modules = dict(net.model.named_modules())
    norms = [module for module in modules.values() if isinstance(module, _BatchNorm)]
    ran: list[str] = []
    outputs: list[tuple[int, Any]] = []  # held, so that no later tensor is mistaken for one of them

    def layer_ran(row: int, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            ran.append(name)
            outputs.append((row, output))

        return hook

    def norm_runs(column: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            for row, output in outputs:
                if args and args[0] is output:
                    net.memory[FOLLOWS][row, column] = True

        return hook

    hooks = [
        modules[name.rpartition(".")[0]].register_forward_hook(layer_ran(row, name))
        for row, name in enumerate(net.weights)
    ]
    hooks += [norm.register_forward_pre_hook(norm_runs(column)) for column, norm in enumerate(norms)]
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()


def companions(net: Net, masks: Masks) -> dict[str, Tensor]:
    """What is zero with a removed channel beside its weights: name in `net.state` -> bool [out], True = removed.

    The layer's bias; gamma, beta and running statistics of every batch norm whose input is the layer's output.
    """
    norms = [name for name, module in net.model.named_modules() if isinstance(module, _BatchNorm)]
    found: dict[str, Tensor] = {}
    for row, (name, mask) in enumerate(masks.items()):
        gone = ~channels_kept(mask).cpu()
        if not bool(gone.any()):
            continue
        names = [f"{name.removesuffix('weight')}bias"]
        for column in net.memory[FOLLOWS][row].nonzero().flatten().tolist():
            prefix = f"{norms[column]}." if norms[column] else ""
            names += [f"{prefix}{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        found |= {n: gone for n in names if n in net.state and net.state[n].shape == gone.shape}
    return found


def channels_kept(mask: Tensor) -> Tensor:
    """bool [out]: output channels that have a weight left, of a mask [out, ...]."""
    return mask.flatten(1).any(1)


def radius_map(
    importance: Tensor, rho_min: float, rho_max: float, kept: Tensor | None = None, *, invert: bool = False
) -> Tensor:
    """rho_max for the least important, rho_min for the most important, linear between.

    Args:
        importance: any shape, finite.
        kept: bool, same shape: what the range is taken over; the rest has radius 0.
        invert: turn the map round.

    Returns:
        radii in the shape of `importance`; all rho_min where nothing is more important than anything else.
    """
    low, high = (importance if kept is None else importance[kept]).aminmax()
    share = ((importance - low) / (high - low)).nan_to_num_(nan=float(not invert))  # 0 / 0: all alike
    share = 1 - share if invert else share
    radii = torch.add((1 - share) * rho_max, share, alpha=rho_min)  # exact at both ends
    return radii if kept is None else radii.masked_fill(~kept, 0)


def least_important(groups: Sequence[Group], allowance: float, weights: dict[str, Tensor]) -> list[Group]:
    """The groups to remove: least important first (ties: first listed) until the next would pass the allowance.

    A group that would leave a layer without a channel is passed over.
    """
    left = {name: len(weight) for name, weight in weights.items()}
    chosen: list[Group] = []
    spent = 0.0
    for group in sorted(groups, key=lambda group: group.importance):
        takes: dict[str, int] = {}
        for name, _ in group.members:
            takes[name] = takes.get(name, 0) + 1
        if any(left[name] <= count for name, count in takes.items()):
            continue
        if spent + group.price > allowance:
            break
        spent += group.price
        chosen.append(group)
        for name, count in takes.items():
            left[name] -= count
    return chosen


def _last_linear(model: nn.Module) -> str:
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return f"{names[-1]}.weight".removeprefix(".") if names else ""
