"""Multiply-adds of each layer's weight, counted while the model runs once, and what a whole training costs in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.sites.trainable import trainable_weights


def layer_flops(model: nn.Module, sample: Tensor) -> dict[str, float]:
    """FLOPs (2 a multiply-add) of one forward pass, a sample, by weight name; a weight used twice counts twice.

    Args:
        sample: a batch [N, ...] the model takes; the figures are divided by N.
    """
    weights = trainable_weights(model)
    names = {id(weight): name for name, weight in weights.items()}
    found = dict.fromkeys(weights, 0.0)

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        places = output.numel() / output.shape[1 if weight.ndim > 2 else -1]
        found[names[id(weight)]] += 2 * weight.numel() * places / len(sample)

    layers = [m for m in model.modules() if id(getattr(m, "weight", None)) in names]
    hooks = [module.register_forward_hook(count) for module in layers]
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(sample)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return found


def training_flops(
    flops: Mapping[str, float],
    batch: int,
    density_steps: Mapping[str, float],
    dense_steps: Mapping[str, float],
) -> float:
    """FLOPs of a training: forward, gradient of the inputs and of the weights, each in proportion to the density.

    Args:
        flops: of one forward pass of one sample, by weight (`layer_flops`).
        density_steps: the sum over all steps of each weight's density.
        dense_steps: the sum over steps that needed dense gradients of (1 - density): a third of a dense step more.
    """
    return batch * sum(
        each * (3 * density_steps[name] + dense_steps.get(name, 0.0)) for name, each in flops.items()
    )
