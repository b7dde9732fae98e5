"""idx files, CIFAR's PNG sheets and class folders: what is written comes back, and damage is one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from secateur.errors import BadInput, Damaged, NoMatch
from secateur.io.image_files import CIFAR10_CLASSES, read_idx
from secateur.io.images import load_images


def idx_bytes(array: np.ndarray, kind: int = 8) -> bytes:
    lengths = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, kind, array.ndim]) + lengths + array.astype(np.uint8).tobytes()


def write_idx_set(
    folder: Path, dash: str = "-", zipped: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The four files of a set with 12 training and 5 test images of 6 x 6, and what was written."""
    random = np.random.default_rng(0)
    pixels, labels = {}, {}
    for split, prefix, count in (("train", "train", 12), ("test", "t10k", 5)):
        pixels[split] = random.integers(0, 256, (count, 6, 6), dtype=np.uint8)
        labels[split] = np.arange(count) % 10
        for part, array in (("images", pixels[split]), ("labels", labels[split])):
            data = idx_bytes(array)
            name = f"{prefix}-{part}{dash}idx{array.ndim}-ubyte{'.gz' if zipped else ''}"
            (folder / name).write_bytes(gzip.compress(data) if zipped else data)
    return pixels, labels


@pytest.mark.parametrize(("dash", "zipped"), [("-", False), (".", False), ("-", True)])
def test_the_four_files_come_back(tmp_path: Path, dash: str, zipped: bool) -> None:
    pixels, labels = write_idx_set(tmp_path, dash, zipped)
    for split in ("train", "test"):
        held = load_images(tmp_path, split)
        assert (held.images == pixels[split][..., None]).all() and (held.labels == labels[split]).all()
        assert held.images.flags.writeable  # torch warns of arrays that are not


@given(arrays(np.uint8, st.tuples(*[st.integers(0, 5)] * 3)), st.booleans())
def test_idx_there_and_back(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, zipped: bool
) -> None:
    path = tmp_path_factory.mktemp("idx") / ("x.gz" if zipped else "x")
    data = idx_bytes(array)
    path.write_bytes(gzip.compress(data) if zipped else data)
    got = read_idx(path, 3)
    assert got.shape == array.shape and (got == array).all()


