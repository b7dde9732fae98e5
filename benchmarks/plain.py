"""A plain rendering of the papers' two-pass loop: the yardstick that speed, masks and quality are compared with.

Written from the sheets wanda (steps 2, 3 and 5) and l-obs (algorithm B) with torch and transformers alone, one
sequence at a time, as the papers' own code does it: hooks on every Linear of a block, one signal a Linear, a full sort,
three Cholesky steps, a Python loop over columns. It imports nothing of secateur and is not tuned.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Stop(Exception):
    """The first block was reached."""


class RowNorms:
    """Wanda's signal and cut of one Linear."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer, self.n = layer, 0
        self.s = torch.zeros(layer.in_features)

    def add(self, x: Tensor) -> None:
        x = x.reshape(-1, x.shape[-1]).t().float()
        self.s *= self.n / (self.n + 1)
        self.n += 1
        self.s += torch.norm(x, p=2, dim=1) ** 2 / self.n

    def cut(self, sparsity: float, kept: tuple[int, int] | None) -> None:
        weight = self.layer.weight.data
        score = weight.abs() * self.s.sqrt()
        mask = torch.zeros_like(score, dtype=torch.bool)
        if kept:
            for i in range(0, score.shape[1], kept[1]):
                lowest = torch.topk(score[:, i : i + kept[1]], kept[1] - kept[0], dim=1, largest=False)[1]
                mask.scatter_(1, i + lowest, True)
        else:
            order = torch.sort(score, dim=-1, stable=True)[1]
            mask.scatter_(1, order[:, : int(score.shape[1] * sparsity)], True)
        weight[mask] = 0


class Hessian:
    """SparseGPT's signal and solver of one Linear."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer, self.n = layer, 0
        self.h = torch.zeros(layer.in_features, layer.in_features)

    def add(self, x: Tensor) -> None:
        x = x.reshape(-1, x.shape[-1]).t().float()
        self.h *= self.n / (self.n + 1)
        self.n += 1
        x = (2 / self.n) ** 0.5 * x
        self.h += x @ x.t()

    def cut(
        self, sparsity: float, kept: tuple[int, int] | None, size: int = 128, damping: float = 0.01
    ) -> None:
        weight, h = self.layer.weight.data.clone(), self.h
        dead = h.diagonal() == 0
        h[dead, dead] = 1
        weight[:, dead] = 0
        h.diagonal().add_(damping * h.diagonal().mean())
        factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
        for a in range(0, weight.shape[1], size):
            b = min(a + size, weight.shape[1])
            done, errors = _columns(weight[:, a:b].clone(), factor[a:b, a:b], sparsity, kept)
            weight[:, a:b] = done
            weight[:, b:] -= errors @ factor[a:b, b:]
        self.layer.weight.data.copy_(weight)


def _columns(
    w: Tensor, factor: Tensor, sparsity: float, kept: tuple[int, int] | None
) -> tuple[Tensor, Tensor]:
    """Algorithm B step 4 on one block of columns; returns the new weights and the errors."""
    done, errors = torch.zeros_like(w), torch.zeros_like(w)
    mask = torch.zeros_like(w, dtype=torch.bool)
    if not kept:
        score = w**2 / factor.diagonal() ** 2
        mask = score <= torch.sort(score.flatten())[0][int(score.numel() * sparsity)]
    for i in range(w.shape[1]):
        if kept and i % kept[1] == 0:
            score = w[:, i : i + kept[1]] ** 2 / factor.diagonal()[i : i + kept[1]] ** 2
            mask.scatter_(1, i + torch.topk(score, kept[1] - kept[0], dim=1, largest=False)[1], True)
        q = w[:, i].clone()
        q[mask[:, i]] = 0
        error = (w[:, i] - q) / factor[i, i]
        w[:, i:] -= error[:, None] @ factor[i, i:][None]
        done[:, i], errors[:, i] = q, error
    return done, errors


@torch.no_grad()
def two_pass(
    model: Any, ids: Tensor, method: str, sparsity: float, kept: tuple[int, int] | None = None
) -> None:
    """Cut a Llama-like model in place.

    Args:
        ids: int64 [sequences, length].   method: wanda or sparsegpt.   kept: (2, 4) for 2 kept of 4.
    """
    kind = {"wanda": RowNorms, "sparsegpt": Hessian}[method]
    hidden, options = _capture(model, ids)
    for block in model.model.layers:
        signals = {layer: kind(layer) for layer in block.modules() if isinstance(layer, nn.Linear)}
        hooks = [layer.register_forward_hook(_hook(signals[layer])) for layer in signals]
        for j in range(len(ids)):
            _run(block, hidden[j : j + 1], options)
        for hook in hooks:
            hook.remove()
        for signal in signals.values():
            signal.cut(sparsity, kept)
        hidden = torch.cat([_run(block, hidden[j : j + 1], options) for j in range(len(ids))])


@torch.no_grad()
def magnitude(model: Any, sparsity: float) -> None:
    """Wanda sheet, step 5: one inclusive threshold a Linear."""
    for layer in model.model.layers.modules():
        if isinstance(layer, nn.Linear):
            weight = layer.weight.data
            threshold = torch.sort(weight.abs().flatten())[0][int(weight.numel() * sparsity)]
            weight[weight.abs() <= threshold] = 0


def _capture(model: Any, ids: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """What reaches the first block, [sequences, length, width], and the keyword arguments it comes with."""
    seen: list[tuple[Tensor, dict[str, Any]]] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args[0], kwargs))
        raise _Stop

    handle = model.model.layers[0].register_forward_pre_hook(stop, with_kwargs=True)
    for row in ids:
        try:
            model(row[None], use_cache=False)
        except _Stop:
            continue
    handle.remove()
    return torch.cat([x for x, _ in seen]), seen[0][1]


def _hook(signal: Any) -> Any:
    return lambda module, args, output: signal.add(args[0].data)


def _run(block: nn.Module, x: Tensor, options: dict[str, Any]) -> Tensor:
    output = block(x, **options)
    return output[0] if isinstance(output, tuple) else output
