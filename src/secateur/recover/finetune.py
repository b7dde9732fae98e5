"""Train a cut network on, with its zeros as they are: any optimiser, any pattern, N:M included.

pruner = keep_zeros(model, optimizer)      in a loop of your own: `pruner.step()` after `optimizer.step()`
finetune(model, batches, steps=200)        a short loop, for a language model or any model and loss
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn

from secateur.apply.pruner import Pruner
from secateur.apply.training import Masks, Net, Training
from secateur.core.method import Card
from secateur.core.units import Unit
from secateur.errors import BadInput, Unsupported
from secateur.recover.lora import Adapted


@dataclass(frozen=True, kw_only=True)
class Keep(Training):
    """The zeros that are there stay; nothing else is cut. `sparsity` is what the network has."""

    sparsity: float | str = 0.0

    card = Card(paper="none", unit=Unit.WEIGHT, when="after", criterion="zero now", retrains=True)

    def prepare(self, net: Net) -> None:
        """Refuse networks whose zeros a mask on linear and convolution layers would not hold, or would hold wrongly."""
        for name in net.weights:
            if ".lora_" in name:  # lora_B begins as zeros, and has to grow
                fix = "put them there with secateur.recover.lora, which keeps the zeros itself"
                raise Unsupported("is an adapter", where=name, fix=fix)
        for place, module in net.model.named_modules() if not self.only else ():
            fused = module.named_parameters(recurse=False) if hasattr(module, "num_experts") else ()
            for name, weight in fused:
                if weight.ndim == 3 and not bool(weight.all()):
                    fix = "name the layers to train with `only`, and freeze the experts"
                    raise Unsupported(
                        "holds zeros, and no mask holds fused experts", where=f"{place}.{name}", fix=fix
                    )

    def start(self, net: Net) -> Masks:
        return {name: weight != 0 for name, weight in net.weights.items()}


def keep_zeros(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, only: Iterable[str] = (), skip: Iterable[str] = ()
) -> Pruner:
    """Hold every zero of the layers' weights from now on; call the pruner's `step()` after each `optimizer.step()`.

    Args:
        only, skip: globs of layer names whose zeros are, or are not, held.

    Raises:
        BadInput: a layer's weight is not among the optimiser's parameters (leave it out with `skip`).
        Unsupported: zeros in fused expert tensors, or adapters of peft in the model.
    """
    return Keep(only=tuple(only), skip=tuple(skip)).attach(model, optimizer, steps=1 << 62)


def finetune(
    model: nn.Module | Adapted,
    batches: Iterable[Any],
    *,
    steps: int,
    lr: float = 1e-5,
    weight_decay: float = 0.0,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    tell: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """AdamW, lr falling linearly to 0, zeros kept; the model is changed in place.

    Train in float32: steps of 1e-5 are lost in the rounding of bfloat16 weights. (Adapters are float32 always.)

    Args:
        model: a network, all of whose parameters are trained; or what `lora` gave, whose adapters are.
        batches: of whatever `loss` takes; gone through again when they end. By default dicts of a language model's
            inputs; where they hold no labels, those are the input_ids.
        loss: of (model, batch).
        tell: called with (step, loss) after each step.

    Returns:
        the loss of every step.

    Raises:
        BadInput: no batch, a setting out of range, or a loss or gradient that is not finite (the step is named).
        Unsupported: as `keep_zeros`.
    """
    held = _checked(batches, steps, lr, weight_decay)
    net = model.model if isinstance(model, Adapted) else model
    optimizer = torch.optim.AdamW(list(model.parameters()), lr, weight_decay=weight_decay)
    pruner = None if isinstance(model, Adapted) else keep_zeros(model, optimizer)
    measure, training = loss or _causal_loss, net.training
    net.train()
    found: list[float] = []
    try:
        for step, batch in enumerate(islice(cycle(held), steps)):
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - step / steps)
            value = measure(net, batch)
            _expect_finite(value, "loss", step)
            value.backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            _expect_finite(nn.utils.get_total_norm(gradients, math.inf), "largest gradient", step)
            optimizer.step()
            if pruner is not None:
                pruner.step()
            optimizer.zero_grad()
            found.append(float(value.detach()))
            tell(step + 1, found[-1])
    finally:
        if pruner is not None:
            pruner.detach()
        optimizer.zero_grad()
        net.train(training)
    return found


def _checked(batches: Iterable[Any], steps: int, lr: float, weight_decay: float) -> list[Any]:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise BadInput(f"{steps!r} steps", where="finetune", fix="give a whole number, 1 or more")
    if not 0 < lr < math.inf or not 0 <= weight_decay < math.inf:
        what = f"lr {lr}, weight_decay {weight_decay}"
        raise BadInput(what, where="finetune", fix="lr > 0, weight_decay >= 0")
    held = list(batches)
    if not held:
        raise BadInput("no batch to train on", where="finetune", fix="give at least one")
    return held


def _expect_finite(value: Tensor, what: str, step: int) -> None:
    number = float(value.detach())
    if not math.isfinite(number):
        raise BadInput(f"the {what} of step {step + 1} is {number}", where="finetune", fix="lower lr")


def _causal_loss(model: nn.Module, batch: Any) -> Tensor:
    if not isinstance(batch, Mapping) or "input_ids" not in batch:
        fix = "give dicts with input_ids, or a loss of your own"
        raise BadInput(f"a batch is a {type(batch).__name__}", where="finetune", fix=fix)
    device = next(model.parameters()).device
    moved = {name: value.to(device) for name, value in batch.items()}
    return model(**{"labels": moved["input_ids"], **moved}).loss
