"""Sharpness: quadratics whose value is known, scale invariance, the ball, the layers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.errors import BadInput
from secateur.evaluate.sharpness import Parts, average_sharpness, parts_of, worst_sharpness


def quadratic(seed: int, diagonal: bool = False) -> tuple[dict[str, Tensor], Tensor, Parts]:
    """t of two tensors, A, and the loss 0.5 t^T A t in two parts."""
    g = torch.Generator().manual_seed(seed)
    weights = {n: torch.randn(4, generator=g, dtype=torch.float64).requires_grad_() for n in ("a", "b")}
    root = torch.randn(8, 8, generator=g, dtype=torch.float64)
    a = torch.diag(root.diagonal().square()) if diagonal else root @ root.t()

    def loss() -> Iterator[Tensor]:
        t = torch.cat(list(weights.values()))
        yield 0.2 * (t @ a @ t)
        yield 0.3 * (t @ a @ t)

    return weights, a, loss


@pytest.mark.parametrize("rho", [0.001, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_a_quadratic_loss_has_a_known_average(seed: int, rho: float) -> None:
    weights, a, loss = quadratic(seed)
    t = torch.cat(list(weights.values())).detach()
    exact = 0.5 * rho**2 * float((a.diagonal() * t.square()).sum())
    mean, error = average_sharpness(loss, weights, rho, draws=4000, seed=seed)
    assert abs(mean - exact) < 4 * error and error < 0.05 * exact
    assert torch.equal(torch.cat(list(weights.values())), t), "the weights are put back"


def test_pairs_take_the_linear_term_out() -> None:
    w = {"w": torch.tensor([3.0, -1.0], dtype=torch.float64)}
    mean, error = average_sharpness(lambda: iter([5 * w["w"].sum()]), w, 0.1, draws=2)
    assert abs(mean) < 1e-12 and error != error, "one pair has no standard error"


@given(st.integers(0, 200), st.sampled_from([1e-3, 0.05, 0.5]))
@settings(max_examples=25)
def test_a_diagonal_quadratic_is_worst_in_the_outer_corner(seed: int, rho: float) -> None:
    weights, a, loss = quadratic(seed, diagonal=True)
    t = torch.cat(list(weights.values())).detach()
    exact = 0.5 * float((a.diagonal() * t.square()).sum()) * ((1 + rho) ** 2 - 1)
    assert worst_sharpness(loss, weights, rho) == pytest.approx(exact, rel=1e-9)
    assert torch.equal(torch.cat(list(weights.values())), t), "the weights are put back"


def test_rho_zero_is_exactly_zero() -> None:
    model, x, y = net(0), torch.rand(20, 6), torch.arange(20) % 3
    loss, weights = parts_of(model, x, y), dict(model.named_parameters())
    assert average_sharpness(loss, weights, 0.0) == (0.0, 0.0) and worst_sharpness(loss, weights, 0.0) == 0.0
    assert worst_sharpness(loss, {}, 0.1) == 0.0


def total(loss: Parts) -> float:
    return sum(float(part.detach()) for part in loss())


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))


def data(seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(30, 6, generator=g), torch.randint(0, 3, (30,), generator=g)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rho", [0.01, 0.2])
def test_the_worst_case_bounds_the_average_in_its_ball(seed: int, rho: float) -> None:
    model = net(seed)
    loss, weights = parts_of(model, *data(seed)), dict(model.named_parameters())
    mean, _ = average_sharpness(loss, weights, rho, draws=40, ball=True)
    assert worst_sharpness(loss, weights, rho) >= mean


@pytest.mark.parametrize("seed", range(4))
def test_a_layer_is_no_sharper_than_the_network_at_the_worst(seed: int) -> None:
    model = net(seed)
    loss, weights = parts_of(model, *data(seed)), dict(model.named_parameters())
    total = worst_sharpness(loss, weights, 0.05)
    layers = [{n: p for n, p in weights.items() if n.startswith(f"{i}.")} for i in (0, 2, 4)]
    parts = [worst_sharpness(loss, layer, 0.05) for layer in layers]
    assert all(0 < part <= total * 1.001 for part in parts)
    assert worst_sharpness(loss, weights, 0.1) > total


@pytest.mark.parametrize("c", [4.0, 3.0, 0.1])
def test_scaled_relu_layers_have_the_same_sharpness(c: float) -> None:
    plain, scaled = net(1).double(), net(1).double()
    with torch.no_grad():
        scaled[0].weight.mul_(c)
        scaled[0].bias.mul_(c)
        scaled[2].weight.div_(c)
    x, y = data(1)
    found = []
    for model in (plain, scaled):
        loss, weights = parts_of(model, x.double(), y, normalise=False), dict(model.named_parameters())
        found.append([*average_sharpness(loss, weights, 0.1), worst_sharpness(loss, weights, 0.1)])
    assert found[0] == pytest.approx(found[1], rel=1e-7) and found[0][0] > 1e-5
    absolute = [sum(float(p.detach().square().sum()) for p in m.parameters()) for m in (plain, scaled)]
    assert absolute[0] != pytest.approx(absolute[1], rel=0.1)


def test_a_layer_alone_moves_as_it_does_among_all() -> None:
    weights, _, _ = quadratic(0)

    def loss() -> Iterator[Tensor]:  # "a" alone counts
        yield weights["a"].pow(2).sum()

    assert average_sharpness(loss, weights, 0.1) == average_sharpness(loss, {"a": weights["a"]}, 0.1)
    assert average_sharpness(loss, weights, 0.1, seed=1) != average_sharpness(loss, weights, 0.1)


@pytest.mark.parametrize("normalise", [True, False])
def test_parts_add_up_to_the_mean_loss(normalise: bool) -> None:
    model = net(2)
    x, y = data(2)
    out = model(x).double().detach()
    if normalise:
        out = (out - out.mean(1, keepdim=True)) / out.std(1, correction=0, keepdim=True)
    exact = float(F.cross_entropy(out, y))
    for batch in (7, 30, 256):
        assert total(parts_of(model, x, y, batch, normalise)) == pytest.approx(exact, rel=1e-9)


def test_scaled_logits_are_one_network_where_they_are_normalised() -> None:
    model, (x, y) = net(3).double(), data(3)
    before = total(parts_of(model, x.double(), y))
    with torch.no_grad():
        model[4].weight.mul_(100)
        model[4].bias.mul_(100)
    assert total(parts_of(model, x.double(), y)) == pytest.approx(before, rel=1e-9)


def test_losses_that_are_not_finite() -> None:
    w = {"w": torch.tensor([1.0], requires_grad=True)}

    def loss() -> Iterator[Tensor]:
        yield (w["w"] * 1e30).exp().sum()

    for measure in (average_sharpness, worst_sharpness):
        with pytest.raises(BadInput, match="lower rho"):
            measure(loss, w, 0.1)
    assert w["w"].tolist() == [1.0]
