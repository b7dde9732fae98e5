"""Wanda against its sheet: counts, invariances, the optimality it claims, the score-share variant."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from secateur.core.select import PerRow
from secateur.core.units import Site
from secateur.errors import BadInput
from secateur.methods.weights.wanda import Wanda, keep_by_share
from secateur.signals.norms import InputNorms
from tests.oracles import floor_count, inputs, measured, slow_select, weights


def oracle(
    method: Wanda, weight: Tensor, x: Tensor, samples: int, bias: Tensor | None, sparsity: float
) -> Tensor:
    """For the battery: the sheet's steps 3a to 3d."""
    norm = x.double().square().sum(0).div(samples).sqrt()
    return slow_select(weight.double().abs() * norm, method.pattern, sparsity)


def keep(weight: Tensor, x: Tensor, samples: int = 1, **settings: object) -> Tensor:
    method = Wanda(**settings)  # type: ignore[arg-type]
    assert isinstance(method.sparsity, float)
    return method.cut(
        weight, measured(InputNorms, x, samples), Site("w", tuple(weight.shape)), method.sparsity
    ).keep


def test_score_is_weight_times_norm_to_the_digit() -> None:
    x = torch.tensor([[3.0, 0.0], [4.0, 2.0]])  # norms 5 and 2, over 4 sequences: halved
    score = Wanda().score(torch.tensor([[-1.0, 2.0]]), measured(InputNorms, x, samples=4), Site("w", (1, 2)))
    assert score.tolist() == [[2.5, 2.0]] and score.dtype == torch.float32


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.81])
def test_it_equals_the_slow_rendering_of_the_sheet(sparsity: float) -> None:
    weight, x = weights(17, 24), inputs(100, 24, outliers=20)
    score = weight.double().abs() * (x.double() ** 2).sum(0).div(7).sqrt()
    assert torch.equal(keep(weight, x, 7, sparsity=sparsity), slow_select(score, PerRow(), sparsity))


def test_equal_norms_give_magnitude_per_row() -> None:
    weight = weights(12, 16)
    x = torch.eye(16).repeat(3, 1) * 2
    assert torch.equal(keep(weight, x), slow_select(weight.abs(), PerRow(), 0.5))


def test_scaling_the_weights_a_row_or_the_inputs_changes_nothing() -> None:
    weight, x = weights(12, 16), inputs(60, 16, outliers=20)
    plain = keep(weight, x)
    assert torch.equal(keep(weight * 8, x), plain) and torch.equal(keep(weight, x * 0.25), plain)
    rows = torch.logspace(-8, 8, 12, base=2)[:, None].round()
    rows[rows == 0] = 0.5
    assert torch.equal(keep(weight * rows, x), plain)
    assert torch.equal(keep(-weight, x), plain) and torch.equal(keep(weight, x, samples=16), plain)


def test_scaling_an_input_and_its_column_back_changes_nothing() -> None:
    weight, x = weights(12, 16), inputs(60, 16)
    c = 2.0 ** torch.arange(-8, 8)
    assert torch.equal(keep(weight / c, x * c), keep(weight, x))
    assert not torch.equal(keep(weight, x * c), keep(weight, x)), "the inputs do not matter"


@pytest.mark.parametrize("sparsity", [0.1, 0.29, 0.5, 0.99])
def test_every_row_loses_exactly_its_count(sparsity: float) -> None:
    cut = (~keep(weights(9, 100), inputs(50, 100), sparsity=sparsity)).sum(1)
    assert (cut == floor_count(100, sparsity)).all()


