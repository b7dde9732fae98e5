"""The stability test of late rewinding, on the digits."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from secateur.engine.train import Fit, fit
from secateur.errors import BadInput
from secateur.evaluate.classify import accuracy, to_batch
from secateur.evaluate.stability import stability
from secateur.io.images import load_images
from secateur.training import network

HOW = Fit(epochs=4, batch=50, lr=0.1, weight_decay=0.0)
LEARN, TEST = (load_images("digits", split, limit=400) for split in ("train", "test"))
IMAGES, LABELS = to_batch(LEARN.images), torch.as_tensor(LEARN.labels)
STEPS = 32


def right(model: nn.Module) -> float:
    return accuracy(model, TEST.images, TEST.labels)


def test_the_end_is_stable_and_the_middle_of_two_ends_is_measured() -> None:
    model = network("mlp-32-32", LEARN, 0)
    before = deepcopy(model.state_dict())
    rows = stability(model, IMAGES, LABELS, HOW, [STEPS, 0, 0], right, pairs=2, points=3)
    assert [row["step"] for row in rows] == [0, STEPS]
    whole = deepcopy(model)
    fit(whole, IMAGES, LABELS, HOW)
    assert rows[1] == {
        "step": STEPS, "error": 1 - right(whole), "between": 1 - right(whole), "barrier": pytest.approx(0, abs=1e-9),
        "barriers": pytest.approx([0, 0], abs=1e-9), "stable": True,
    }  # fmt: skip
    assert rows[0]["barrier"] == sum(rows[0]["barriers"]) / 2
    assert rows[0]["barriers"][0] != rows[0]["barriers"][1], "every pair has data orders of its own"
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_barrier_is_that_of_a_line_taken_by_hand() -> None:
    model = network("mlp-32-32", LEARN, 1)
    (row,) = stability(model, IMAGES, LABELS, HOW, [8], right)
    trunk = deepcopy(model)
    optimizer = HOW.make(trunk)
    fit(trunk, IMAGES, LABELS, HOW, optimizer=optimizer, stop=8)
    ends = []
    for seed in (1, 2):
        end = deepcopy(trunk)
        fit(end, IMAGES, LABELS, Fit(**{**HOW.__dict__, "seed": seed}), start=8)
        ends.append(end)
    middle = deepcopy(ends[0])
    with torch.no_grad():
        for p, a, b in zip(middle.parameters(), *(end.parameters() for end in ends), strict=True):
            p.copy_((a + b) / 2)
    errors = [1 - right(end) for end in ends]
    assert row["between"] == pytest.approx(1 - right(middle))
    assert row["barrier"] == pytest.approx(1 - right(middle) - sum(errors) / 2)


def test_parts_of_a_run_are_the_run() -> None:
    whole, parts = (network("mlp-32-32", LEARN, 2) for _ in range(2))
    fit(whole, IMAGES, LABELS, HOW)
    optimizer = HOW.make(parts)
    for start, stop in ((0, 5), (5, 5), (5, 20), (20, None)):
        fit(parts, IMAGES, LABELS, HOW, optimizer=optimizer, start=start, stop=stop)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


def test_batch_norms_are_measured_on_the_line() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.last = nn.BatchNorm1d(64), nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.norm(x.flatten(1)))

    torch.manual_seed(0)
    seen = []

    def look(model: nn.Module) -> float:
        assert isinstance(model, Normed)
        seen.append(model.norm.running_mean.clone())
        return right(model)

    stability(Normed(), IMAGES, LABELS, HOW, [4], look)
    batches = [part.flatten(1) for part in IMAGES.split(HOW.batch)[:16]]
    torch.testing.assert_close(seen[2], torch.stack([b.mean(0) for b in batches]).mean(0))


@pytest.mark.parametrize(
    ("at", "more", "said"),
    [
        ([STEPS + 1], {}, "at: step 33 is not in this training"),
        ([], {}, "at: no step"),
        ([0], {"pairs": 0}, "stability: 0 pairs"),
        ([0], {"points": 0}, "stability: 1 pairs, 0 points"),
    ],
)
def test_refusals(at: list[int], more: dict[str, int], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        stability(network("mlp-8", LEARN, 0), IMAGES, LABELS, HOW, at, right, **more)
