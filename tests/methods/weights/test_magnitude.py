"""Magnitude: one sort of |W|."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.core.select import NM, PerColumn, PerLayer, PerRow
from secateur.core.units import Site
from secateur.methods.weights.magnitude import Magnitude
from tests.oracles import floor_count, slow_select, weights


def oracle(
    method: Magnitude, weight: Tensor, x: Tensor, samples: int, bias: Tensor | None, sparsity: float
) -> Tensor:
    """For the battery: one sort of |W|."""
    return slow_select(weight.abs(), method.pattern, sparsity)


def keep(weight: torch.Tensor, **settings: object) -> torch.Tensor:
    method = Magnitude(**settings)  # type: ignore[arg-type]
    assert isinstance(method.sparsity, float)
    return method.cut(weight, None, Site("w", tuple(weight.shape)), method.sparsity).keep


@pytest.mark.parametrize("sparsity", [0.0, 0.29, 0.5, 0.9])
@pytest.mark.parametrize("pattern", ["layer", "row", "column"])
def test_it_equals_one_sort(pattern: str, sparsity: float) -> None:
    weight = weights(12, 20)
    parsed = {"layer": PerLayer(), "row": PerRow(), "column": PerColumn()}[pattern]
    assert torch.equal(
        keep(weight, pattern=pattern, sparsity=sparsity), slow_select(weight.abs(), parsed, sparsity)
    )


def test_numbers_by_hand() -> None:
    weight = torch.tensor([[0.1, -5.0, 0.3, -0.2], [2.0, -0.4, 0.0, 1.0]])
    assert keep(weight).tolist() == [[False, True, False, False], [True, True, False, True]]
    assert keep(weight, pattern="row").tolist() == [[False, True, True, False], [True, False, False, True]]
    assert torch.equal(keep(weight, pattern="2:4"), slow_select(weight.abs(), NM(2, 4), 0.5))


def test_ties_do_not_cut_more_than_asked() -> None:
    """The reference's `|W| <= threshold` cuts all of them (sheet wanda, step 5)."""
    mask = keep(torch.full((10, 10), 0.5), sparsity=0.5)
    assert int((~mask).sum()) == 50 and mask.reshape(-1)[50:].all()


def test_half_precision_ties_keep_the_count() -> None:
    weight = weights(64, 64).to(torch.bfloat16)
    assert int((~keep(weight, sparsity=0.37)).sum()) == floor_count(64 * 64, 0.37)


def test_signs_and_scale_do_not_matter() -> None:
    weight = weights(12, 20)
    assert torch.equal(keep(weight), keep(-weight)) and torch.equal(keep(weight), keep(weight * 1024))
