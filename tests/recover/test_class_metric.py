"""class_metric: the step is the minimum of its model, and the metric bounds the curvature of the loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.recover import class_metric
from secateur.recover.class_metric import Metric, Sample, measure, step
from secateur.recover.softmax_problem import Problem


def problem(seed: int, band: float = 0.0, classes: int = 4) -> Problem:
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(60, 6, generator=g, dtype=torch.float64)
    u = torch.randn(10, 6, generator=g, dtype=torch.float64)
    h, u = torch.cat([h, torch.ones(60, 1)], 1), torch.cat([u, torch.full((10, 1), band)], 1)
    return Problem(h, torch.arange(60) % classes, u)


def built(p: Problem, seed: int, size: int = 7) -> tuple[Metric, Tensor]:
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(p.classes, p.width, generator=g, dtype=torch.float64) / 3
    places = torch.stack([torch.randperm(p.width, generator=g)[:size] for _ in range(p.classes)])
    return measure(p, Sample(p), weight, places), weight


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 30.0, 1000.0]), st.floats(0.001, 1.0), st.booleans())
def test_a_step_is_the_minimum_of_its_model(seed: int, band: float, share: float, free: bool) -> None:
    """Also where all features move nearly as one, which is what the cosines of CLIP do."""
    p = problem(seed, band)
    metric, weight = built(p, seed)
    metric.stretch = 1.5
    v, g = (x.gather(1, metric.places) for x in (weight, p.slope(weight)[1]))
    v = torch.where(v.abs() < 0.2, 0.0, v)
    bars = torch.full_like(v, share * float(g.abs().max()))
    if free:
        bars[:, 2] = 0
    slack = 1e-6 * float(g.abs().max())
    x = step(metric, v, g, bars, slack)
    slope = g + metric.times(x - v)
    assert float((slope.abs() - bars)[x == 0].clamp(min=0).sum()) <= 50 * slack
    on = x != 0
    if bool(on.any()):
        assert float((slope + bars * x.sign())[on].abs().max()) <= 50 * slack


@pytest.mark.parametrize("seed", range(5))
def test_the_curvature_of_the_loss_is_at_most_twice_the_metric(seed: int) -> None:
    p = problem(seed, band=3.0)
    metric, weight = built(p, seed, size=p.width)
    g = torch.Generator().manual_seed(seed)
    for _ in range(20):
        d = torch.randn(p.classes, p.width, generator=g, dtype=torch.float64) * 1e-5
        d = d + 1e-4 * torch.randn(1, p.width, generator=g)  # mostly what classes have in common
        bent = float((d * (p.slope(weight + d)[1] - p.slope(weight)[1])).sum())
        own = d.gather(1, metric.places)
        assert bent <= 2 * metric.inner(own, own) * (1 + 1e-3)


def test_what_all_logits_have_in_common_costs_nothing() -> None:
    """A class's first feature is 1 for all images here: moving all of them together must be free."""
    p = Problem(torch.cat([torch.ones(60, 1), problem(0).h], 1), torch.arange(60) % 4)
    places = torch.arange(3).expand(4, 3)
    metric = measure(p, Sample(p), p.null(), places)
    together = torch.zeros(4, 3, dtype=torch.float64)
    together[:, 0] = 1
    alone = together.clone()
    alone[1:] = 0
    assert abs(metric.inner(together, together)) < 1e-4 * metric.inner(alone, alone)


def test_curve_and_common_are_the_sums_they_are_said_to_be() -> None:
    p = problem(3)
    metric, weight = built(p, 3)
    z, chances = p.features(slice(0, 60)), p.chances(weight, p.rows(slice(0, 60)))
    off = (chances - torch.nn.functional.one_hot(p.y, 4)).abs()
    q = torch.maximum(chances * (1 - chances), class_metric.FLOOR * off)
    c = 2
    own = z[metric.places[c]]
    wanted = sum(q[i, c] * torch.outer(own[:, i], own[:, i]) for i in range(60)) / 60
    torch.testing.assert_close(metric.curve[c], wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(metric.common[c], own @ q[:, c] / 60)
    assert metric.total == pytest.approx(float(q.sum()) / 60)


def test_a_sample_has_evenly_many_of_each_class(monkeypatch) -> None:
    monkeypatch.setattr(class_metric, "SAMPLE", 20)
    sample = Sample(problem(0))
    assert torch.bincount(sample.y).tolist() == [5, 5, 5, 5]
    assert sample.z.shape == (10, 20)


def test_twins_and_constant_features_are_no_trouble() -> None:
    base = problem(1)
    u = torch.cat([base.texts, base.texts[:3], torch.zeros(2, 7)]) if base.texts is not None else None
    p = Problem(base.h, base.y, u)
    metric, weight = built(p, 1, size=p.width)
    v, g = (x.gather(1, metric.places) for x in (weight, p.slope(weight)[1]))
    x = step(metric, v, g, torch.full_like(v, 0.01), 1e-9)
    assert bool(torch.isfinite(x).all())
    model = float((g * (x - v)).sum()) + metric.inner(x - v, x - v) / 2 + 0.01 * float(x.abs().sum())
    assert model < 0.01 * float(v.abs().sum())
