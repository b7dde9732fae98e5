"""SparseGPT against its sheet: the error identity, a slow rendering without Cholesky, counts, dead inputs, damping."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from secateur.core.method import Cut
from secateur.core.select import NM, PerLayer, PerRow, parse_pattern
from secateur.core.units import Site
from secateur.methods.weights.sparsegpt import SparseGPT, solve
from secateur.methods.weights.wanda import Wanda
from secateur.signals.hessian import InputHessian
from secateur.signals.norms import InputNorms
from tests.oracles import floor_count, hessian, inputs, measured, slow_sparsegpt, weights


def oracle(
    method: SparseGPT, weight: Tensor, x: Tensor, samples: int, bias: Tensor | None, sparsity: float
) -> tuple[Tensor, Tensor]:
    """For the battery: the sheet's step B4 with explicit inverses."""
    return slow_sparsegpt(weight, x, samples, method.pattern, sparsity, method.blocksize, method.damping)[:2]


def cut(weight: Tensor, x: Tensor, samples: int = 1, **settings: Any) -> Cut:
    method = SparseGPT(**settings)
    assert isinstance(method.sparsity, float)
    return method.cut(
        weight, measured(InputHessian, x, samples), Site("w", tuple(weight.shape)), method.sparsity
    )


def factor64(x: Tensor, samples: int = 1, damping: float = 0.0) -> Tensor:
    """R in float64, by the reference's three steps."""
    h = hessian(x, samples, damping)
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)


@pytest.mark.parametrize("pattern", ["layer", "row", "2:4", "1:4", "3:8"])
@pytest.mark.parametrize("blocksize", [1, 7, 16, 128])
def test_error_identity(pattern: str, blocksize: int) -> None:
    """With damping 0, sum(err^2) / 2 times the sequences is ||(W' - W) X||_F^2, for every block size."""
    weight, x, samples = weights(11, 24).double(), inputs(90, 24).double(), 3
    columns = weight.t().contiguous()
    parsed = parse_pattern(pattern)
    sparsity = parsed.sparsity if isinstance(parsed, NM) else 0.6
    keep, _, loss = solve(columns, factor64(x, samples), parsed, sparsity, blocksize, inner=5)
    measured_error = float(((columns.t() - weight) @ x.t()).square().sum())
    assert loss / 2 * samples == pytest.approx(measured_error, rel=1e-8)
    assert (columns[~keep] == 0).all() and (columns[keep] != 0).all()


