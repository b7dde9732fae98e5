"""softmax_problem: sums over chunks of a mapped file against sums over samples."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from secateur.errors import BadInput
from secateur.recover import softmax_problem
from secateur.recover.softmax_problem import Problem


def oracle(h: Tensor, y: Tensor, u: Tensor, scale: float, weight: Tensor) -> tuple[float, Tensor]:
    """Loss and gradient, sample by sample; the last column is the intercept's."""
    loss, slope = 0.0, torch.zeros_like(weight)
    for row, label in zip(h.double(), y.tolist(), strict=True):
        z = torch.cat([scale * (u @ row), torch.ones(1, dtype=torch.float64)])
        p = torch.softmax(weight @ z, 0)
        loss -= math.log(float(p[label]))
        p[label] -= 1
        slope += torch.outer(p, z)
    return loss / len(h), slope / len(h)


@pytest.fixture
def small() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    u, weight = torch.randn(7, 5, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    return torch.randn(300, 5), torch.arange(300) % 3, u, weight


@pytest.mark.parametrize("kind", ["tensor", "float16 file", "float32 sums"])
def test_loss_and_slope_are_the_sums_over_samples(small, kind: str, tmp_path: Path, monkeypatch) -> None:
    h, y, u, weight = small
    monkeypatch.setattr(softmax_problem, "LOGITS", 300)  # chunks of 100 images
    given, dtype = h, torch.float32 if kind == "float32 sums" else torch.float64
    if kind == "float16 file":
        monkeypatch.setattr(softmax_problem, "HELD", 0)
        np.save(tmp_path / "h.npy", h.half().numpy())
        given, h = np.load(tmp_path / "h.npy", mmap_mode="r"), h.half()
    problem = Problem(given, y, u, scale=3.0, intercept=True, dtype=dtype)
    assert isinstance(problem.h, np.memmap) == (kind == "float16 file")
    loss, slope = problem.slope(weight)
    wanted = oracle(h, y, u, 3.0, weight)
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    assert loss == pytest.approx(wanted[0], rel=near["rtol"])
    assert problem.loss(weight) == pytest.approx(wanted[0], rel=near["rtol"])
    torch.testing.assert_close(slope, wanted[1], **near)
    z = problem.features(torch.tensor([4, 250]))
    torch.testing.assert_close(z[:-1].double(), 3.0 * u @ h[[4, 250]].double().t(), **near)
    assert z[-1].tolist() == [1.0, 1.0]
    p = problem.chances(weight, problem.rows(torch.tensor([4, 250])))
    torch.testing.assert_close(p.double(), torch.softmax(weight @ z.double(), 0).t(), **near)


def test_without_texts_the_coordinates_are_the_features(small) -> None:
    h, y, _, weight = small
    loss, slope = Problem(h, y, scale=2.0).slope(weight[:, :5])
    wide = torch.cat([weight[:, :5], torch.zeros(3, 1, dtype=torch.float64)], 1)
    wanted = oracle(h, y, torch.eye(5, dtype=torch.float64), 2.0, wide)
    assert loss == pytest.approx(wanted[0])
    torch.testing.assert_close(slope, wanted[1][:, :-1])


def test_the_intercept_starts_at_the_shares_of_the_classes() -> None:
    h = torch.randn(10, 2, generator=torch.Generator().manual_seed(0))
    problem = Problem(h, torch.tensor([0] * 8 + [1, 2]), intercept=True)
    assert problem.penalised.tolist() == [1, 1, 0]
    assert problem.null()[:, -1].exp().tolist() == pytest.approx([0.8, 0.1, 0.1])
    assert problem.slope(problem.null())[1][:, -1].abs().max() < 1e-12  # where the loss is flat
    with pytest.raises(BadInput, match="class 1"):
        Problem(h, torch.tensor([0] * 8 + [2, 2]), intercept=True).null()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"h": torch.ones(4)}, "embeddings"),
        ({"h": torch.ones(0, 3)}, "embeddings"),
        ({"h": torch.tensor([[1.0, 2, 3], [math.nan, 1, 1]])}, "1 NaN"),
        ({"y": [0]}, "embeddings"),
        ({"y": [0, 5], "classes": 3}, "labels"),
        ({"y": [-1, 0]}, "labels"),
        ({"u": torch.ones(2, 4)}, "texts"),
        ({"u": torch.full((2, 3), math.inf)}, "texts"),
    ],
)
def test_mistakes_are_one_line(change: dict, line: str) -> None:
    given = {"h": torch.ones(2, 3), "y": [0, 1], "u": None, "classes": None} | change
    with pytest.raises(BadInput, match=line):
        Problem(given["h"], given["y"], given["u"], given["classes"])
