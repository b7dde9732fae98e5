"""l1_softmax: the optimality conditions by plain arithmetic, along paths, and where data are awkward."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.errors import BadInput
from secateur.recover import class_metric, softmax_problem
from secateur.recover.l1_softmax import Point, fit_path, walk_path

G = torch.Generator()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=G.manual_seed(seed), dtype=torch.float64)


def towers(classes: int, images: int, each: int, width: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows in a narrow band, as CLIP's are: (embeddings, labels, texts)."""
    base, own = drawn(width) * 2, drawn(classes, each, width, seed=1)
    labels = torch.arange(classes).repeat_interleave(images)
    mixed = (torch.rand(len(labels), each, 1, generator=G.manual_seed(2)) * own[labels]).mean(1)
    h = F.normalize(base + 1.5 * mixed + 0.5 * drawn(len(labels), width, seed=3), dim=1)
    return h, labels, F.normalize(base + own.flatten(0, 1), dim=1)


def residual(point: Point, h: Tensor, y: Tensor, u: Tensor | None, scale: float = 1.0) -> float:
    """The largest breach of the conditions over lam, from z whole."""
    z = scale * h.double() @ (torch.eye(h.shape[1]).double() if u is None else u.double().t())
    logits = z @ point.weight.t() + (0 if point.bias is None else point.bias)
    off = torch.softmax(logits, 1) - F.one_hot(y, len(point.weight))
    slope = off.t() @ z / len(h)
    on = point.weight != 0
    worst = float((slope.abs() - point.lam)[~on].clamp(min=0).max()) if not bool(on.all()) else 0.0
    if bool(on.any()):
        worst = max(worst, float((slope + point.lam * point.weight.sign())[on].abs().max()))
    if point.bias is not None:
        worst = max(worst, float(off.mean(0).abs().max()))
    loss = float(F.cross_entropy(logits, y))
    assert point.loss == pytest.approx(loss, rel=1e-6, abs=1e-9)
    assert point.objective == pytest.approx(loss + point.lam * float(point.weight.abs().sum()), rel=1e-6)
    return worst / point.lam


def test_a_path_in_a_narrow_band_is_exact_and_takes_few_steps() -> None:
    h, y, u = towers(classes=12, images=8, each=5)
    path = fit_path(h, y, u, scale=100.0, count=15, tol=1e-6)
    assert max(residual(point, h, y, u, 100.0) for point in path) < 1.1e-6
    assert all(a.objective > b.objective for a, b in pairwise(path))
    assert sum(point.steps for point in path) < 600  # plain FISTA takes more than 10 times as many


def test_the_first_lam_is_where_the_first_entry_enters() -> None:
    h, y, u = towers(classes=6, images=6, each=4)
    top = fit_path(h, y, u, count=1, factor=0.5)[0].lam / 0.5
    above, below = fit_path(h, y, u, lams=[1.001 * top, 0.99 * top])
    assert above.used == 0 and above.steps == 0 and below.used > 0


