from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from secateur.errors import BadInput
from secateur.losses.jsd import JSDLoss, jsd


def oracle(logits: list[Tensor]) -> float:
    """Sum by sum."""
    total = 0.0
    for row in range(len(logits[0])):
        ps = [one[row].double().softmax(0).tolist() for one in logits]
        middle = [max(sum(column) / len(ps), 1e-7) for column in zip(*ps, strict=True)]
        total += sum(p * math.log(p / m) for one in ps for p, m in zip(one, middle, strict=True) if p) / len(
            ps
        )
    return total / len(logits[0])


def logits(count: int, seed: int = 0) -> list[Tensor]:
    stream = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 7, generator=stream) * 2 for _ in range(count)]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_it_equals_its_slow_rendering(count: int) -> None:
    given = logits(count)
    assert float(jsd(given)) == pytest.approx(oracle(given), rel=1e-5)
    assert float(jsd(given[::-1])) == pytest.approx(float(jsd(given)), rel=1e-6)


def test_agreement_is_0_and_disagreement_ln_of_the_count() -> None:
    same = logits(1)[0]
    assert float(jsd([same, same.clone(), same.clone()])) == pytest.approx(0, abs=1e-6)
    sure = [torch.eye(3)[i].repeat(4, 1) * 100 for i in range(3)]
    assert float(jsd(sure)) == pytest.approx(math.log(3), rel=1e-5)


def test_half_precision_is_raised_and_gradients_are_finite() -> None:
    given = [torch.tensor([[1e4, -1e4]], requires_grad=True), torch.tensor([[-1e4, 1e4]], requires_grad=True)]
    jsd(given).backward()
    assert all(one.grad is not None and torch.isfinite(one.grad).all() for one in given)
    assert jsd([one.bfloat16() for one in logits(2)]).dtype == torch.float32


def test_the_loss_adds_the_cross_entropy_of_the_clean_image_alone() -> None:
    clean, *augmented = logits(3)
    labels = torch.tensor([0, 1, 2, 3, 6])
    entropy = torch.nn.functional.cross_entropy(clean, labels)
    wanted = float(entropy) + 12 * oracle([clean, *augmented])
    assert float(JSDLoss()(clean, augmented, labels)) == pytest.approx(wanted, rel=1e-5)
    assert float(JSDLoss(0)(clean, augmented, labels)) == pytest.approx(float(entropy))


def test_bad_input() -> None:
    with pytest.raises(BadInput, match="two or more"):
        jsd(logits(1))
    with pytest.raises(BadInput, match="one shape"):
        jsd([torch.zeros(2, 3), torch.zeros(2, 4)])
    for weight in (-1.0, math.nan, math.inf):
        with pytest.raises(BadInput, match="12"):
            JSDLoss(weight)
