"""Heads on corrupted images: the same figures as by hand, and clean ones first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from secateur.apply.heads import Shots, blend
from secateur.features import Data, accuracy, evaluate_corrupted, fit, texts_of
from secateur.robustness.corrupt import corrupt
from tests.features.tiny import NAMES, TinyTowers, pictures, words


@pytest.fixture
def source(tmp_path: Path) -> str:
    test = pictures(20, seed=2)
    np.savez(tmp_path / "s.npz", images=test.images, labels=test.labels, classes=np.array(NAMES))
    return str(tmp_path / "s.npz")


def test_every_cell_is_the_accuracy_on_those_corrupted_images(source: str) -> None:
    towers, train = TinyTowers(), pictures(20, seed=1)
    shots = Shots(towers.embed_images(train.images), torch.from_numpy(train.labels))
    fitted = fit("ridge_probe", Data(texts_of(towers, words()), words(), shots), shots=8)
    found = evaluate_corrupted(
        fitted, towers, source, names=["gaussian_noise", "contrast"], severities=[1, 5], alphas=[0, 0.5]
    )
    assert set(found) == {"0", "0.5"} and set(found["0"]["corruptions"]) == {"gaussian_noise", "contrast"}
    test = pictures(20, seed=2)
    noisy = towers.embed_images(corrupt(test.images, "gaussian_noise", 5))
    wanted = accuracy(blend(fitted.head, fitted.zero, 0.5), Shots(noisy, torch.from_numpy(test.labels)), 3)
    assert found["0.5"]["corruptions"]["gaussian_noise"]["5"] == wanted
    cells = [value for row in found["0.5"]["corruptions"].values() for value in row.values()]
    assert found["0.5"]["robust"] == pytest.approx(sum(cells) / 4)
    assert found["0"]["clean"] > 0.7
