"""Heads: logits, blends, held-out shots, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secateur.apply.heads import Head, Shots, Texts, blend, check_fits, check_rows, split_shots
from secateur.errors import BadInput


def rows(count: int, width: int = 5, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def texts(**other: Any) -> Texts:
    given_ = {
        "classes": ("a", "b", "c"),
        "prompts": rows(3),
        "words": ("u", "v", "w", "x"),
        "rows": rows(4, seed=1),
        "owner": torch.tensor([0, 1, 1, 2]),
    }
    return Texts(**{**given_, **other})


def test_logits_are_the_scaled_cosines() -> None:
    head, x = Head(rows(3), 10.0, torch.tensor([1.0, 2.0, 3.0])), rows(7, seed=2)
    wanted = [[10 * float(w @ h) + b for w, b in zip(head.weight, (1, 2, 3), strict=True)] for h in x]
    torch.testing.assert_close(head.logits(x), torch.tensor(wanted), rtol=1e-5, atol=1e-5)


def test_used_counts_columns_that_any_class_uses() -> None:
    coefficients = torch.tensor([[0.0, 1.0, 0.0], [0.0, -2.0, 0.0]])
    assert Head(rows(2), 1.0, None, coefficients, torch.arange(3)).used == 1
    assert Head(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 1.0).used == 1


def test_a_blend_ends_bit_for_bit_at_its_ends() -> None:
    one, other = Head(rows(3), 7.0), Head(rows(3, seed=3), 20.0)
    assert blend(one, other, 1) is one and blend(one, other, 0) is other


@given(alpha=st.floats(0.01, 0.99))
def test_logits_are_linear_in_alpha_whatever_the_two_scales(alpha: float) -> None:
    x = rows(6, seed=4)
    one, other = Head(rows(3), 7.0, torch.tensor([1.0, 0.0, -1.0])), Head(rows(3, seed=3), 20.0)
    wanted = alpha * one.logits(x) + (1 - alpha) * other.logits(x)
    torch.testing.assert_close(blend(one, other, alpha).logits(x), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_an_alpha_outside_is_refused(alpha: float) -> None:
    with pytest.raises(BadInput, match="alpha"):
        blend(Head(rows(3), 1.0), Head(rows(3), 1.0), alpha)


def test_some_of_every_class_are_held_out_and_nothing_is_lost() -> None:
    shots = Shots(rows(22), torch.tensor([0] * 2 + [1] * 4 + [2] * 16))
    train, held = split_shots(shots, 0.25, seed=1)
    assert torch.bincount(held.labels).tolist() == [1, 1, 4]
    assert torch.bincount(train.labels).tolist() == [1, 3, 12]
    both = {tuple(row) for part in (train, held) for row in part.embeddings.tolist()}
    assert both == {tuple(row) for row in shots.embeddings.tolist()}
    again = split_shots(shots, 0.25, seed=1)[1].embeddings
    assert torch.equal(again, held.embeddings)
    assert not torch.equal(split_shots(shots, 0.25, seed=2)[1].embeddings, held.embeddings)


def test_a_class_with_one_image_cannot_hold_one_out() -> None:
    with pytest.raises(BadInput, match="class 1: one image"):
        split_shots(Shots(rows(3), torch.tensor([0, 0, 1])))


@pytest.mark.parametrize(
    ("other", "line"),
    [
        ({"classes": ("a", "b", "a")}, "'a' is there twice"),
        ({"owner": torch.tensor([0, 1, 1, 1])}, "c: no descriptor"),
        ({"owner": torch.tensor([0, 1])}, "2"),
        ({"owner": torch.tensor([0, 1, 2, 3])}, "owner"),
        ({"rows": rows(4, width=6)}, "6 wide, the others 5"),
        ({"rows": rows(3)}, "3 rows for 4"),
        ({"rows": 2 * rows(4)}, "length 2, not 1"),
        ({"prompts": torch.full((3, 5), math.nan)}, "class prompts: 15 NaN"),
        ({"scale": 0.0}, "logit scale"),
        ({"classes": ("a",), "prompts": rows(1)}, "1 class"),
    ],
)
def test_texts_that_do_not_go_together_are_refused_in_one_line(other: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput, match=line):
        texts(**other)


def test_texts_may_be_prompts_alone() -> None:
    assert texts(words=(), rows=torch.zeros(0, 5), owner=torch.zeros(0, dtype=torch.int64)).width == 5


def test_shots_of_another_width_or_class_are_refused() -> None:
    with pytest.raises(BadInput, match="6 wide, the texts 5"):
        check_fits(texts(), Shots(rows(2, 6), torch.tensor([0, 1])))
    with pytest.raises(BadInput, match=r"labels 0\.\.3 of 3 classes"):
        check_fits(texts(), Shots(rows(2), torch.tensor([0, 3])))
    with pytest.raises(BadInput, match="1 labels of 2 images"):
        Shots(rows(2), torch.tensor([0]))
    with pytest.raises(BadInput, match="no image"):
        Shots(rows(0), torch.zeros(0, dtype=torch.int64))


def test_what_is_no_matrix_of_floats_is_refused() -> None:
    with pytest.raises(BadInput, match="int64"):
        check_rows(torch.ones(2, 2, dtype=torch.int64), "x")
    with pytest.raises(BadInput, match=r"give floats"):
        check_rows(torch.ones(2), "x")
