"""One ranking over several layers is `keep_top` over all of them in one row."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.apply.ranking import keep_top_of_all
from secateur.core.select import keep_top


def in_one_row(scores: dict[str, Tensor], cut: int, among: dict[str, Tensor]) -> dict[str, Tensor]:
    row = torch.cat([score.reshape(-1) for score in scores.values()])
    mask = torch.cat([part.reshape(-1) for part in among.values()])
    kept = keep_top(row[None], cut, mask[None])[0]
    parts = kept.split([score.numel() for score in scores.values()])
    return {name: part.view_as(scores[name]) for name, part in zip(scores, parts, strict=True)}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    share=st.floats(0, 1),
    density=st.sampled_from([0.0, 0.2, 1.0]),
    levels=st.sampled_from([2, 5, 1000]),
)
def test_the_same_as_in_one_row(
    seed: int, sizes: list[int], share: float, density: float, levels: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = {
        str(i): torch.randint(levels, (3, size), generator=draw).float() for i, size in enumerate(sizes)
    }
    among = {name: torch.rand(score.shape, generator=draw) <= density for name, score in scores.items()}
    cut = round(share * sum(int(mask.sum()) for mask in among.values()))
    found, expected = keep_top_of_all(scores, cut, among), in_one_row(scores, cut, among)
    for name in scores:
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("kind", ["normal", "ties", "a layer above all others", "sorted", "striped"])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.97])
def test_large_layers_whatever_the_sample_says(kind: str, share: float) -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(300, 400, generator=draw), torch.randn(70, 500, generator=draw)
    if kind == "ties":
        a, b = a.round(), b.round()
    elif kind == "a layer above all others":
        b = b + 100
    elif kind == "sorted":
        a = a.flatten().sort().values.view_as(a)
    elif kind == "striped":  # the sample of every 18th entry sees nothing of the rest
        a, b = a.flatten(), b.flatten()
        a[::18], b[::18] = 50, 50
        a, b = a.view(300, 400), b.view(70, 500)
    among = {"a": torch.rand(a.shape, generator=draw) < 0.7, "b": torch.ones_like(b, dtype=torch.bool)}
    cut = int(share * sum(int(mask.sum()) for mask in among.values()))
    found, expected = keep_top_of_all({"a": a, "b": b}, cut, among), in_one_row({"a": a, "b": b}, cut, among)
    assert sum(int(mask.sum()) for mask in found.values()) == sum(int(m.sum()) for m in among.values()) - cut
    for name in found:
        assert torch.equal(found[name], expected[name]), name
