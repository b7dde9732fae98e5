"""bfloat16 products: the same layer to bfloat16 accuracy, float32 in and out, and nothing else touched."""

from __future__ import annotations

import pytest
import torch

from secateur.engine.products import choose, has_fast_bfloat16, products


def test_linear_agrees_to_bfloat16_accuracy_and_stays_float32() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(7, 5, 64), torch.randn(32, 64), torch.randn(32)
    exact = torch.nn.functional.linear(x, weight, bias)
    with products("bfloat16"):
        rounded = torch.nn.functional.linear(x, weight, bias)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert (rounded - exact).norm() / exact.norm() < 5e-3


def test_float32_products_change_nothing() -> None:
    x, weight = torch.randn(3, 8), torch.randn(4, 8)
    with products("float32"):
        assert torch.equal(torch.nn.functional.linear(x, weight), x @ weight.t())


def test_an_input_changed_in_place_is_rounded_again() -> None:
    x, weight = torch.ones(2, 8), torch.eye(8)
    with products("bfloat16"), torch.no_grad():
        torch.nn.functional.linear(x, weight)
        x.mul_(3)
        assert torch.equal(torch.nn.functional.linear(x, weight), x)


def test_a_weight_is_rounded_once_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = torch.eye(8)[:2], torch.nn.Parameter(torch.ones(8, 8))
    with products("bfloat16") as mode, torch.no_grad():
        first = torch.nn.functional.linear(x, weight)
        (kept,) = mode._weights.values()
        assert torch.equal(torch.nn.functional.linear(x, weight), first)
        assert next(iter(mode._weights.values())) is kept, "not rounded twice"
        weight.detach().t().copy_(torch.full((8, 8), 3.0))  # as a cut writes it
        assert torch.equal(torch.nn.functional.linear(x, weight), 3 * first)
        for value in range(20):  # temporary tensors may have the address of an earlier one
            assert float(torch.nn.functional.linear(x, torch.full((8, 8), float(value))).max()) == value
        weights = [torch.full((8, 8), float(value)) for value in range(20)]  # no address twice
        assert [float(torch.nn.functional.linear(x, weight).max()) for weight in weights] == list(range(20))
        held = [weight() for weight, _, _ in mode._weights.values()]
        assert all(a is b for a, b in zip(held, weights[-8:], strict=True)), "a bounded number is held"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_pass_through(dtype: torch.dtype) -> None:
    x, weight = torch.randn(3, 8, dtype=dtype), torch.randn(4, 8, dtype=dtype)
    expected = torch.nn.functional.linear(x, weight)
    with products("bfloat16"):
        assert torch.equal(torch.nn.functional.linear(x, weight), expected)


def test_auto_follows_the_processor() -> None:
    assert choose("auto") == ("bfloat16" if has_fast_bfloat16() else "float32")
    assert (choose("float32"), choose("bfloat16")) == ("float32", "bfloat16")
