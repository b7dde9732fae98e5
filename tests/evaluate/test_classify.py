"""Accuracy and logits by hand, modes and devices restored, and one line for what cannot be counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.errors import BadInput, Unsupported
from secateur.evaluate.classify import accuracy, logits, to_batch


class Corner(nn.Module):
    """Logits are the first pixel's channels; it looks at how it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.inner = nn.Dropout(0.5)
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training and not self.inner.training and not torch.is_grad_enabled()
        assert x.dtype == torch.float32 and x.is_contiguous() and x.min() >= 0 and x.max() <= 1
        self.sizes.append(len(x))
        return self.inner(x[:, :, 0, 0]) * self.scale


def corners(colours: list[tuple[int, int, int]]) -> np.ndarray:
    images = np.full((len(colours), 2, 5, 3), 77, np.uint8)
    images[:, 0, 0] = colours
    return images


COLOURS = [(255, 0, 0), (0, 255, 3), (0, 0, 51), (9, 9, 2), (1, 2, 2)]
IMAGES = corners(COLOURS)


@pytest.mark.parametrize("batch", [1, 2, 5, 256])
def test_by_hand(batch: int) -> None:
    model = Corner()
    got = logits(model, IMAGES, batch)
    assert got.dtype == torch.float32 and not got.requires_grad
    torch.testing.assert_close(got, torch.tensor(COLOURS) / 255)
    assert sum(model.sizes) == 5 and max(model.sizes) == min(batch, 5)
    # (9, 9, 2): the first of two equal logits counts
    assert accuracy(model, IMAGES, np.array([0, 1, 2, 0, 0]), batch) == 0.8
    assert accuracy(model, IMAGES, torch.tensor([1, 0, 0, 1, 1], dtype=torch.uint8), batch) == 0.2


def oracle(table: np.ndarray, labels: list[int]) -> float:
    """Counted one by one."""
    right = 0
    for row, label in zip(table, labels, strict=True):
        right += max(range(3), key=lambda c: (row[c], -c)) == label
    return right / len(labels)


@given(
    st.lists(st.tuples(*[st.integers(0, 3)] * 3, st.integers(0, 2)), min_size=1, max_size=20),
    st.integers(1, 25),
)
def test_accuracy_is_counted(rows: list[tuple[int, int, int, int]], batch: int) -> None:
    colours = [row[:3] for row in rows]
    labels = [row[3] for row in rows]
    assert accuracy(Corner(), corners(colours), np.array(labels), batch) == oracle(np.array(colours), labels)


def test_modes_come_back_even_after_a_failure() -> None:
    model = Corner()
    model.train()
    model.inner.eval()
    seen: list[tuple[int, int]] = []
    logits(model, IMAGES, 2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert model.training and not model.inner.training
    model.forward = lambda x: (_ for _ in ()).throw(RuntimeError("stop"))  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="stop"):
        logits(model, IMAGES)
    assert model.training and not model.inner.training and torch.is_grad_enabled()


def test_batch_norm_statistics_stay() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(30, 4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits(model, IMAGES)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_floats_pass_and_bytes_are_scaled() -> None:
    scaled = to_batch(IMAGES)
    assert scaled.shape == (5, 3, 2, 5) and scaled.is_contiguous()
    assert torch.equal(scaled, torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).astype(np.float32)) / 255)
    assert torch.equal(to_batch(torch.from_numpy(IMAGES.copy())), scaled)
    assert to_batch(scaled) is scaled and torch.equal(logits(Corner(), scaled), logits(Corner(), IMAGES))
    locked = IMAGES[::-1]
    locked.flags.writeable = False
    assert torch.equal(to_batch(locked), scaled.flip(0))


def test_nan_names_the_batch_and_the_tensor() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(30, 3))
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    with pytest.raises(BadInput, match=r"1.weight: logits of batch 0 \(images 0 to 1\) hold NaN or Inf"):
        logits(model, IMAGES, 2)

    class Third(Corner):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / (0.0 if len(self.sizes) == 3 else 1.0)

    with pytest.raises(BadInput, match=r"the model: logits of batch 2 \(images 4 to 4\)"):
        accuracy(Third(), IMAGES, np.zeros(5, int), 2)


def test_minus_infinity_is_a_class_ruled_out() -> None:
    class Masked(Corner):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.tensor([-torch.inf, 0.0, 0.0])

    assert accuracy(Masked(), IMAGES, np.array([1, 1, 2, 1, 1])) == 1.0


def test_models_that_are_no_classifiers() -> None:
    class Wrapped(Corner):
        def forward(self, x: Tensor) -> Any:
            return SimpleNamespace(logits=super().forward(x))

    assert torch.equal(logits(Wrapped(), IMAGES), logits(Corner(), IMAGES))
    with pytest.raises(Unsupported, match=r"Identity: gives \[5, 3, 2, 5\] for 5 images"):
        logits(nn.Identity(), IMAGES)
    with pytest.raises(Unsupported, match="Sequential: gives"):
        logits(nn.Sequential(nn.Flatten(0, 1), nn.Flatten()), IMAGES)


@pytest.mark.parametrize(
    ("images", "labels", "changes", "line"),
    [
        (IMAGES[:0], [], {}, "there are no images"),
        (IMAGES, [0] * 4, {}, "5 images and 4 labels"),
        (IMAGES, [0, 1, 2, 3, 0], {}, "label 3, and the model knows 3 classes"),
        (IMAGES, [0, -1, 2, 0, 0], {}, "label -1"),
        (IMAGES, [0.0] * 5, {}, "labels are torch.float"),
        (IMAGES, [[0]] * 5, {}, r"of shape \[5, 1\]"),
        (IMAGES / 255, [0] * 5, {}, r"images are float64 of shape \[5, 2, 5, 3\]"),
        (IMAGES.astype(object), [0] * 5, {}, "images are object"),
        (IMAGES[..., 0], [0] * 5, {}, r"give uint8 \[N, H, W, C\]"),
        (IMAGES, [0] * 5, {"batch": 0}, "batch: 0 images at a time"),
        (IMAGES, [0] * 5, {"device": "abacus"}, "device: no device 'abacus' here"),
    ],
)
def test_bad_input_is_one_line(
    images: np.ndarray, labels: list[Any], changes: dict[str, Any], line: str
) -> None:
    with pytest.raises(BadInput, match=line) as caught:
        accuracy(Corner(), images, np.array(labels, dtype=int if labels == [] else None), **changes)
    assert "\n" not in str(caught.value)


def test_a_device_is_used_and_left_again() -> None:
    model = Corner()
    homes: list[str] = []
    model.register_forward_pre_hook(lambda module, given: homes.append(given[0].device.type))
    assert torch.equal(logits(model, IMAGES, device="cpu"), logits(model, IMAGES))
    if torch.cuda.is_available():
        logits(model, IMAGES, device="cuda")
        assert homes[-1] == "cuda"
    assert homes[0] == "cpu" and next(model.parameters()).device.type == "cpu"