@pytest.mark.parametrize(
    ("pattern", "kept", "of"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:4", 1, 4), ("3:8", 3, 8)]
)
def test_every_group_keeps_exactly_n(pattern: str, kept: int, of: int) -> None:
    mask = keep(weights(9, 64), inputs(50, 64), pattern=pattern)
    assert (mask.view(9, -1, of).sum(2) == kept).all()


def test_one_to_four_zeroes_three_of_four() -> None:
    assert keep(torch.tensor([[1.0, 4, 3, 2]]), torch.ones(2, 4), pattern="1:4").tolist() == [
        [False, True, False, False]
    ]


@pytest.mark.parametrize("width", [4, 6, 10])
def test_with_uncorrelated_inputs_no_mask_is_better(width: int) -> None:
    stream = torch.Generator().manual_seed(width)
    basis = torch.linalg.qr(torch.randn(width + 5, width, generator=stream, dtype=torch.float64)).Q
    x = (basis * (1 + torch.rand(width, generator=stream) * 9)).float()  # X^T X is diagonal
    weight = weights(5, width)
    for cut in range(1, width):
        mask = keep(weight, x, sparsity=cut / width)
        for row in range(5):
            errors = {}
            for gone in combinations(range(width), cut):
                change = torch.zeros(width)
                change[list(gone)] = weight[row, list(gone)]
                errors[gone] = float((x @ change).square().sum())
            mine = tuple((~mask[row]).nonzero().squeeze(1).tolist())
            assert errors[mine] <= min(errors.values()) * (1 + 1e-4)


@pytest.mark.parametrize("parts", [1, 2, 7, 100])
def test_streaming_equals_one_shot(parts: int) -> None:
    x = inputs(100, 16)
    one, many = measured(InputNorms, x), measured(InputNorms, x, parts=parts)
    torch.testing.assert_close(many.norm, one.norm, rtol=1e-6, atol=0)
    assert many.tokens == one.tokens == 100


# -- the variant ----------------------------------------------------------------------------------------------------


def slow_share(score: Tensor, sparsity: float) -> Tensor:
    """Sheet wanda, step 4, in loops, with positions instead of an inclusive threshold."""
    low, high, alpha = 0.0, 0.8, 0.4
    while True:
        keep = torch.ones_like(score, dtype=torch.bool)
        for row in range(len(score)):
            values = score[row].double().tolist()
            total, running = sum(values), 0.0
            for column in sorted(range(len(values)), key=lambda j: values[j]):
                running += values[column]
                if running > alpha * total:
                    break
                keep[row, column] = False
        reached = 1 - float(keep.double().mean())
        if abs(reached - sparsity) <= 1e-3 or high - low < 1e-3:
            return keep
        if reached < sparsity:
            low = alpha
        else:
            high = alpha
        alpha = (low + high) / 2


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
def test_share_equals_its_slow_rendering(sparsity: float) -> None:
    score = weights(64, 96).abs() * inputs(60, 96, outliers=10).norm(dim=0)
    found, wanted = keep_by_share(score, sparsity), slow_share(score, sparsity)
    assert (found == wanted).float().mean() > 0.999  # float32 sums against float64
    assert abs(1 - float(found.float().mean()) - sparsity) < 0.01


def test_share_lets_rows_keep_different_numbers_and_only_the_lowest_go() -> None:
    weight, x = weights(30, 64), inputs(60, 64)
    weight[0] = 1.0
    weight[1] = torch.logspace(-3, 3, 64)
    mask = keep(weight, x, share=True)
    counts = mask.sum(1)
    assert len(counts.unique()) > 3 and counts[1] < counts[0]
    score = weight.abs() * x.norm(dim=0)
    assert (score.where(mask, torch.inf).amin(1) >= score.where(~mask, 0).amax(1)).all()


def test_share_guards_a_row_whose_lowest_score_is_too_big() -> None:
    score = torch.tensor([[10.0, 0.0001, 0.0001, 0.0001], [1.0, 1.0, 1.0, 1.0]])
    mask = keep_by_share(
        score, 0.5
    )  # alpha far below 1/4 for the second row would need index -1 in the reference
    assert mask[0, 0] and mask.any(1).all()


@pytest.mark.parametrize("sparsity", [0.0, 0.9, 0.97])
def test_share_reaches_high_and_low_sparsities(sparsity: float) -> None:
    weight, x = weights(64, 128), inputs(300, 128)
    reached = 1 - float(keep(weight, x, share=True, sparsity=sparsity).float().mean())
    assert reached == pytest.approx(sparsity, abs=0.01)


def test_share_works_on_rows_only() -> None:
    for pattern in ("layer", "column", "2:4", "4x4"):
        with pytest.raises(BadInput, match="share"):
            Wanda(share=True, pattern=pattern)
