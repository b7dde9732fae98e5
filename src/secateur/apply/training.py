"""What a method that cuts while training is: a few pure decisions. apply/pruner.py does the rest.

    pruner = GMP(sparsity=0.9).attach(model, optimizer, steps=10_000)
    for images, labels in loader:
        loss(model(images), labels).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()

A method sees the network as a `Net`: weights, this step's gradients, masks, the clock. It answers with masks.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from secateur.core.budget import parse_fraction
from secateur.core.method import Card, check_kinds
from secateur.core.select import check_sparsity, cut_count, keep_top
from secateur.core.units import Site
from secateur.errors import BadInput

if TYPE_CHECKING:
    from secateur.apply.pruner import Pruner

Masks = dict[str, Tensor]
Loss = Callable[[Any, Any], Tensor]


@dataclass
class Net:
    """A network in training, as a method sees it. Names are parameter names, in the model's order.

    Attributes:
        model: the bare model.
        weights: the live weights that may be cut, [out, in, ...]; a method may write into them (rewinding does).
        state: every parameter and buffer by name, live.
        masks: bool, True = kept, in the shape of the weights.
        gradients: of this step, dense (also where weights are cut), for a method with `rewires`, when it is due.
        step: optimiser steps done.   steps: how many the training has.
        memory: tensors of the method's own; saved and brought back with the masks.
        data, loss: a few batches (input, target) and the loss, for criteria taken before training.
        restarted: bool, by name: weights that start anew at 0, moments too, although they were kept before; `revise`
            sets it.
        notes: lines for the report.
    """

    model: nn.Module
    weights: dict[str, Tensor]
    state: dict[str, Tensor]
    masks: Masks
    steps: int
    seed: int = 0
    step: int = 0
    gradients: dict[str, Tensor] = field(default_factory=dict)
    memory: dict[str, Tensor] = field(default_factory=dict)
    data: Sequence[tuple[Any, Any]] = ()
    loss: Loss | None = None
    restarted: Masks = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rewound_to: int | None = None

    @property
    def sites(self) -> list[Site]:
        return [Site(name, tuple(weight.shape)) for name, weight in self.weights.items()]

    def generator(self) -> torch.Generator:
        """Random numbers that depend on the seed and the step alone, so that a resumed run draws the same."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.step) % (1 << 63))

    def rewind(self, step: int = 0) -> None:
        """Start the training's clock again at `step`, with a fresh optimiser (`Pruner.position` goes back)."""
        self.rewound_to = step


@dataclass(frozen=True, kw_only=True)
class Training(ABC):
    """A method that cuts a network while (or just before) it trains.

    Args:
        sparsity: fraction of the layers' weights to cut in the end, in [0, 1); "90%" works.
        only, skip: globs of layer names that may, or may not, be cut.
        seed: of everything random.
    """

    sparsity: float | str = 0.9
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    seed: int = 0

    card: ClassVar[Card]
    rewires: ClassVar[bool] = False  # reads dense gradients when due
    trains: ClassVar[str] = "weights"  # or "scores": the weights stay, a score a weight is trained
    claims: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_kinds(self)
        sparsity = parse_fraction(self.sparsity) if isinstance(self.sparsity, str) else self.sparsity
        object.__setattr__(self, "sparsity", check_sparsity(sparsity))
        for name in ("only", "skip"):
            globs = getattr(self, name)
            globs = (globs,) if isinstance(globs, str) else globs
            if not isinstance(globs, (list, tuple)) or not all(isinstance(glob, str) for glob in globs):
                raise BadInput(
                    f"{globs!r} are no layer names", where=name, fix='give names or globs: ["conv1"]'
                )
            object.__setattr__(self, name, tuple(globs))

    @property
    def density(self) -> float:
        return 1 - float(self.sparsity)

    def prepare(self, net: Net) -> None:
        """Check the settings against this network and training, before anything changes."""
        return

    @abstractmethod
    def start(self, net: Net) -> Masks:
        """The masks before the first step."""

    def due(self, net: Net) -> bool:
        """True if `revise` is to be called after the step that is being taken now (`net.step` counts it)."""
        return False

    def revise(self, net: Net) -> Masks:
        """New masks, after an optimiser step; called when `due`."""
        return net.masks

    def effective(self, name: str, net: Net) -> Tensor:
        """For a method that trains scores: the weight the network computes with."""
        return net.memory[f"weight/{name}"] * net.masks[name]

    def attach(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        steps: int,
        data: Iterable[tuple[Any, Any]] = (),
        loss: Loss | None = None,
    ) -> Pruner:
        """Cut `model` from now on, as `optimizer` trains it.

        Args:
            model: any module; DistributedDataParallel and torch.compile may wrap it.
            optimizer: holds the model's parameters.
            steps: optimiser steps of the whole training (all rounds together, where a method has rounds).
            data, loss: a few batches (input, target) and the loss, for methods that look at gradients before training.

        Raises:
            BadInput, NoMatch, Unsupported: one line each; the model is as it was.
        """
        from secateur.apply.pruner import Pruner

        return Pruner(self, model, optimizer, steps=steps, data=data, loss=loss)

    def settings(self) -> dict[str, Any]:
        """The fields as JSON values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def dense(net: Net) -> Masks:
    """All ones."""
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in net.weights.items()}


def keep_largest(
    scores: Mapping[str, Tensor], sparsity: Mapping[str, float] | float, notes: list[str] | None = None
) -> Masks:
    """Per layer, or over all layers together, keep the highest scores: exact counts, lowest index cut first.

    Args:
        scores: finite, by name.
        sparsity: of each layer by name, or one number for one ranking over all of them.
        notes: told the names of layers that would have become empty; they keep their one best weight.
    """
    masks: Masks
    if isinstance(sparsity, Mapping):
        masks = {n: _keep(s, cut_count(s.numel(), sparsity[n])).view_as(s) for n, s in scores.items()}
    else:
        together = torch.cat([s.detach().flatten().float() for s in scores.values()])
        kept = _keep(together, cut_count(len(together), sparsity))
        parts = kept.split([s.numel() for s in scores.values()])
        masks = {n: part.view_as(s) for (n, s), part in zip(scores.items(), parts, strict=True)}
    for name, mask in masks.items():
        if not bool(mask.any()):
            mask.view(-1)[int(scores[name].flatten().argmax())] = True
            if notes is not None:
                notes.append(f"{name}: would have lost every weight, keeps its largest")
    return masks


def _keep(score: Tensor, cut: int) -> Tensor:
    return keep_top(score.detach().reshape(1, -1), cut).reshape(-1)
