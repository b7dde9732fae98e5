"""Every tensor is checked at the door, and two runs that agree on a digest agree on every bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.core.scores import digest, finite
from secateur.errors import BadInput


@given(
    st.integers(1, 400),
    st.integers(0, 5),
    st.integers(0, 5),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
)
def test_finite_counts_what_it_refuses(n: int, nans: int, infs: int, dtype: torch.dtype) -> None:
    tensor = torch.ones(n + nans + infs, dtype=dtype)
    tensor[:nans] = float("nan")
    tensor[nans : nans + infs] = -float("inf")
    if nans + infs == 0:
        assert finite(tensor, "w") is tensor
        return
    with pytest.raises(BadInput, match=rf"^w: {nans} NaN and {infs} Inf among {len(tensor)} weights"):
        finite(tensor, "w")


def test_finite_lets_through_what_is_large_empty_or_whole() -> None:
    for tensor in (torch.full((9,), 3e38), torch.empty(0, 4), torch.arange(3), torch.tensor(True)):
        assert finite(tensor, "w") is tensor


def test_digest_sees_values_shapes_dtypes_and_order() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, -0.0])
    seen = {
        digest(a),
        digest(b),
        digest(a.view(1, 2)),
        digest(a.double()),
        digest(a, b),
        digest(b, a),
        digest(),
    }
    seen |= {digest(torch.tensor([1.0, 0.0])), digest(torch.tensor([])), digest(torch.tensor(1.0))}
    assert len(seen) == 10


def test_digest_does_not_see_strides() -> None:
    a = torch.arange(12.0).view(3, 4)
    assert digest(a.t()) == digest(a.t().contiguous()) and digest(a[:, ::2]) == digest(a[:, ::2].clone())
    assert digest(torch.ones(3, dtype=torch.bfloat16)) == digest(torch.ones(3, dtype=torch.bfloat16))
