"""L-OBS against its sheet: one cut costs exactly theta^2 / G_qq, the optimum is the optimum, the bound holds."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.core.method import Cut
from secateur.core.units import Site
from secateur.engine.calibrate import Calibration
from secateur.engine.run import Options, compress
from secateur.methods.weights.l_obs import LOBS, bound, invert, least_squares, moments, surgeon
from secateur.signals.hessian import InputHessian
from tests.oracles import floor_count, inputs, measured, slow_l_obs, weights


def oracle(
    method: LOBS, weight: Tensor, x: Tensor, samples: int, bias: Tensor | None, sparsity: float
) -> tuple[Tensor, Tensor]:
    """For the battery: single cuts, one after the other."""
    return slow_l_obs(weight, x, bias, method.pattern, sparsity, method.damping)


def cut(weight: Tensor, x: Tensor, bias: Tensor | None = None, **settings: Any) -> Cut:
    method = LOBS(**settings)
    assert isinstance(method.sparsity, float)
    return method.cut(
        weight, measured(InputHessian, x, 3), Site("w", tuple(weight.shape)), method.sparsity, bias
    )


def energy(change: Tensor, x: Tensor) -> float:
    """(1/n) ||change X^T||_F^2."""
    return float((change.double() @ x.double().t()).square().sum() / len(x))


def test_one_cut_costs_exactly_theta_squared_over_g() -> None:
    weight, x = weights(6, 10).double(), inputs(80, 10).double()
    h = x.t() @ x / len(x)
    inverse = torch.linalg.inv(h)
    for row, column in ((0, 0), (3, 7), (5, 9)):
        keep = torch.ones(6, 10, dtype=torch.bool)
        keep[row, column] = False
        for new in (surgeon(weight, inverse, keep, weight.square()), least_squares(weight, h, keep)):
            wanted = float(weight[row, column] ** 2 / inverse[column, column])
            assert energy(new - weight, x) == pytest.approx(wanted, rel=1e-9)
            assert float(new[row, column]) == 0.0
            assert (new[torch.arange(6) != row] - weight[torch.arange(6) != row]).abs().max() < 1e-12


def test_after_one_cut_the_result_is_the_constrained_least_squares_optimum() -> None:
    weight, x = weights(4, 8).double(), inputs(60, 8).double()
    h = x.t() @ x / len(x)
    keep = torch.ones(4, 8, dtype=torch.bool)
    keep[:, 2] = False
    new = surgeon(weight, torch.linalg.inv(h), keep, weight.square())
    live = [j for j in range(8) if j != 2]
    target = x @ weight.t()
    best = torch.linalg.lstsq(x[:, live], target).solution.t()
    torch.testing.assert_close(new[:, live], best, rtol=1e-8, atol=1e-10)


def test_least_squares_is_the_optimum_for_many_cuts() -> None:
    weight, x = weights(7, 12).double(), inputs(90, 12).double()
    keep = torch.rand(7, 12, generator=torch.Generator().manual_seed(1)) < 0.4
    new = least_squares(weight, x.t() @ x / len(x), keep)
    assert (new[~keep] == 0).all()
    for row in range(7):
        live = keep[row].nonzero().squeeze(1)
        best = torch.linalg.lstsq(x[:, live], x @ weight[row]).solution
        torch.testing.assert_close(new[row, live], best, rtol=1e-7, atol=1e-9)


def test_exact_beats_frozen_beats_masking() -> None:
    weight, x = weights(16, 24), inputs(300, 24)
    for sparsity in (0.05, 0.3, 0.6, 0.8):
        exact, frozen = (cut(weight, x, sparsity=sparsity, exact=exact) for exact in (True, False))
        assert torch.equal(exact.keep, frozen.keep), "both start from one ranking"
        assert exact.weight is not None and frozen.weight is not None
        errors = [energy(new - weight, x) for new in (exact.weight, frozen.weight, weight * exact.keep)]
        assert errors[0] <= errors[1] * (1 + 1e-6) and errors[0] < errors[2]
        if sparsity == 0.05:
            assert errors[1] < errors[2], "compensation does not help where little is cut"


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("pattern", ["layer", "row", "2:4"])
def test_it_equals_the_slow_sequence_of_single_cuts(pattern: str, with_bias: bool) -> None:
    weight, x = weights(9, 16), inputs(70, 16)
    bias = torch.linspace(-1, 1, 9) if with_bias else None
    found = cut(weight, x, bias, pattern=pattern)
    keep, new = slow_l_obs(weight, x, bias, LOBS(pattern=pattern).pattern, 0.5, 1e-6)
    assert torch.equal(found.keep, keep) and found.weight is not None
    torch.testing.assert_close(found.weight, new.float(), rtol=1e-3, atol=1e-4)
    assert (found.bias is None) == (bias is None)


def test_the_bias_takes_part_and_is_never_cut() -> None:
    weight, x, bias = (
        weights(8, 12),
        inputs(90, 12) + 3,
        torch.full((8,), 1e-8),
    )  # a tiny bias: the lowest score of all
    found = cut(weight, x, bias, sparsity=0.6, exact=True)
    assert found.bias is not None and (found.bias.abs() > 1e-6).all() and found.keep.shape == (8, 12)
    alone = cut(weight, x, sparsity=0.6, exact=True)
    assert found.weight is not None and alone.weight is not None
    y = torch.cat([x, torch.ones(90, 1)], 1)
    change = torch.cat([found.weight - weight, (found.bias - bias)[:, None]], 1)
    assert energy(change, y) < energy(found.weight - weight, x), "moving the bias does not help"


def test_moments_with_a_row_of_ones() -> None:
    x = inputs(50, 6)
    y = torch.cat([x.double(), torch.ones(50, 1, dtype=torch.float64)], 1)
    signal = measured(InputHessian, x, samples=5, parts=3)
    torch.testing.assert_close(moments(signal, bias=True), y.t() @ y / 50, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moments(signal, bias=False), (y.t() @ y / 50)[:6, :6], rtol=1e-5, atol=1e-6)


def test_the_inverse_is_woodburys() -> None:
    """G_0 = 1e6 I, one sample at a time, equals inv(1e-6 I + H)."""
    x = inputs(60, 8).double()
    g = 1e6 * torch.eye(8, dtype=torch.float64)
    for y in x:
        gy = g @ y
        g = g - torch.outer(gy, gy) / (len(x) + y @ gy)
    found, used = invert(x.t() @ x / len(x), 1e-6, "w")
    assert used == 1e-6
    torch.testing.assert_close(found, g, rtol=1e-4, atol=1e-6)


def test_a_singular_hessian_raises_damping_and_says_so() -> None:
    weight, x = weights(6, 16), inputs(3, 16)
    x[:, 5] = 0
    found = cut(weight, x, damping=0.0)
    assert found.weight is not None and torch.isfinite(found.weight).all()
    assert any(note.startswith("w:") and "raised to" in note for note in found.notes)
    assert not cut(weight, inputs(100, 16)).notes


@pytest.mark.parametrize("sparsity", [0.1, 0.29, 0.5, 0.95])
def test_counts_are_exact_over_the_layer(sparsity: float) -> None:
    found = cut(weights(11, 17), inputs(60, 17), sparsity=sparsity)
    assert int((~found.keep).sum()) == floor_count(11 * 17, sparsity)
    assert found.weight is not None and ((found.weight == 0) == ~found.keep).all()


@pytest.mark.parametrize("exact", [True, False])
def test_the_reported_error_is_the_measured_one(exact: bool) -> None:
    weight, x = weights(12, 16), inputs(90, 16)
    found = cut(weight, x, exact=exact, sparsity=0.6)
    assert found.weight is not None and found.error is not None
    wanted = (energy(found.weight - weight, x) / energy(weight, x)) ** 0.5
    assert found.error == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_the_bound_holds_on_random_relu_networks(seed: int) -> None:
    """Theorem 3.2: e_k on the ORIGINAL inputs, products over the CUT layers."""
    stream = torch.Generator().manual_seed(seed)
    widths = [int(w) for w in torch.randint(6, 20, (5,), generator=stream)]
    layers = [torch.randn(b, a, generator=stream, dtype=torch.float64) for a, b in pairwise(widths)]
    x = torch.randn(64, widths[0], generator=stream, dtype=torch.float64)
    sparsity = [0.2, 0.5, 0.8][seed % 3]
    clean, dirty, errors, norms = x, x, [], []
    for depth, weight in enumerate(layers):
        found = cut(weight.float(), clean.float(), sparsity=sparsity, exact=seed % 2 == 0)
        assert found.weight is not None
        new = found.weight.double()
        errors.append(energy(new - weight, clean) ** 0.5)
        norms.append(float(new.norm()))
        clean, dirty = clean @ weight.t(), dirty @ new.t()
        if depth < len(layers) - 1:
            clean, dirty = clean.relu(), dirty.relu()
    moved = float((dirty - clean).norm()) / 64**0.5
    limit = bound(errors, norms)
    assert moved <= limit and moved > 0
    assert bound(errors[-1:], norms[-1:]) == errors[-1] and bound([], []) == 0.0


def test_the_bound_by_hand() -> None:
    assert bound([1.0, 2.0, 3.0], [10.0, 20.0, 30.0]) == 3 + 2 * 30 + 1 * 20 * 30


def test_a_run_reports_the_bound_and_it_holds() -> None:
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        torch.nn.Linear(12, 16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 10),
        torch.nn.ReLU(),
        torch.nn.Linear(10, 4),
    )
    x = torch.randn(64, 12)
    data = Calibration(tuple({"input": row} for row in x), "noise")
    with torch.no_grad():
        before = model(x)
        result = compress(model, LOBS(sparsity=0.5), data, Options(feed="none", products="float32"))
        moved = float((model(x) - before).norm()) / math.sqrt(len(x))
    (line,) = [note for note in result.plan.notes if note.startswith("error bound")]
    limit = float(line.rsplit(" ", 1)[1])
    assert 0 < moved <= limit
