"""Which weights training may cut, and under which names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secateur.errors import NoMatch
from secateur.sites.trainable import bare, trainable_weights


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.first, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 7)
        self.b.weight = self.a.weight
        self.head.weight = self.table.weight  # tied to an embedding: stays dense


def test_layers_only_each_weight_once_in_the_models_order() -> None:
    model = Net()
    found = trainable_weights(model)
    assert list(found) == ["first.weight", "a.weight"]
    assert found["a.weight"] is model.b.weight
    assert list(trainable_weights(nn.Linear(2, 2))) == ["weight"]


def test_only_and_skip_take_globs_of_modules_or_parameters() -> None:
    assert list(trainable_weights(Net(), only=["fir*"])) == ["first.weight"]
    assert list(trainable_weights(Net(), skip=["first.weight"])) == ["a.weight"]
    with pytest.raises(NoMatch, match=r"'frist' matches no layer"):
        trainable_weights(Net(), skip=["frist"])
    with pytest.raises(NoMatch, match="no linear or convolution layer"):
        trainable_weights(Net(), only=["a"], skip=["a"])


def test_names_are_those_of_the_bare_model() -> None:
    model = Net()
    assert bare(torch.compile(model)) is model  # type: ignore[arg-type]
    assert bare(model) is model
