"""linear_probe: the optimum by plain arithmetic, and the search of CLIP's authors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secateur.apply.heads import Shots
from secateur.errors import BadInput
from secateur.methods.features.linear_probe import GRID, search
from secateur.registry import make
from tests.methods.features.towers import towers

pytest.importorskip("sklearn")


def oracle(shots: Shots, classes: int, strength: float) -> float:
    """The least objective, by plain gradient descent in float64 with a safe step."""
    h = torch.cat([shots.embeddings.double(), torch.ones(len(shots), 1, dtype=torch.float64)], 1)
    w = torch.zeros(classes, h.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=2000, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def objective() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(h @ w.t(), shots.labels, reduction="sum")
        loss = loss + w[:, :-1].square().sum() / (2 * strength)
        loss.backward()
        return loss

    optimizer.step(objective)
    return float(objective().detach())


@pytest.mark.parametrize("classes", [2, 10])
def test_it_reaches_the_least_objective(classes: int) -> None:
    world = towers(classes=classes)
    shots = world.shots(6, seed=0)
    head = make("linear_probe", C=1.0).fit(world.texts, shots)
    found = torch.nn.functional.cross_entropy(
        head.logits(shots.embeddings).double(), shots.labels, reduction="sum"
    )
    # with two classes scikit-learn penalises their difference, which is C / 2 on the pair
    strength = 1.0 if classes > 2 else 0.5
    found = found + (head.scale * head.weight.double()).square().sum() / (2 * strength)
    assert float(found) == pytest.approx(oracle(shots, classes, strength), rel=1e-4)


@pytest.mark.parametrize("peak", [0, 3, 41, 57, 95])
def test_the_search_finds_the_top_of_one_hill(peak: int) -> None:
    asked: list[float] = []

    def hill(value: float) -> float:
        asked.append(value)
        return -abs(int(np.abs(GRID - value).argmin()) - peak)

    assert search(hill) == GRID[peak]
    assert len(asked) <= 20, "96 values, a fifth of them asked"


def test_mistakes_are_one_line() -> None:
    world = towers()
    shots = world.shots(4, seed=0)
    some = Shots(shots.embeddings[4:], shots.labels[4:])
    with pytest.raises(BadInput, match="class 0: no image"):
        make("linear_probe", C=1.0).fit(world.texts, some)
    with pytest.raises(BadInput, match="nothing is held out"):
        make("linear_probe").fit(world.texts, shots)
    with pytest.raises(BadInput, match="C"):
        make("linear_probe", C=0.0)