WHOLE = idx_bytes(np.arange(24).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("data", "error", "line"),
    [
        (b"", Damaged, "does not start as an idx file"),
        (b"\x89PNG", Damaged, "does not start as an idx file"),
        (WHOLE[:9], Damaged, "does not hold"),
        (WHOLE[:-1], Damaged, r"does not hold the \[2, 3, 4\] values"),
        (WHOLE + b"\0", Damaged, r"does not hold the \[2, 3, 4\] values"),
        (b"\0\0\x08\x03" + b"\xff" * 12, Damaged, "does not hold"),
        (WHOLE.replace(b"\0\0\x08", b"\0\0\x0d", 1), BadInput, "kind 0x0d in 3 axes"),
        (idx_bytes(np.arange(4)), BadInput, "in 1 axes"),
    ],
)
def test_a_bad_idx_file_is_one_line(tmp_path: Path, data: bytes, error: type[Exception], line: str) -> None:
    for name, content in (("x", data), ("x.gz", gzip.compress(data))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(error, match=line):
            read_idx(tmp_path / name, 3)
    cut = gzip.compress(data)
    for broken in (cut[:-6], b"not gzip", cut[:12] + b"\xff\xff\xff" + cut[15:]):
        (tmp_path / "x.gz").write_bytes(broken)
        with pytest.raises((Damaged, error)):
            read_idx(tmp_path / "x.gz", 3)


def test_a_missing_idx_file_is_named(tmp_path: Path) -> None:
    write_idx_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    assert len(load_images(tmp_path, "train")) == 12
    with pytest.raises(NoMatch, match="t10k-labels-idx1-ubyte"):
        load_images(tmp_path)


def save(path: Path, pixels: np.ndarray, **options: Any) -> None:
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(pixels).save(path, **options)


CIFAR = np.random.default_rng(1).integers(0, 256, (7, 32, 32, 3), dtype=np.uint8)
NUMBERS = [3, 8, 8, 0, 6, 6, 1]


def test_sheets_with_a_label_file_each(tmp_path: Path) -> None:
    for name, part in (("test_a", slice(0, 4)), ("test_b", slice(4, 7)), ("train_a", slice(2, 5))):
        save(tmp_path / f"{name}.png", CIFAR[part].reshape(-1, 1024, 3))
        (tmp_path / f"{name}.labels.txt").write_text("".join(f"{n}\n" for n in NUMBERS[part]))
    held = load_images(tmp_path)
    assert (held.images == CIFAR).all() and held.labels.tolist() == NUMBERS
    assert held.classes == CIFAR10_CLASSES and held.classes[3] == "cat"
    assert (load_images(tmp_path, "train").images == CIFAR[2:5]).all()
    (tmp_path / "test_b.labels.txt").write_text("6\n6\n")
    with pytest.raises(BadInput, match=r"test_b.png: 3 images and 2 labels"):
        load_images(tmp_path)
    (tmp_path / "test_b.labels.txt").write_text("6\nsix\n1\n")
    with pytest.raises(BadInput, match=r"test_b.labels.txt: 'six' is no label"):
        load_images(tmp_path)
    (tmp_path / "test_b.labels.txt").unlink()
    with pytest.raises(NoMatch, match=r"neither test_b.labels.txt nor test_labels.json"):
        load_images(tmp_path)


@pytest.mark.parametrize("word", ["lables", "labels"])
def test_sheets_of_npm_with_one_list_for_all(tmp_path: Path, word: str) -> None:
    for i in range(3):
        save(tmp_path / f"data_batch_{i + 1}.png", CIFAR[2 * i : 2 * i + 2].reshape(-1, 1024, 3))
    save(tmp_path / "test_batch.png", CIFAR[6:].reshape(-1, 1024, 3))
    (tmp_path / f"train_{word}.json").write_text(json.dumps(NUMBERS[:6]))
    (tmp_path / f"test_{word}.json").write_text(json.dumps(NUMBERS[6:]))
    held = load_images(tmp_path, "train")
    assert (held.images == CIFAR[:6]).all() and held.labels.tolist() == NUMBERS[:6]
    assert load_images(tmp_path).labels.tolist() == NUMBERS[6:]
    (tmp_path / f"test_{word}.json").write_text("[1, 2]")
    with pytest.raises(BadInput, match="1 images and 2 labels"):
        load_images(tmp_path)
    (tmp_path / f"test_{word}.json").write_text("[true]")
    with pytest.raises(BadInput, match="no list of whole numbers"):
        load_images(tmp_path)


def test_a_sheet_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test_labels.json").write_text("[0]")
    with pytest.raises(NoMatch, match=r"no PNG sheet test\*.png"):
        load_images(tmp_path)
    for pixels, line in ((np.zeros((1, 1000, 3), np.uint8), "1000 pixels"), (CIFAR[0, ..., 0], "is L")):
        save(tmp_path / "test.png", pixels)
        with pytest.raises(BadInput, match=line):
            load_images(tmp_path)
    for data in (b"not a picture", (tmp_path / "test.png").read_bytes()[:-30]):
        (tmp_path / "test.png").write_bytes(data)
        with pytest.raises(Damaged, match="not a readable image") as caught:
            load_images(tmp_path)
        assert " at 0x" not in str(caught.value)


def test_class_folders(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for i, name in enumerate(["ant", "bee", "ant", "cat", "cat", "cat"]):
        save(root / "test" / name / f"{i}.png", CIFAR[i])
    save(root / "train" / "ant" / "0.png", CIFAR[6])
    (root / "test" / "bee" / "readme.txt").write_text("no image")
    (root / "test" / "dog").mkdir()
    held = load_images(root)
    assert held.classes == ("ant", "bee", "cat", "dog") and held.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert (held.images == CIFAR[[0, 2, 1, 3, 4, 5]]).all()
    assert load_images(root, limit=3).labels.tolist() == [0, 1, 2]
    assert (load_images(root, "train").images == CIFAR[6:]).all()
    # the same folder without a split is a test set, and is not trained on
    assert (load_images(root / "test").images == held.images).all()
    with pytest.raises(NoMatch, match="which is a test set"):
        load_images(root / "test", "train")
    (root / "train").rename(root / "val")
    with pytest.raises(NoMatch, match="holds no folder train"):
        load_images(root, "train")


def test_class_folders_of_many_sizes_are_fitted(tmp_path: Path) -> None:
    ramp = np.repeat(np.arange(0, 240, 5, dtype=np.uint8)[None, :, None], 24, axis=0).repeat(3, 2)  # 24 x 48
    save(tmp_path / "a" / "wide.png", ramp)
    save(tmp_path / "a" / "tall.png", ramp.transpose(1, 0, 2))
    save(tmp_path / "b" / "grey.png", ramp[:, :24, 0])
    with pytest.raises(BadInput, match="give size="):
        load_images(tmp_path)
    held = load_images(tmp_path, size=12)
    assert held.images.shape == (3, 12, 12, 3)
    tall, wide, _ = held.images
    assert (tall == wide.transpose(1, 0, 2)).all()
    # 48 columns become 24, the middle 12 of them are columns 12 to 36 of the ramp
    np.testing.assert_allclose(wide[6, :, 0], np.arange(62.5, 177, 10), atol=2)
    (tmp_path / "b" / "grey.png").write_bytes(b"nothing")
    with pytest.raises(Damaged, match=r"grey.png: is not a readable image \(of no kind"):
        load_images(tmp_path, size=12)
    for name in ("a/wide.png", "a/tall.png", "b/grey.png"):
        (tmp_path / name).unlink()
    with pytest.raises(BadInput, match="holds no image in a class folder"):
        load_images(tmp_path)


def test_cifar10_small(shared_data: Path) -> None:
    pytest.importorskip("PIL")
    test, train = (load_images(shared_data / "cifar10_small", split) for split in ("test", "train"))
    assert test.images.shape == (2000, 32, 32, 3) and len(train) == 1000
    assert [test.classes[i] for i in test.labels[:4]] == ["cat", "ship", "ship", "airplane"]
    assert [train.classes[i] for i in train.labels[:2]] == ["frog", "truck"]
    # neighbouring pixels of a photograph are alike, along both axes: the sheet was cut up rightly
    smooth = test.images.astype(np.int16)
    assert all(np.abs(np.diff(smooth, axis=axis)).mean() < 20 for axis in (1, 2))
    assert test.digest().startswith("79c5839497980e8e")
