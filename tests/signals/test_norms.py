"""Input norms: streamed, merged, and refused when not finite."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.errors import BadInput
from secateur.signals.norms import InputNorms
from tests.oracles import inputs, measured


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 300), st.integers(1, 20), st.integers(1, 9), st.integers(1, 50))
def test_any_split_of_the_tokens_gives_the_same_sums(
    tokens: int, width: int, parts: int, samples: int
) -> None:
    x = inputs(tokens, width, seed=tokens)
    signal = measured(InputNorms, x, samples, min(parts, tokens))
    wanted = (x.double().square().sum(0) / samples).sqrt()
    torch.testing.assert_close(signal.norm.double(), wanted, rtol=1e-5, atol=1e-12)
    assert signal.tokens == tokens


def test_the_reference_recursion_gives_the_same() -> None:
    """Sheet wanda, 3a: s <- s * n / (n + k); n <- n + k; s <- s + sum of squares / n."""
    batches = [inputs(7 * k, 5, seed=k) for k in (1, 3, 2)]
    s, n = torch.zeros(5, dtype=torch.float64), 0
    signal = InputNorms(5)
    for k, x in zip((1, 3, 2), batches, strict=True):
        s, n = s * n / (n + k), n + k
        s += x.double().square().sum(0) / n
        signal.add(InputNorms.measure(x), len(x))
    signal.samples = n
    torch.testing.assert_close(signal.norm.double(), s.sqrt(), rtol=1e-6, atol=0)


def test_half_precision_does_not_overflow() -> None:
    x = torch.full((10_000, 3), 300.0, dtype=torch.float16)  # squares pass 65,504, their sum much more
    signal = measured(InputNorms, x)
    assert signal.norm.tolist() == pytest.approx([300 * 100] * 3)


def test_many_small_tokens_are_not_lost() -> None:
    x = torch.full((300_000, 1), 1e-3)
    x[0] = 100.0
    assert float(measured(InputNorms, x).square_sum) == pytest.approx(1e4 + 299_999e-6, rel=1e-6)


def test_empty_means_no_token_or_only_zeros() -> None:
    assert InputNorms(3).empty and measured(InputNorms, torch.zeros(5, 3)).empty
    assert not measured(InputNorms, torch.tensor([[0.0, 1e-3, 0.0]])).empty


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_by_name(bad: float) -> None:
    x = inputs(9, 4)
    x[3, 2] = bad
    with pytest.raises(BadInput, match=r"^mlp\.up: .*input activations"):
        measured(InputNorms, x).check("mlp.up")
    measured(InputNorms, inputs(9, 4)).check("mlp.up")


def test_workers_may_add_its_tensors() -> None:
    x = inputs(40, 6)
    whole, first, second = measured(InputNorms, x), measured(InputNorms, x[:10]), measured(InputNorms, x[10:])
    for mine, theirs in zip(first.tensors(), second.tensors(), strict=True):
        mine += theirs
    torch.testing.assert_close(first.norm, whole.norm)
