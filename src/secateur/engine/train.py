"""The reference training loop: plain, seeded, resumable bit for bit, with or without a pruner.

Data order and learning rate follow the pruner's `position`, so a method that rewinds sees the same batches again. What
a run needs to go on is in one dict of tensors and plain values, given to `save` after every epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.apply.pruner import Pruner
from secateur.core.method import check_kinds
from secateur.engine.events import Event, Listener, silent
from secateur.errors import BadInput, one_of

RATES = ("cosine", "step", "constant")
OPTIMIZERS = ("sgd", "adam", "adamw")
Augment = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Fit:
    """How a network is trained.

    Args:
        epochs: of the whole run, all rounds of a method together.
        batch: samples a step; a last, smaller one is left out.
        optimizer: sgd, adam or adamw.   lr: the highest learning rate.   momentum, nesterov: of sgd.
        weight_decay: of all parameters.
        schedule: cosine to 0, step (a tenth at 1/2 and at 3/4) or constant, over each training of `cycle` epochs.
        warmup: fraction of a training in which lr rises from 0.
        cycle: epochs of one training, for methods that train several times; None: all epochs are one.
        clip: largest norm of all gradients together; 0 leaves them.
        seed: of the data order.
    """

    epochs: int = 30
    batch: int = 128
    optimizer: str = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup: float = 0.0
    cycle: float | None = None
    clip: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_kinds(self)
        for word, known in (("schedule", RATES), ("optimizer", OPTIMIZERS)):
            one_of(getattr(self, word), known, word)
        for word in ("epochs", "batch"):
            if getattr(self, word) < 1:
                raise BadInput(f"{getattr(self, word)}", where=word, fix="use 1 or more")
        if not self.lr > 0 or min(self.weight_decay, self.clip) < 0 or not 0 <= self.warmup < 1:
            what = f"lr {self.lr}, weight_decay {self.weight_decay}, clip {self.clip}, warmup {self.warmup}"
            raise BadInput(what, where="training", fix="lr > 0, weight_decay and clip >= 0, 0 <= warmup < 1")

    def per_epoch(self, samples: int) -> int:
        """Optimiser steps an epoch."""
        if samples < self.batch:
            raise BadInput(f"{samples} samples make no batch of {self.batch}", where="batch", fix="lower it")
        return samples // self.batch

    def rate(self, position: int, per_epoch: int) -> float:
        """The learning rate of the step at `position`; past a training's end, where a method fine-tunes, lr / 100."""
        p = min(1.0, position / ((self.cycle or self.epochs) * per_epoch))
        if p == 1 and self.schedule != "constant":
            return self.lr * 0.01
        if p < self.warmup:
            return self.lr * (position + 1) / (self.warmup * (self.cycle or self.epochs) * per_epoch + 1)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * p))
        return self.lr * (0.1 ** ((p >= 0.5) + (p >= 0.75)) if self.schedule == "step" else 1.0)

    def make(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimiser over all parameters of the model."""
        parameters, decay = list(model.parameters()), self.weight_decay
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, self.lr, self.momentum, weight_decay=decay, nesterov=self.nesterov
            )
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        # torch's other AdamW takes roots of the second moments, five times slower where a mask holds them at zero
        return kind(parameters, self.lr, weight_decay=decay, fused=True)


def fit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    how: Fit,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    pruner: Pruner | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    augment: Augment | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
    state: dict[str, Any] | None = None,
    start: int = 0,
    stop: int | None = None,
    listen: Listener = silent,
) -> list[dict[str, float]]:
    """Train `model` in place.

    Args:
        images: float [N, C, H, W] in [0, 1].   labels: int64 [N].   loss: of (logits, labels).
        optimizer: what the pruner was attached to; by default `how.make(model)`.
        augment: (images of a batch, step) -> images; draws from the step, so that a resumed run sees the same.
        evaluate: accuracy of the model, taken after every epoch.
        save: called with everything a resumed run needs, after every epoch.   state: what it was called with last.
        start, stop: take only these steps of the run, start included, stop not; a `state` says where it starts itself.

    Returns:
        one row an epoch: epoch, loss (mean of its steps), accuracy, density, lr.

    Raises:
        BadInput: the loss is not finite for a whole epoch.
    """
    per_epoch = how.per_epoch(len(images))
    inner = optimizer or how.make(model)
    outer = pruner.optimizer if pruner is not None else inner
    step, history = (start, []) if state is None else _restore(state, model, inner, pruner)
    losses, device = list[float](), next(model.parameters()).device
    model.train()
    while step < (how.epochs * per_epoch if stop is None else stop):
        position = pruner.position if pruner is not None else step
        rate = how.rate(position, per_epoch)
        for group in inner.param_groups:
            group["lr"] = rate
        chosen = batch_of(len(images), how.batch, position, how.seed)
        x, y = images[chosen], labels[chosen]
        x = augment(x, step) if augment is not None else x
        losses.append(_step(model, outer, x.to(device), y.to(device), loss, how.clip))
        if pruner is not None:
            pruner.step()
        step += 1
        if step % per_epoch == 0:
            history.append(_row(step // per_epoch, losses, rate, model, pruner, evaluate))
            losses = []
            model.train()
            if save is not None:
                save(_state(step, history, model, inner, pruner))
            listen(Event("train", step // per_epoch, how.epochs, _words(history[-1])))
    model.eval()
    return history


def batch_of(samples: int, batch: int, position: int, seed: int) -> Tensor:
    """Indices [batch] of the step at `position`: each epoch goes through all samples in an order of its own."""
    epoch, part = divmod(position, samples // batch)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return order[part * batch : (part + 1) * batch]


def _step(
    model: nn.Module, optimizer: Any, x: Tensor, y: Tensor, loss: Callable[..., Tensor], clip: float
) -> float:
    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        return value

    value = closure()
    if getattr(optimizer, "two_pass", False):
        optimizer.step(closure)
    else:
        optimizer.step()
    for parameter in model.parameters():
        parameter.grad = None  # a pruner's frozen weights are in no optimiser's zero_grad
    return float(value.detach())


def _row(
    epoch: int,
    losses: list[float],
    rate: float,
    model: nn.Module,
    pruner: Pruner | None,
    evaluate: Callable[[nn.Module], float] | None,
) -> dict[str, float]:
    finite = [value for value in losses if math.isfinite(value)]
    if not finite:
        raise BadInput(f"the loss is not finite in epoch {epoch}", where="training", fix="lower lr")
    row = {"epoch": float(epoch), "loss": sum(finite) / len(finite), "lr": rate}
    if evaluate is not None:
        row["accuracy"] = evaluate(model)
    if pruner is not None:
        row["density"] = pruner.density
    return row


def _words(row: dict[str, float]) -> str:
    return f"loss {row['loss']:.3f}" + (f", {row['accuracy']:.2%}" if "accuracy" in row else "")


def _state(
    step: int, history: list[dict[str, float]], model: nn.Module, inner: Any, pruner: Pruner | None
) -> dict[str, Any]:
    return {
        "step": step,
        "history": [dict(row) for row in history],
        "model": dict(model.state_dict()),
        "optimizer": inner.state_dict(),
        "pruner": pruner.state_dict() if pruner is not None else None,
    }


def _restore(
    state: dict[str, Any], model: nn.Module, inner: Any, pruner: Pruner | None
) -> tuple[int, list[dict[str, float]]]:
    if (state["pruner"] is None) != (pruner is None):
        raise BadInput("one of the two runs has a method, the other has none", where="resume")
    if pruner is not None:  # checks first: a state of another method changes nothing
        pruner.check_state(state["pruner"])
    model.load_state_dict(state["model"])
    inner.load_state_dict(state["optimizer"])
    if pruner is not None:
        pruner.load_state_dict(state["pruner"])
    return int(state["step"]), [dict(row) for row in state["history"]]
