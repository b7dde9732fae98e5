"""ridge_probe: scikit-learn's Ridge, and its two ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secateur.apply.heads import Shots
from secateur.errors import BadInput
from secateur.registry import make
from tests.methods.features.towers import towers


def oracle(shots: Shots, classes: int, alpha: float, x: np.ndarray) -> np.ndarray:
    """What scikit-learn predicts [n, C] of the one-hot labels."""
    linear = pytest.importorskip("sklearn.linear_model")
    y = np.eye(classes)[shots.labels.numpy()]
    return linear.Ridge(alpha=alpha * len(shots)).fit(shots.embeddings.double().numpy(), y).predict(x)


@pytest.mark.parametrize("alpha", [1e-4, 0.1])
def test_it_is_ridge_regression(alpha: float) -> None:
    world = towers()
    shots, x = world.shots(4, seed=0), world.shots(2, seed=1).embeddings
    found = make("ridge_probe", alpha=alpha).fit(world.texts, shots).logits(x) / world.texts.scale
    wanted = oracle(shots, 10, alpha, x.double().numpy())
    torch.testing.assert_close(found.double(), torch.from_numpy(wanted), rtol=1e-3, atol=1e-5)


def test_a_strong_penalty_leaves_the_shares_of_the_classes() -> None:
    world = towers()
    head = make("ridge_probe", alpha=1e9).fit(world.texts, world.shots(4, seed=0))
    x = world.shots(2, seed=1).embeddings
    torch.testing.assert_close(head.logits(x), torch.full((20, 10), 2.0), rtol=1e-4, atol=1e-4)


def test_alpha_is_the_best_on_held_out_shots() -> None:
    world = towers()
    shots, held = world.shots(4, seed=0, noise=2.0), world.shots(20, seed=1, noise=2.0)
    head = make("ridge_probe").fit(world.texts, shots, held)

    def right(alpha: float) -> int:
        logits = make("ridge_probe", alpha=alpha).fit(world.texts, shots).logits(held.embeddings)
        return int((logits.argmax(1) == held.labels).sum())

    chosen = dict(head.facts)["alpha"]
    assert right(chosen) == max(right(10.0**power) for power in range(-6, 3))
    with pytest.raises(BadInput, match="nothing is held out"):
        make("ridge_probe").fit(world.texts, shots)
    with pytest.raises(BadInput, match="alpha"):
        make("ridge_probe", alpha=0.0)
