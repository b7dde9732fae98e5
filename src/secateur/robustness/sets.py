"""Corrupted copies of a test set on disk, in CIFAR-C's layout, and the published folders of that layout as they are.

    fog.npy        uint8 [5 N, H, W, C]: severities 1 to 5, N images each          one file a corruption
    labels.npy     int64 [5 N]: the labels, five times
    manifest.json  sha256 of every file and of the source images, table, seed, versions, "secateur rendering"

A file is written under a hidden name, synced and renamed, and then enters the manifest, so that a killed run leaves
whole files and the next goes on with what is missing. What the manifest does not fit, or whose bytes are not the
manifest's, is refused. Arrays are read as maps of the file, never by pickle.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from secateur.engine.events import Event, Listener, silent
from secateur.errors import BadInput, Damaged, nearest
from secateur.io.files import MANIFEST, inside, lock, sweep, write_atomic
from secateur.robustness.corrupt import RENDERING, corrupt, pieces, to_array, unit
from secateur.robustness.draws import check_seed
from secateur.robustness.frost import photo_files
from secateur.robustness.set_files import (
    AGAIN,
    FACTS,
    FORMAT,
    VERSION,
    check_digest,
    map_array,
    read_labels,
    read_manifest,
    render,
    versions,
    write_array,
)
from secateur.robustness.severities import EXTRA, NAMES, SEVERITIES, TABLES, check_name, parameters

Array = np.ndarray
PUBLISHED = "published set"
_AT_ONCE = 1 << 24  # values written at once


@dataclass(frozen=True, eq=False)
class CorruptedSet:
    """A folder of corrupted copies. label: `RENDERING` or `PUBLISHED`; labels int64 [N]; count: N; shape: (H, W, C)."""

    folder: Path
    label: str
    names: tuple[str, ...]
    labels: Array
    shape: tuple[int, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    _checked: set[str] = field(default_factory=set, repr=False)

    @property
    def count(self) -> int:
        return len(self.labels)

    def images(self, name: str, severity: int) -> Array:
        """uint8 [N, H, W, C], read-only, mapped from disk. The first look at a file of ours checks its sha256.

        Raises:
            BadInput: the set does not hold it.   Damaged: the file is not what the manifest says, or of another shape.
        """
        parameters(name, severity, "cifar-c")
        if name not in self.names:
            raise BadInput(f"does not hold {name}", where=str(self.folder), fix=nearest(name, self.names))
        path = inside(self.folder, f"{name}.npy")
        if self.files and name not in self._checked:
            check_digest(path, self.files[path.name])
        self._checked.add(name)
        stacked = map_array(path)
        if stacked.dtype != np.uint8 or stacked.shape != (5 * self.count, *self.shape):
            raise Damaged(
                f"is {stacked.dtype} {list(stacked.shape)}, not uint8 {[5 * self.count, *self.shape]}",
                where=str(path),
                fix=AGAIN if self.files else "fetch the published files again",
            )
        return stacked[(severity - 1) * self.count : severity * self.count]


def make_set(
    images: Any,
    labels: Any,
    folder: str | Path,
    *,
    table: str = "cifar-c",
    names: Sequence[str] = NAMES,
    seed: int = 0,
    frost_images: str | Path | None = None,
    listen: Listener = silent,
) -> CorruptedSet:
    """The set of these images in `folder`: what is there and fits is reused, what is missing is made.

    Args:
        images: as for `corrupt`; floats are rounded to 8 bits. labels: int [N].
        folder: a new one, or one that an earlier call wrote for the same images, labels, table and seed.
        listen: told after each corruption.

    Raises:
        BadInput: the folder is another set, or something else; images, labels or names that are none.
        Damaged: a file or the manifest was altered.   Locked: another process writes the folder.
    """
    folder = Path(folder)
    for name in names:
        check_name(name)
    source, wanted = eight_bits(images), check_labels(labels, len(images))
    facts = _facts(source, wanted, table, seed, frost_images)
    _prepare(folder)
    with lock(folder):
        sweep(folder)
        body = read_manifest(folder)
        if body is None:
            entry = write_array(
                folder / "labels.npy", (5 * len(wanted),), "<i8", (wanted for _ in SEVERITIES)
            )
            body = {
                "format": FORMAT,
                "version": VERSION,
                "label": RENDERING,
                **facts,
                "files": {"labels.npy": entry},
            }
            write_atomic(folder / MANIFEST, render(body))
        _check_fits(body, facts, folder)
        for done, name in enumerate(names, 1):
            path = folder / f"{name}.npy"
            if path.name not in body["files"]:
                parts = _corrupted(source, name, table, seed, frost_images)
                entry = write_array(path, (5 * len(source), *source.shape[1:]), "|u1", parts)
                body["files"][path.name] = {**entry, "versions": versions()}
                write_atomic(folder / MANIFEST, render(body))
            listen(Event("corrupted set", done, len(names), name))
    return open_set(folder)


def open_set(folder: str | Path) -> CorruptedSet:
    """A folder that `make_set` wrote, or one of the published layout (labels.npy and name.npy, no manifest).

    Raises:
        BadInput: it is neither.   Damaged: manifest or labels are not what they should be.   Unsupported: a newer
        format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput("is no folder", where=str(folder), fix="give the folder that holds labels.npy")
    body = read_manifest(folder)
    if body is None:
        return _open_published(folder)
    path = inside(folder, "labels.npy")
    check_digest(path, body["files"]["labels.npy"])
    labels = read_labels(path)
    names = tuple(name for name in NAMES + EXTRA if f"{name}.npy" in body["files"])
    facts = {key: body[key] for key in FACTS}
    return CorruptedSet(folder, body["label"], names, labels, tuple(body["shape"]), facts, body["files"])


