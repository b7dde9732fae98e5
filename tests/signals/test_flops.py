"""Multiply-adds against counts by hand."""

from __future__ import annotations

import torch
from torch import nn

from secateur.signals.flops import layer_flops, training_flops


def test_a_convolution_and_a_linear_layer_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(4 * 16, 5))
    found = layer_flops(model, torch.zeros(7, 3, 8, 8))
    assert found == {"0.weight": 2 * 4 * 3 * 9 * 16, "2.weight": 2 * 64 * 5}
    assert not any(module._forward_hooks for module in model.modules()) and model.training


def test_a_layer_over_tokens_counts_each_token() -> None:
    assert layer_flops(nn.Linear(6, 3), torch.zeros(2, 11, 6)) == {"weight": 2 * 18 * 11}


def test_a_training_costs_three_passes_in_proportion_to_density() -> None:
    # 10 steps at density .5, two of which needed dense gradients
    assert training_flops({"w": 100.0}, 4, {"w": 5.0}, {"w": 1.0}) == 4 * 100 * (3 * 5 + 1)
