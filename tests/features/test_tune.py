"""Fine-tuning the image tower from a head: both ends of the path are what they should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from secateur.apply.heads import Shots
from secateur.engine.train import Fit
from secateur.features import Data, accuracy, fit, texts_of, tune
from tests.features.tiny import NAMES, TinyTowers, pictures, words

HOW = Fit(epochs=3, batch=16, optimizer="adamw", lr=3e-3, weight_decay=0.0, clip=1.0)


@pytest.fixture
def source(tmp_path: Path) -> str:
    train, test = pictures(30, seed=1, noise=80), pictures(20, seed=2, noise=80)
    arrays = {"train_images": train.images, "train_labels": train.labels, "classes": np.array(NAMES)}
    np.savez(tmp_path / "s.npz", test_images=test.images, test_labels=test.labels, **arrays)
    return str(tmp_path / "s.npz")


def test_the_path_begins_zero_shot_and_its_middle_is_kept(source: str) -> None:
    towers, train, test = TinyTowers(), pictures(30, seed=1, noise=80), pictures(20, seed=2, noise=80)
    shots = Shots(towers.embed_images(train.images), torch.from_numpy(train.labels))
    fitted = fit("ridge_probe", Data(texts_of(towers, words()), words(), shots), shots=8)
    before = towers.tower.project.weight.detach().clone()
    clean = Shots(towers.embed_images(test.images), torch.from_numpy(test.labels))
    done = tune(fitted, cast(Any, towers), source, how=HOW, alpha=0.5, alphas=(0, 1))
    (path,) = done.accuracy.values()
    assert path["0"] == accuracy(fitted.zero, clean, 3), "at 0 nothing has been trained"
    assert set(path) == {"0", "0.5", "1"} and len(done.history) == 3
    assert done.history[-1]["loss"] < done.history[0]["loss"]
    assert torch.equal(towers.tower.project.weight, before), "the towers that were given stay"
    assert not torch.equal(done.towers.image_module().project.weight, before)
    after = Shots(done.towers.embed_images(test.images), clean.labels)
    assert accuracy(done.fitted.head, after, 3) == path["0.5"], "what is returned is the blend at alpha"
    assert done.fitted.model[1] == done.towers.digest != towers.digest