def _open_published(folder: Path) -> CorruptedSet:
    names = tuple(name for name in NAMES + EXTRA if (folder / f"{name}.npy").exists())
    if not names or not (folder / "labels.npy").exists():
        raise BadInput(
            "holds no corrupted set",
            where=str(folder),
            fix="give a folder with labels.npy and files such as fog.npy",
        )
    labels = read_labels(inside(folder, "labels.npy"))
    first = map_array(inside(folder, f"{names[0]}.npy"))
    return CorruptedSet(folder, PUBLISHED, names, labels, first.shape[1:])


# -- what is asked for ----------------------------------------------------------------------------------------------


def eight_bits(images: Any) -> Array:
    """uint8 [N, H, W, C] of images of any kind `corrupt` takes; floats are rounded to the nearest level."""
    found = to_array(images)
    if found.dtype == np.uint8:
        return found
    out = np.empty(found.shape, np.uint8)
    for start, stop in pieces(found, _AT_ONCE):
        out[start:stop] = np.rint(unit(found[start:stop]) * np.float32(255))
    return out


def check_labels(labels: Any, count: int) -> Array:
    """int64 [N]; BadInput where they are not whole numbers from 0 on, one an image."""
    found = np.asarray(labels)
    if found.shape != (count,) or not np.issubdtype(found.dtype, np.integer) or found.min() < 0:
        raise BadInput(
            f"{found.dtype} {list(found.shape)} for {count} images",
            where="labels",
            fix="give one class number each",
        )
    return found.astype(np.int64)


def _corrupted(source: Array, name: str, table: str, seed: int, frost_images: Any) -> Iterator[Array]:
    for severity in SEVERITIES:
        for start, stop in pieces(source, _AT_ONCE):
            yield corrupt(
                source[start:stop],
                name,
                severity,
                table=table,
                seed=seed,
                first=start,
                frost_images=frost_images,
            )


def _facts(source: Array, labels: Array, table: str, seed: int, frost_images: Any) -> dict[str, Any]:
    """What decides the bytes of a set."""
    check_seed(seed)
    if table not in TABLES:
        raise BadInput(f"{table!r:.60} is no table", where="table", fix=f"use {' or '.join(TABLES)}")
    photos = "drawn"
    if frost_images is not None:
        sha = hashlib.sha256()
        for path in photo_files(frost_images):
            sha.update(hashlib.sha256(path.read_bytes()).digest())
        photos = sha.hexdigest()
    digest = hashlib.sha256()
    for start, stop in pieces(source, _AT_ONCE):
        digest.update(np.ascontiguousarray(source[start:stop]).data)
    return {
        "table": table, "seed": int(seed), "count": len(source), "shape": list(source.shape[1:]),
        "source": digest.hexdigest(), "labels": hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest(),
        "frost": photos,
    }  # fmt: skip


def _check_fits(body: dict[str, Any], facts: dict[str, Any], folder: Path) -> None:
    words = {"source": "images", "frost": "frost photos"}
    for key, value in facts.items():
        if body[key] != value:
            what = f"{words.get(key, key)} of the set there differ"
            if key in ("table", "seed", "count"):
                what = f"{key} of the set there is {body[key]!r}, not {value!r}"
            raise BadInput(what, where=str(folder), fix="choose another folder for this set")


def _prepare(folder: Path) -> None:
    """Make the folder; refuse one that holds what no call of ours wrote."""
    if folder.exists() and not folder.is_dir():
        raise BadInput("exists and is not a folder", where=str(folder), fix="choose another place")
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / MANIFEST).exists():
        return
    ours = {f"{name}.npy" for name in ("labels", *NAMES, *EXTRA)}
    seen = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    # Only labels.npy can be there before the manifest, when a kill came between the two.
    if seen and seen != ["labels.npy"]:
        what = "holds a set without our manifest" if set(seen) <= ours else f"holds {seen[0]!r:.80}"
        raise BadInput(what, where=str(folder), fix="choose an empty folder")