@pytest.mark.parametrize("pattern", ["layer", "row", "2:4", "1:4", "2:8"])
@pytest.mark.parametrize("blocksize", [4, 8, 13, 128])
def test_it_equals_the_slow_rendering_without_cholesky(pattern: str, blocksize: int) -> None:
    weight, x = weights(9, 32).double(), inputs(100, 32, outliers=5).double()
    parsed = parse_pattern(pattern)
    if isinstance(parsed, NM):  # the solver rounds its blocks up to whole groups
        blocksize = parsed.m * -(-blocksize // parsed.m)
    sparsity = parsed.sparsity if isinstance(parsed, NM) else 0.5
    columns = weight.t().contiguous()
    keep, _, loss = solve(columns, factor64(x, 2, 0.01), parsed, sparsity, blocksize, inner=3)
    wanted, new, wanted_loss = slow_sparsegpt(weight, x, 2, parsed, sparsity, blocksize, 0.01)
    assert torch.equal(keep.t(), wanted)
    torch.testing.assert_close(columns.t(), new, rtol=1e-9, atol=1e-10)
    assert loss == pytest.approx(wanted_loss, rel=1e-9)


def test_the_method_in_float32_equals_the_slow_rendering() -> None:
    weight, x = weights(16, 40), inputs(200, 40, outliers=10)
    found = cut(weight, x, samples=4, blocksize=16)
    wanted, new, _ = slow_sparsegpt(weight, x, 4, PerLayer(), 0.5, 16, 0.01)
    assert float((found.keep == wanted).float().mean()) == 1.0 and found.weight is not None
    torch.testing.assert_close(found.weight, new.float(), rtol=1e-3, atol=1e-4)


def test_r_holds_the_inverse_of_the_columns_left() -> None:
    """R_ii^2 = [(H_{i:, i:})^-1]_00 for all i, and R^T R = H^-1."""
    x = inputs(120, 20, outliers=8)
    notes: list[str] = []
    factor = measured(InputHessian, x, 4).inverse_factor(0.01, "w", notes).double()
    h = hessian(x, 4, 0.01)
    for i in range(20):
        assert float(factor[i, i] ** 2) == pytest.approx(float(torch.linalg.inv(h[i:, i:])[0, 0]), rel=2e-4)
    torch.testing.assert_close(factor.t() @ factor, torch.linalg.inv(h), rtol=2e-3, atol=1e-6)
    assert torch.equal(factor, factor.triu()) and not notes


def test_a_diagonal_hessian_compensates_nothing() -> None:
    basis = torch.linalg.qr(torch.randn(40, 16, generator=torch.Generator().manual_seed(0))).Q
    x, weight = basis * (1 + torch.arange(16)), weights(8, 16)
    found = cut(weight, x, damping=0.0, pattern="row")
    assert found.weight is not None
    torch.testing.assert_close(found.weight, weight * found.keep, rtol=1e-4, atol=1e-5)
    wanda = Wanda().cut(weight, measured(InputNorms, x), Site("w", (8, 16)), 0.5)
    assert torch.equal(found.keep, wanda.keep), "w^2 / [H^-1]_jj is Wanda's score squared"


@pytest.mark.parametrize("sparsity", [0.1, 0.29, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("blocksize", [7, 128])
def test_counts_are_exact_for_any_block_size(sparsity: float, blocksize: int) -> None:
    """The reference's inclusive threshold cuts one more in every block."""
    weight, x = weights(10, 37), inputs(80, 37)
    layer = cut(weight, x, sparsity=sparsity, blocksize=blocksize)
    assert int((~layer.keep).sum()) == floor_count(370, sparsity)
    rows = cut(weight, x, sparsity=sparsity, blocksize=blocksize, pattern="row")
    assert ((~rows.keep).sum(1) == floor_count(37, sparsity)).all()
    assert rows.weight is not None and ((rows.weight == 0) == ~rows.keep).all()


def test_a_tiny_sparsity_leaves_every_weight_alone() -> None:
    weight, x = weights(10, 16), inputs(80, 16)
    found = cut(weight, x, sparsity=1e-9)
    assert (
        found.keep.all()
        and found.weight is not None
        and torch.equal(found.weight, weight)
        and found.error == 0
    )


@pytest.mark.parametrize("size", [0.01, 100.0])
def test_dead_inputs_lose_their_weights_and_disturb_nothing(size: float) -> None:
    # where inputs are small, a dead one's diagonal of 1 is the largest
    weight, x = weights(10, 16), inputs(80, 16) * size
    x[:, [3, 9]] = 0
    found = cut(weight, x, pattern="row", sparsity=0.5)
    assert (
        found.weight is not None and (found.weight[:, [3, 9]] == 0).all() and not found.keep[:, [3, 9]].any()
    )
    assert ((~found.keep).sum(1) == 8).all()
    lived = [j for j in range(16) if j not in (3, 9)]
    assert torch.isfinite(found.weight).all() and (found.weight[:, lived] != 0).any(1).all()


@pytest.mark.parametrize("tokens", [1, 3, 10])
def test_a_singular_hessian_raises_damping_and_says_so(tokens: int) -> None:
    weight, x = weights(10, 64), inputs(tokens, 64)
    found = cut(weight, x, damping=0.0)
    assert found.weight is not None and torch.isfinite(found.weight).all()
    assert int((~found.keep).sum()) == 320
    assert [n for n in found.notes if n.startswith("w:") and "raised to" in n], found.notes
    assert not cut(weight, inputs(200, 64)).notes


def test_sites_of_one_input_share_one_factor() -> None:
    signal = measured(InputHessian, inputs(80, 16))
    assert signal.inverse_factor(0.01, "q", []) is signal.inverse_factor(0.01, "k", [])
    assert signal.inverse_factor(0.1, "q", []) is not signal.inverse_factor(0.01, "q", [])


@pytest.mark.parametrize("pattern", ["row", "2:4"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_output_error_is_lower_than_wandas_at_the_same_count(pattern: str, seed: int) -> None:
    weight, x = weights(24, 48, seed), inputs(400, 48, seed, outliers=10)
    obs = cut(weight, x, pattern=pattern)
    wanda = Wanda(pattern=pattern).cut(weight, measured(InputNorms, x), Site("w", (24, 48)), 0.5)
    assert obs.weight is not None and int(obs.keep.sum()) == int(wanda.keep.sum())
    ours, theirs = ((new - weight) @ x.t() for new in (obs.weight, weight * wanda.keep))
    assert float(ours.square().sum()) < 0.9 * float(theirs.square().sum())


@pytest.mark.parametrize("tokens", [400, 20])
def test_the_reported_error_is_the_measured_one(tokens: int) -> None:
    weight, x = weights(24, 48), inputs(tokens, 48)
    found = cut(weight, x, samples=4, sparsity=0.7)
    assert found.weight is not None and found.error is not None
    measured_error = float(((found.weight - weight) @ x.t()).norm() / (weight @ x.t()).norm())
    assert found.error == pytest.approx(measured_error, rel=0.05)


def test_more_damping_moves_the_result_toward_plain_masking() -> None:
    weight, x = weights(16, 24), inputs(200, 24)
    distance = []
    for damping in (0.001, 0.1, 1.0):
        found = cut(weight, x, damping=damping)
        assert found.weight is not None
        distance.append(float((found.weight - weight * found.keep).norm()))
    assert distance[0] > distance[1] > distance[2]


def test_rows_never_interact_in_the_update() -> None:
    weight, x = weights(12, 24), inputs(100, 24)
    whole = cut(weight, x, pattern="row")
    halves = [cut(part, x, pattern="row") for part in weight.split(5)]
    assert whole.weight is not None
    assert torch.equal(whole.keep, torch.cat([h.keep for h in halves]))
    torch.testing.assert_close(
        whole.weight, torch.cat([h.weight for h in halves if h.weight is not None]), rtol=1e-4, atol=1e-5
    )


def test_its_score_ranks_by_the_inverse_hessian() -> None:
    weight, x = weights(6, 12), inputs(60, 12)
    score = SparseGPT(damping=0.01).score(weight, measured(InputHessian, x), Site("w", (6, 12)))
    h = hessian(x, 1, 0.01)
    wanted = torch.stack(
        [weight[:, j].double() ** 2 / torch.linalg.inv(h[j:, j:])[0, 0] for j in range(12)], 1
    )
    torch.testing.assert_close(score.double(), wanted, rtol=1e-3, atol=1e-6)
    assert PerRow().select(score, 0.5).sum() == 36


def test_a_ranking_over_the_model_lets_dead_inputs_go_first() -> None:
    weight, x = weights(6, 12), inputs(60, 12) * 100
    x[:, 4] = 0
    score = SparseGPT().score(weight, measured(InputHessian, x), Site("w", (6, 12)))
    assert not score[:, 4].any() and (score[:, :4] > 0).all()


def test_the_weights_given_are_not_changed() -> None:
    weight, x = weights(8, 16), inputs(60, 16)
    held = weight.clone()
    assert cut(weight, x).weight is not None and torch.equal(weight, held)
