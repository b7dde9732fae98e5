"""Sharpness-aware training: every step looks at the gradient where the loss is worst nearby, and steps from here.

    optimizer = ASAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5, model=model)
    loss(model(x), y).backward()                        the gradient g at w
    optimizer.step(lambda: again(x, y))                 w + e, forward, backward, w back, the inner step with g(w + e)

    SAM    e = rho g / (||g|| + 1e-12)                  ||.||_2 over all parameters together
    ASAM   e = rho T^2 g / (||T g|| + 1e-12)            T = |w| + eta where the name holds "weight", else 1

Weights are put back bit for bit before the inner step, so weight decay and momentum act on them. Running statistics
of batch norm see the first pass only. Cost: two forward and backward passes a step.
Departs: ASAM's 1e-12 is 1e-16 in its authors' code. Mixed precision: bfloat16; torch's GradScaler takes no closure.
Oracle:  w = [1, -2], g = [3, 1], rho = 1: ASAM's e = [3, 4] / sqrt(13).
Papers:  Sharpness-Aware Minimization for Efficiently Improving Generalization (2021), eq. 2 and algorithm 1;
         ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning (2021), eq. 6 and algorithm 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from secateur.core.scores import all_finite
from secateur.errors import BadInput

Closure = Callable[[], Any]
Moves = list[tuple[Tensor, Tensor]]  # a parameter and its e
_TINY = 1e-12


class TwoPass(torch.optim.Optimizer, ABC):
    """An optimiser around another one; a subclass says `moves`. Everything but `step` is the inner optimiser's own.

    A learning-rate schedule may be given this one or the inner one. A step pre-hook runs just before the inner step,
    when the weights are back and the gradients are those of the second pass.

    Attributes:
        inner: the wrapped optimiser.
        skipped: steps left out because the first gradient held NaN or Inf.
        two_pass: True: a training loop must give `step` a closure.
    """

    two_pass = True

    def __init__(self, optimizer: torch.optim.Optimizer, *, model: nn.Module) -> None:
        # Optimizer's own __init__ is not run: it would make a second set of groups, state and hooks.
        if not isinstance(optimizer, torch.optim.Optimizer) or getattr(optimizer, "two_pass", False):
            what = f"{type(optimizer).__name__} cannot be wrapped"
            raise BadInput(what, where="optimizer", fix="give a plain torch optimiser")
        self.inner, self.model, self.skipped = optimizer, model, 0
        self._norms = [module for module in model.modules() if isinstance(module, _NormBase)]

    @abstractmethod
    def moves(self) -> Moves:
        """Each parameter that is moved and its e, from the gradients of the first pass."""

    def step(self, closure: Closure | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step. `loss.backward()` has been called.

        Args:
            closure: runs forward and backward on the same batch and returns the loss; it may zero the gradients itself.

        Returns:
            the loss of the second pass; None where the first gradient held NaN or Inf and nothing was done.
        """
        if closure is None:
            fix = "give a function that runs forward and backward again and returns the loss"
            raise BadInput("step() was called without a closure", where=type(self).__name__, fix=fix)
        if not all_finite([p.grad for p in self._parameters() if p.grad is not None]):
            self.skipped += 1
            self._forget()
            return None
        with torch.no_grad():
            moves = self.moves()
        with _moved(moves), _statistics_held(self._norms), torch.enable_grad():
            self._forget()
            loss = closure()
        self.inner.step()
        return loss

    def _parameters(self) -> Iterator[Tensor]:
        return (p for group in self.inner.param_groups for p in group["params"])

    def _forget(self) -> None:
        for parameter in self._parameters():
            parameter.grad = None

    def _graded(self) -> list[Tensor]:
        return [p for p in self._parameters() if p.grad is not None]

    # -- the inner optimiser's -----------------------------------------------------------------------------------------

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.param_groups

    @property
    def state(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.state

    @property
    def defaults(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.inner.defaults

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.inner.add_param_group(param_group)

    def register_step_pre_hook(self, hook: Any) -> Any:
        return self.inner.register_step_pre_hook(hook)

    def register_step_post_hook(self, hook: Any) -> Any:
        return self.inner.register_step_post_hook(hook)

    def __repr__(self) -> str:
        return f"{type(self).__name__} around {self.inner!r}"


class SAM(TwoPass):
    """Sharpness-aware minimisation. On a sparse network it moves cut weights too, where ASAM leaves zeros alone.

    Args:
        optimizer: any torch optimiser; it takes the step.
        rho: length of e over all parameters, >= 0; 0.05 (CIFAR-10) to 0.1 (CIFAR-100) in the paper.
        model: whose batch-norm statistics are held in the second pass.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, rho: float = 0.05, *, model: nn.Module) -> None:
        super().__init__(optimizer, model=model)
        self.rho = check_radius(rho)

    def moves(self) -> Moves:
        graded = self._graded()
        return list(zip(graded, sam_step(graded, gradients(graded), self.rho), strict=True))


class ASAM(TwoPass):
    """SAM in a ball that scales with the weights, so that rescaling a network does not change its sharpness.

    Args:
        optimizer: any torch optimiser; it takes the step.
        rho: length of T^-1 e over all parameters, >= 0; 0.5 to 2. Not comparable with SAM's.
        eta: added to |w|, >= 0, as in the authors' code only where the parameter's name in `model` holds "weight"
            (a norm's gamma is one of them); every other parameter has T = 1.
        model: gives the names; its batch-norm statistics are held in the second pass.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, rho: float = 0.5, eta: float = 0.0, *, model: nn.Module
    ) -> None:
        super().__init__(optimizer, model=model)
        self.rho, self.eta = check_radius(rho), check_radius(eta, "eta")
        self._scaled = {id(p) for name, p in model.named_parameters() if "weight" in name}

    def moves(self) -> Moves:
        graded = self._graded()
        scaled = [id(p) in self._scaled for p in graded]
        steps = asam_step(graded, gradients(graded), self.rho, self.eta, scaled)
        return list(zip(graded, steps, strict=True))


def check_radius(value: float, where: str = "rho") -> float:
    """Refuse what is no finite number >= 0."""
    right = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not right or value < 0:
        raise BadInput(f"{value!r} is no radius", where=where, fix="give a number >= 0")
    return float(value)


def sam_step(weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float) -> list[Tensor]:
    """e = rho g / (||g|| + 1e-12), one norm over all tensors. Any shapes; nothing is changed."""
    del weights  # SAM's ball does not depend on them; the argument keeps the three functions alike
    scale = rho / (_norm(gradients) + _TINY) if gradients else 0.0
    return [g * scale for g in gradients]


def asam_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    rho: float,
    eta: float = 0.0,
    scaled: Sequence[bool] | None = None,
) -> list[Tensor]:
    """e = rho T^2 g / (||T g|| + 1e-12), one norm over all tensors; T = |w| + eta where `scaled` (default: everywhere),
    else 1. Any shapes; nothing is changed."""
    flags = [True] * len(weights) if scaled is None else scaled
    t = [w.abs() + eta if flag else torch.ones_like(w) for w, flag in zip(weights, flags, strict=True)]
    tg = [scale * g for scale, g in zip(t, gradients, strict=True)]
    length = rho / (_norm(tg) + _TINY) if tg else 0.0
    return [scale * x * length for scale, x in zip(t, tg, strict=True)]


def channel_asam_step(weight: Tensor, gradient: Tensor, rho_per_channel: Tensor) -> Tensor:
    """e_i = rho_i T_i^2 g_i / (||T_i g_i|| + 1e-12), T_i = |w_i|: ASAM with a radius and a norm a channel.

    Args:
        weight, gradient: [out, ...].
        rho_per_channel: [out], in the weight's shape a radius for each weight; the norm stays the channel's.

    Returns:
        e in the weight's shape, 0 where the weight or the gradient is 0.
    """
    t = weight.abs().flatten(1)
    tg = t * gradient.flatten(1)
    rho = rho_per_channel.reshape(len(t), -1)
    scale = rho / (tg.norm(dim=1, keepdim=True) + _TINY)
    return (t * tg * scale).view_as(weight)


def gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of parameters that all have one."""
    return [p.grad for p in parameters if p.grad is not None]


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    norms = torch._foreach_norm(list(tensors))  # pyright: ignore[reportPrivateImportUsage]
    return torch.stack([value.float() for value in norms]).norm()


@contextmanager
def _moved(moves: Moves) -> Iterator[None]:
    """Add every e; take back by copy, since (w + e) - e is not w."""
    saved = [p.detach().clone() for p, _ in moves]
    with torch.no_grad():
        for p, e in moves:
            p.add_(e)
    try:
        yield
    finally:
        with torch.no_grad():
            for (p, _), value in zip(moves, saved, strict=True):
                p.copy_(value)


@contextmanager
def _statistics_held(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Put back what a pass does to running means, variances and batch counts.

    By copy: a momentum of 0 would still count the batch, and let NaN through.
    """
    held = [(b, b.clone()) for norm in norms for b in norm.buffers(False)]
    try:
        yield
    finally:
        for buffer, value in held:
            buffer.copy_(value)
