"""What a fit stands on: texts, shots, their order, and one line for whatever does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from secateur.apply.heads import Shots
from secateur.errors import BadInput, NoMatch
from secateur.features import SEVEN, draw, gather, gather_arrays, texts_of
from secateur.features.data import class_places
from tests.features.tiny import NAMES, TinyTowers, pictures, words


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Both splits as an .npz."""
    train, test = pictures(30, seed=1), pictures(20, seed=2)
    arrays = {"train_images": train.images, "train_labels": train.labels, "classes": np.array(NAMES)}
    np.savez(tmp_path / "shapes.npz", test_images=test.images, test_labels=test.labels, **arrays)
    return str(tmp_path / "shapes.npz")


def test_prompts_are_the_mean_over_the_templates() -> None:
    towers = TinyTowers()
    found = texts_of(towers, words(), SEVEN)
    each = torch.stack([towers.embed_texts([template.format("bar")])[0] for template in SEVEN])
    torch.testing.assert_close(found.prompts[1], F.normalize(each.mean(0), dim=0))
    torch.testing.assert_close(found.rows, towers.embed_texts(list(words().words)))
    assert found.owner.tolist() == [0, 0, 1, 1, 2, 2] and found.scale == 20.0


@pytest.mark.parametrize("templates", [(), ("a photo",), ("{} and {}",)])
def test_templates_need_one_place_for_the_class(templates: tuple[str, ...]) -> None:
    with pytest.raises(BadInput, match="template"):
        texts_of(TinyTowers(), words(), templates)


def test_gather_embeds_both_splits_and_shifted_sets(source: str, tmp_path: Path) -> None:
    towers = TinyTowers()
    heard: list[str] = []
    cache = tmp_path / "cache"
    data = gather(
        towers, words(), source, shifted=[source], cache=cache, listen=lambda event: heard.append(event.stage)
    )
    assert data.train is not None and len(data.train) == 90
    assert [len(shots) for shots in data.tests.values()] == [60, 60]
    assert list(data.tests)[1].endswith(" 2"), "two sets of one name stay two"
    assert data.pictures is not None
    torch.testing.assert_close(data.train.embeddings, towers.embed_images(pictures(30, seed=1).images))
    assert any(stage.startswith("embed ") for stage in heard)

    def refuse(images: Any) -> Any:
        raise AssertionError("everything is in the cache")

    towers.embed_images = refuse  # type: ignore[method-assign]
    again = gather(towers, words(), source, cache=cache)
    assert again.train is not None and torch.equal(again.train.embeddings, data.train.embeddings)


def test_labels_follow_the_names_of_the_classes_not_their_order() -> None:
    shuffled = replace(pictures(2), classes=("cross", "disc", "bar"))
    assert class_places(shuffled, NAMES).tolist() == [2, 2, 0, 0, 1, 1]
    with pytest.raises(NoMatch, match="images of 'ring', a class without descriptor"):
        class_places(replace(pictures(2), classes=("disc", "bar", "ring")), NAMES)


def test_stored_arrays_need_no_model(tmp_path: Path) -> None:
    towers, images = TinyTowers(), pictures()
    for name, value in {
        "rows": 3 * towers.embed_texts(list(words().words)),
        "prompts": towers.embed_texts(list(NAMES)),
        "train": 2 * towers.embed_images(images.images),
    }.items():
        np.save(tmp_path / f"{name}.npy", value.numpy())
    np.save(tmp_path / "labels.npy", images.labels)
    pair = (tmp_path / "train.npy", tmp_path / "labels.npy")
    data = gather_arrays(
        words(), tmp_path / "rows.npy", tmp_path / "prompts.npy", pair, {"test": pair}, scale=5
    )
    assert data.train is not None and data.texts.scale == 5 and data.pictures is None
    torch.testing.assert_close(data.train.embeddings, towers.embed_images(images.images))
    torch.testing.assert_close(data.tests["test"].embeddings, data.train.embeddings)
    with pytest.raises(BadInput, match="3 rows for 6"):
        gather_arrays(words(), tmp_path / "prompts.npy", tmp_path / "prompts.npy")


def test_shots_are_drawn_by_class_and_seed() -> None:
    images = pictures(20)
    shots = Shots(TinyTowers().embed_images(images.images), torch.from_numpy(images.labels))
    found = draw(shots, 4, seed=3)
    assert torch.bincount(found.labels).tolist() == [4, 4, 4]
    assert torch.equal(found.embeddings, draw(shots, 4, seed=3).embeddings)
    assert not torch.equal(found.embeddings, draw(shots, 4, seed=4).embeddings)
    with pytest.raises(BadInput, match="disc: 20 images, 21 shots asked for"):
        draw(shots, 21, classes=NAMES)
