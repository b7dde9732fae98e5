"""A tiny language model that Wanda has cut, and batches to train it on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import secateur
from secateur.methods.weights.wanda import Wanda
from tests.tinylm import tiny_llama


def cut_model(pattern: str = "row", **changes: Any) -> Any:
    """`tiny_llama`, every Linear of its blocks half cut."""
    model = tiny_llama(**changes)
    ids = torch.randint(4, 64, (8, 16), generator=torch.Generator().manual_seed(1))
    secateur.compress(model, Wanda(sparsity=0.5, pattern=pattern), ids, undo=False)
    return model


def batches(n: int = 2) -> list[dict[str, Tensor]]:
    """n batches of 4 windows of 12 tokens in which every token is followed by the next."""
    g = torch.Generator().manual_seed(2)
    starts = torch.randint(4, 40, (n, 4, 1), generator=g)
    return [{"input_ids": start + torch.arange(12)} for start in starts]


def zeros(model: Any) -> dict[str, Tensor]:
    """Where each weight of the blocks is zero."""
    return {n: (p == 0).clone() for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n}


def expect_pattern(model: Any, before: dict[str, Tensor], pattern: str) -> None:
    """Every zero is where it was, and there are as many as the pattern says."""
    after = zeros(model)
    assert before.keys() == after.keys() and len(after) == 14
    for name, cut in after.items():
        assert torch.equal(cut, before[name]), name
        groups = cut.unflatten(1, (-1, 4)).sum(2) if pattern == "2:4" else cut.sum(1)
        assert bool((groups == (2 if pattern == "2:4" else cut.shape[1] // 2)).all()), name
