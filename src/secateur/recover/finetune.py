"""Train a cut network on, with its zeros as they are: any optimiser, any pattern, N:M included.

pruner = keep_zeros(model, optimizer)      in a loop of your own: `pruner.step()` after `optimizer.step()`
finetune(model, batches, steps=200)        a short loop, for a language model or any model and loss
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn

from secateur.apply.pruner import Pruner
from secateur.apply.training import Masks, Net, Training
from secateur.core.method import Card
from secateur.core.units import Unit
from secateur.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Keep(Training):
    """The zeros that are there stay; nothing else is cut. `sparsity` is what the network has."""

    sparsity: float | str = 0.0

    card = Card(paper="none", unit=Unit.WEIGHT, when="after", criterion="zero now", retrains=True)

    def start(self, net: Net) -> Masks:
        return {name: weight != 0 for name, weight in net.weights.items()}


def keep_zeros(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, only: Iterable[str] = (), skip: Iterable[str] = ()
) -> Pruner:
    """Hold every zero of the layers' weights from now on; call the pruner's `step()` after each `optimizer.step()`.

    Raises:
        BadInput: a layer's weight is not among the optimiser's parameters (leave it out with `skip`).
    """
    return Keep(only=tuple(only), skip=tuple(skip)).attach(model, optimizer, steps=1 << 62)


def finetune(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    steps: int,
    lr: float = 1e-5,
    weight_decay: float = 0.0,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    tell: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """AdamW over all parameters, lr falling linearly to 0, zeros kept; the model is changed in place.

    Args:
        batches: of whatever `loss` takes; gone through again when they end. By default dicts of a language model's
            inputs, whose labels are its input_ids.
        loss: of (model, batch).
        tell: called with (step, loss) after each step.

    Returns:
        the loss of every step.

    Raises:
        BadInput: no batch, or a loss that is not finite (the step is named).
    """
    held = list(batches)
    if not held:
        raise BadInput("no batch to train on", where="finetune", fix="give at least one")
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=weight_decay)
    pruner, measure, training = keep_zeros(model, optimizer), loss or _causal_loss, model.training
    model.train()
    found: list[float] = []
    try:
        for step, batch in enumerate(islice(cycle(held), steps)):
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - step / steps)
            value = measure(model, batch)
            if not bool(value.isfinite()):
                raise BadInput(
                    f"the loss of step {step + 1} is {float(value.detach())}",
                    where="finetune",
                    fix="lower lr",
                )
            value.backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
            found.append(float(value.detach()))
            tell(step + 1, found[-1])
    finally:
        pruner.detach()
        model.train(training)
    return found


def _causal_loss(model: nn.Module, batch: Any) -> Tensor:
    return model(**batch, labels=batch["input_ids"]).loss
