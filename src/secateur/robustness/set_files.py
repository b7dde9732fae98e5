"""The files of a corrupted set (sets.py): .npy arrays written in parts, mapped back, and a manifest of them.

The manifest carries its own digest and can be written in one way only, so that a flipped bit in it shows.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from secateur.errors import BadInput, Damaged, Unsupported
from secateur.io.files import MANIFEST, inside, open_regular, read_small, stray_name, sync_folder
from secateur.io.header import strict_json
from secateur.robustness.severities import EXTRA, NAMES

Array = np.ndarray
FORMAT, VERSION = "secateur.corrupted-set", 1
AGAIN = "remove the folder and make the set again"
FACTS = ("table", "seed", "count", "shape", "source", "labels", "frost")
"""What decides the bytes of a set, as the manifest holds it."""


def write_array(path: Path, shape: tuple[int, ...], kind: str, parts: Iterator[Array]) -> dict[str, Any]:
    """Write an .npy in parts, whole or not at all; its entry for the manifest."""
    temp, sha, size = path.parent / stray_name(path.name, "tmp"), hashlib.sha256(), 0
    try:
        with open(temp, "xb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": kind, "fortran_order": False, "shape": shape}
            )
            file.flush()
            sha.update(temp.read_bytes())
            for part in parts:
                data = np.ascontiguousarray(part, dtype=kind).tobytes()
                file.write(data)
                sha.update(data)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        os.replace(temp, path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return {"bytes": size, "sha256": sha.hexdigest()}


def map_array(path: Path) -> Array:
    """A read-only map of an .npy. Damaged: it is missing, cut short, or holds objects."""
    try:
        os.close(open_regular(path))  # a pipe could block for ever
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise Damaged("is missing", where=str(path), fix=AGAIN) from error
    except (ValueError, EOFError, TypeError, SyntaxError) as error:
        raise Damaged(
            "is no whole .npy file of numbers", where=str(path), fix="fetch or make it again"
        ) from error
    if not isinstance(found, np.ndarray):
        raise Damaged("is no .npy file", where=str(path), fix="fetch or make it again")
    return found


def read_labels(path: Path) -> Array:
    """The labels of one severity; all five must be the same."""
    stacked = np.asarray(map_array(path))
    blocks = stacked.reshape(5, -1) if stacked.ndim == 1 and len(stacked) and len(stacked) % 5 == 0 else None
    if blocks is None or not np.issubdtype(stacked.dtype, np.integer) or (blocks != blocks[0]).any():
        raise Damaged(
            "are not the same labels for five severities", where=str(path), fix="fetch or make them again"
        )
    return blocks[0].astype(np.int64)


def check_digest(path: Path, known: dict[str, Any]) -> None:
    try:
        fd = open_regular(path)
    except FileNotFoundError as error:
        raise Damaged("is missing", where=str(path), fix=AGAIN) from error
    with os.fdopen(fd, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    if size != known["bytes"] or found != known["sha256"]:
        raise Damaged("is damaged (sha256 differs from the manifest's)", where=str(path), fix=AGAIN)


def render(body: dict[str, Any]) -> str:
    def dump(value: Any) -> str:
        return json.dumps(value, ensure_ascii=True, sort_keys=True, indent=1)

    return dump({**body, "sha256": hashlib.sha256(dump(body).encode()).hexdigest()}) + "\n"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    path = folder / MANIFEST
    if not path.exists() and not path.is_symlink():
        return None
    where = str(path)
    data = read_small(inside(folder, MANIFEST))
    body = strict_json(data, where)
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise BadInput("is not the manifest of a corrupted set", where=where, fix="choose another folder")
    body.pop("sha256", None)
    if render(body).encode(errors="replace") != data:
        raise Damaged("was altered: it does not match its own sha256", where=where, fix=AGAIN)
    if body.get("version") != VERSION:
        raise Unsupported(
            f"has version {body.get('version')!r:.20}, this secateur reads {VERSION}", where=where
        )
    try:
        whole = _is_whole(body)
    except (TypeError, KeyError, AttributeError):
        whole = False
    if not whole:
        raise Damaged("is malformed", where=where, fix=AGAIN)
    return body


def _is_whole(body: dict[str, Any]) -> bool:
    """A manifest with a right digest may still have been made to mislead."""
    known = {f"{name}.npy" for name in ("labels", *NAMES, *EXTRA)}
    return (
        "labels.npy" in body["files"]
        and set(body["files"]) <= known
        and all(type(e["bytes"]) is int and isinstance(e["sha256"], str) for e in body["files"].values())
        and all(key in body for key in FACTS)
        and isinstance(body["label"], str)
        and len(body["shape"]) == 3
        and all(type(side) is int for side in body["shape"])
    )


def versions() -> dict[str, str]:
    """Versions of what makes the bytes."""
    found = {}
    for name in ("secateur", "numpy", "pillow"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
