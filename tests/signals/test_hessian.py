"""The Hessian: one triangle computed, both right; streamed, merged, factored, refused when not finite."""

from __future__ import annotations

import pytest
import torch

from secateur.errors import BadInput
from secateur.signals.hessian import InputHessian, triangle
from secateur.signals.norms import InputNorms
from tests.oracles import hessian, inputs, measured


@pytest.mark.parametrize("width", [1, 2, 5, 16, 33, 64, 100])
@pytest.mark.parametrize("smallest", [1, 4, 256])
def test_a_triangle_and_its_mirror_cover_the_matrix_once(width: int, smallest: int) -> None:
    seen = torch.zeros(width, width)
    for rows, columns in triangle(width, smallest):
        seen[rows, columns] += 1
        if rows != columns:
            seen[columns, rows] += 1
    assert torch.equal(seen, torch.ones(width, width))


@pytest.mark.parametrize("width", [12, 300, 601])
def test_products_are_x_transposed_x_and_symmetric(width: int) -> None:
    x = inputs(50, width)
    found = measured(InputHessian, x).products
    torch.testing.assert_close(found, x.t() @ x, rtol=1e-5, atol=1e-4)
    assert torch.equal(found, found.t())


@pytest.mark.parametrize("parts", [1, 3, 50])
def test_streaming_equals_one_shot(parts: int) -> None:
    x = inputs(50, 12)
    signal = measured(InputHessian, x, samples=5, parts=parts)
    torch.testing.assert_close(signal.products.double(), x.double().t() @ x.double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(signal.total, x.double().sum(0), rtol=1e-6, atol=1e-5)
    assert signal.tokens == 50


def test_adding_does_not_keep_what_it_was_given() -> None:
    """Sites that share an input are given the same measured tensors: one must not write into the other's."""
    given = InputHessian.measure(inputs(20, 6))
    held = given[0].clone()
    first, second = InputHessian(6), InputHessian(6)
    for signal in (first, second):
        signal.add(given, 20)
        signal.add(given, 20)
    assert torch.equal(given[0], held) and torch.equal(first.products, second.products)
    torch.testing.assert_close(first.products, 2 * held)


def test_taking_is_adding_what_was_measured() -> None:
    taken, added = InputHessian(300), InputHessian(300)
    for seed in (0, 1):
        x = inputs(40, 300, seed=seed)
        taken.take(x)
        added.add(InputHessian.measure(x), len(x))
        torch.testing.assert_close(taken.products, added.products, rtol=1e-5, atol=1e-4)
    assert taken.tokens == added.tokens == 80 and torch.equal(taken.total, added.total)


def test_its_norms_are_those_of_input_norms() -> None:
    x = inputs(80, 10, outliers=30)
    torch.testing.assert_close(
        measured(InputHessian, x, 4).norm, measured(InputNorms, x, 4).norm, rtol=1e-5, atol=1e-6
    )


def test_squared_error_is_that_of_the_outputs() -> None:
    x, change = inputs(80, 10), inputs(7, 10, seed=3)
    wanted = float((change.double() @ x.double().t()).square().sum())
    assert measured(InputHessian, x, samples=4).squared_error(change) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("damping", [0.0, 0.01, 0.5])
def test_the_factor_inverts_the_damped_hessian(damping: float) -> None:
    x = inputs(90, 12)
    x[:, 4] = 0  # dead
    notes: list[str] = []
    factor = measured(InputHessian, x, 3).inverse_factor(damping, "w", notes).double()
    wanted = torch.linalg.inv(hessian(x, 3, damping))
    torch.testing.assert_close(factor.t() @ factor, wanted, rtol=1e-3, atol=1e-5)
    assert notes == [] and (factor.diagonal() > 0).all()


def test_measuring_the_factor_leaves_the_products_alone() -> None:
    signal = measured(InputHessian, inputs(90, 12))
    held = signal.products.clone()
    signal.inverse_factor(0.01, "w", [])
    signal.inverse_factor(0.1, "w", [])
    assert torch.equal(signal.products, held)


def test_damping_is_raised_tenfold_until_it_works() -> None:
    x = torch.ones(4, 32)  # rank one
    notes: list[str] = []
    factor = measured(InputHessian, x).inverse_factor(0.0, "q_proj", notes)
    assert (
        torch.isfinite(factor).all() and len(notes) == 1 and "q_proj" in notes[0] and "raised to" in notes[0]
    )


def test_raised_damping_replaces_what_was_added_before() -> None:
    signal = measured(InputHessian, inputs(90, 12))
    q = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0))).Q
    spectrum = torch.ones(12)
    spectrum[3] = -0.05  # rounding at its worst: 0.001 and 0.01 of the mean are not enough, 0.1 is
    signal.products, signal.samples = q * spectrum @ q.t(), 2
    notes: list[str] = []
    factor = signal.inverse_factor(0.0, "w", notes).double()
    h = signal.products.double()
    wanted = torch.linalg.inv(h + 0.1 * float(h.diagonal().mean()) * torch.eye(12))
    torch.testing.assert_close(factor.t() @ factor, wanted, rtol=1e-3, atol=1e-4)
    assert notes == ["w: Hessian not positive definite at damping 0, raised to 0.1"]


def test_what_is_not_finite_is_refused_by_name() -> None:
    x = inputs(9, 4)
    x[3, 2] = float("nan")
    with pytest.raises(BadInput, match=r"^mlp\.up: .*input activations"):
        measured(InputHessian, x).check("mlp.up")
    with pytest.raises(BadInput, match=r"^mlp\.up: .*factored"):
        measured(InputHessian, x).inverse_factor(0.01, "mlp.up", [])


def test_empty_means_no_token_or_only_zeros() -> None:
    assert InputHessian(3).empty and measured(InputHessian, torch.zeros(5, 3)).empty
    assert not measured(InputHessian, torch.eye(3)).empty


def test_workers_may_add_its_tensors() -> None:
    x = inputs(40, 6)
    whole, first, second = (
        measured(InputHessian, x),
        measured(InputHessian, x[:10]),
        measured(InputHessian, x[10:]),
    )
    for mine, theirs in zip(first.tensors(), second.tensors(), strict=True):
        mine += theirs
    torch.testing.assert_close(first.products, whole.products, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first.total, whole.total, rtol=1e-5, atol=1e-5)
