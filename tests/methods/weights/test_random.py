"""Random: exact counts, the same draw for the same seed, another for another."""

from __future__ import annotations

import zlib

import pytest
import torch
from torch import Tensor

from secateur.core.units import Site
from secateur.errors import BadInput
from secateur.methods.weights.random import Random
from tests.oracles import floor_count, slow_select


def oracle(
    method: Random, weight: Tensor, x: Tensor, samples: int, bias: Tensor | None, sparsity: float
) -> Tensor:
    """For the battery: the stream of the seed and the site's name, sorted."""
    stream = torch.Generator().manual_seed(zlib.crc32(f"{method.seed}/layers.0.up".encode()))
    return slow_select(torch.rand(weight.shape, generator=stream), method.pattern, sparsity)


def keep(name: str = "w", shape: tuple[int, int] = (200, 300), **settings: object) -> torch.Tensor:
    method = Random(**settings)  # type: ignore[arg-type]
    assert isinstance(method.sparsity, float)
    return method.cut(torch.randn(shape), None, Site(name, shape), method.sparsity).keep


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.29, 0.5, 0.99])
def test_counts_are_exact_not_a_coin_a_weight(sparsity: float) -> None:
    assert (keep(sparsity=sparsity).sum(1) == 300 - floor_count(300, sparsity)).all()
    layer = keep(sparsity=sparsity, pattern="layer")
    assert int((~layer).sum()) == floor_count(60_000, sparsity)


def test_the_draw_depends_on_seed_and_site_and_nothing_else() -> None:
    assert torch.equal(keep(seed=3), keep(seed=3))
    torch.manual_seed(99)
    assert torch.equal(keep(seed=3), keep(seed=3)), "the global stream is used"
    assert not torch.equal(keep(seed=3), keep(seed=4)) and not torch.equal(keep("a"), keep("b"))


def test_drawing_leaves_the_global_stream_alone() -> None:
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    keep_before = keep()
    torch.manual_seed(5)
    Random().score(torch.zeros(4, 4), None, Site("w", (4, 4)))
    assert torch.equal(torch.rand(3), want) and keep_before.any()


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_two_seeds_agree_as_often_as_chance(sparsity: float) -> None:
    a, b = keep(seed=1, sparsity=sparsity), keep(seed=2, sparsity=sparsity)
    density = 1 - sparsity
    assert float((a == b).float().mean()) == pytest.approx(density**2 + sparsity**2, abs=0.01)
    overlap = float((a & b).sum()) / float(a.sum())
    assert overlap == pytest.approx(density, abs=0.01)  # sheet: different seeds overlap by about the density


def test_positions_are_spread_evenly() -> None:
    columns = keep(shape=(4000, 40), seed=7).float().mean(0)
    assert columns.min() > 0.45 and columns.max() < 0.55


@pytest.mark.parametrize("seed", [-1, 2**31, 2**70, 0.0, "1", None, True])
def test_a_seed_is_a_whole_number_in_range(seed: object) -> None:
    with pytest.raises(BadInput, match="seed"):
        Random(seed=seed)  # type: ignore[arg-type]