x3 = drawn(60, 8)
y3 = torch.arange(60) % 3
apart = 3 * F.one_hot(y3, 3).double() + 0.1 * drawn(60, 3)
few = F.normalize(drawn(20, 32) + 3, dim=1)
AWKWARD = {
    "twins": (torch.cat([x3, x3, x3[:, :2]], 1), y3, None, {}),
    "constant columns": (torch.cat([x3, torch.zeros(60, 2), torch.ones(60, 1)], 1), y3, None, {}),
    "the same, with intercept": (torch.cat([x3, torch.ones(60, 1)], 1), y3, None, {"intercept": True}),
    "far from 0": (x3 + 50, y3, None, {"intercept": True}),
    "large": (1e4 * x3, y3, None, {}),
    "separable, to a lam close to 0": (apart, y3, None, {"factor": 0.5}),
    "separable, straight to it": (apart, y3, None, {"lams": [1e-6], "intercept": True}),
    "up and down": (x3, y3, None, {"lams": [1e-4, 0.1, 1e-4, 10.0, 1e-3]}),
    "one image a class": (
        few,
        torch.arange(20),
        F.normalize(drawn(60, 32, seed=5) + 3, dim=1),
        {"scale": 100.0},
    ),
    "one of each but one": (x3, torch.tensor([0] * 58 + [1, 2]), None, {"intercept": True}),
    "a class without image": (x3, y3, None, {"classes": 5}),
    "more features than images": (drawn(30, 200), torch.arange(30) % 5, None, {}),
    "all images the same": (drawn(1, 8).expand(30, 8), torch.arange(30) % 3, None, {"lams": [0.1, 1e-3]}),
    "one class": (x3, torch.zeros(60).long(), None, {"lams": [0.1]}),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_data_are_solved_all_the_same(name: str) -> None:
    h, y, u, more = AWKWARD[name]
    settings = {"count": 12, **more}
    for point in walk_path(h, y, u, **settings):
        assert point.residual <= 1e-4
        assert residual(point, h, y, u, settings.get("scale", 1.0)) <= 1.1e-4
        assert point.steps < 500


def test_nearly_equal_cosines_end_and_say_how_far_they_came() -> None:
    """What a CLIP with random weights gives: less varies than rounding lets through. No lam may take for ever."""
    base = drawn(1, 64)
    h = F.normalize(base + 1e-4 * drawn(80, 64, seed=1), dim=1)
    u = F.normalize(base + 1e-4 * drawn(90, 64, seed=2), dim=1)
    for point in walk_path(h, torch.arange(10).repeat_interleave(8), u, scale=100.0, count=3, limit=60):
        assert point.steps <= 60 and point.objective < 2.31 and point.residual < np.inf


def test_the_limit_holds_and_the_residual_tells() -> None:
    h, y, u = towers(classes=6, images=6, each=4)
    point = fit_path(h, y, u, scale=100.0, lams=[1e-3], limit=3, tol=1e-8)[0]
    assert point.steps == 3 and point.residual > 1e-8
    assert residual(point, h, y, u, 100.0) == pytest.approx(point.residual, rel=1e-6)


def test_a_mapped_file_in_chunks_gives_the_same_path(tmp_path: Path, monkeypatch) -> None:
    h, y, u = towers(classes=8, images=40, each=4)
    np.save(tmp_path / "h.npy", h.half().numpy())
    mapped = np.load(tmp_path / "h.npy", mmap_mode="r")
    whole = fit_path(h.half().double(), y, u, scale=50.0, count=6, tol=1e-6)
    for name, value in (("LOGITS", 8 * 64), ("HELD", 0)):
        monkeypatch.setattr(softmax_problem, name, value)
    monkeypatch.setattr(class_metric, "SAMPLE", 100)  # the metric from a third of the images
    for a, b in zip(whole, walk_path(mapped, y, u, scale=50.0, count=6, tol=1e-6), strict=True):
        assert b.residual <= 1e-6 and b.objective == pytest.approx(a.objective, rel=1e-9)
    single = fit_path(mapped, y, u, scale=50.0, count=6, tol=1e-3, dtype=torch.float32)
    assert max(residual(point, h.half(), y, u, 50.0) for point in single) < 1.1e-3


def test_a_path_is_walked_one_solution_at_a_time() -> None:
    h, y, u = towers(classes=4, images=6, each=3)
    walk = walk_path(h, y, u, count=3)
    first = next(walk)
    assert first.objective == pytest.approx(fit_path(h, y, u, count=1)[0].objective)
    assert len(list(walk)) == 2


@pytest.mark.parametrize("intercept", [False, True])
def test_l2_ends_where_the_gradient_is_0(intercept: bool) -> None:
    point = fit_path(x3, y3, None, lams=[0.02], penalty="l2", intercept=intercept, tol=1e-6)[0]
    logits = x3 @ point.weight.t() + (0 if point.bias is None else point.bias)
    slope = (torch.softmax(logits, 1) - F.one_hot(y3, 3)).t() @ x3 / 60 + 0.02 * point.weight
    assert float(slope.abs().max()) <= 0.02 * 1.1e-6
    wanted = float(F.cross_entropy(logits, y3)) + 0.01 * float(point.weight.square().sum())
    assert point.objective == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("settings", "line"),
    [({"penalty": "l0"}, "penalty"), ({"lams": [0.1, 0.0]}, "lam"), ({"lams": [np.nan]}, "lam")],
)
def test_settings_out_of_range_are_refused(settings: dict, line: str) -> None:
    with pytest.raises(BadInput, match=line):
        fit_path(x3, y3, **settings)


def test_features_that_tell_nothing_are_refused() -> None:
    with pytest.raises(BadInput, match="no feature tells the classes apart"):
        fit_path(torch.zeros(6, 2), torch.arange(6) % 2)
