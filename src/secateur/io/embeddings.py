"""Embeddings: what a model says of images and texts, computed once and kept; stored ones come through array_files.py.

    CACHE/KEY/rows.npy         float32 [n, d], a unit row for each image or text
    CACHE/KEY/manifest.json    size and sha256, looked at before the rows are used
    KEY                        sha256 of the model's digest and of what was embedded, so nothing is ever stale

Rows are appended batch by batch to a hidden folder beside it, and a record (rows so far, their sha256) is replaced
after each: a killed run goes on behind its last whole batch and ends with the same bytes. A part that is not what its
record says, or was made in batches of another size, is computed again; a finished folder that is damaged is refused,
with the name of what to remove.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from secateur.errors import BadInput, Damaged
from secateur.io.array_files import map_array, read_array, read_labels, write_array
from secateur.io.files import new_folder, read_small, write_atomic
from secateur.io.header import strict_json
from secateur.io.images import Images
from secateur.io.manifest import check_manifest, read_manifest, write_manifest

if TYPE_CHECKING:
    from secateur.io.towers import Towers

__all__ = ["embed_images", "embed_texts", "read_array", "read_labels", "unit_rows", "write_array"]

ROWS, PROGRESS = "rows.npy", "progress.json"
_UNIT = 1e-3  # how far from 1 the length of a model's row may be
_AT_ONCE = 1 << 13  # rows normalised together

Tell = Callable[[int, int], None]


# -- through a model --------------------------------------------------------------------------------------------------


def embed_images(
    towers: Towers, images: Images, cache: Path | None = None, batch: int = 64, tell: Tell | None = None
) -> Tensor:
    """float32 [n, d], a unit row for each image; with `cache` a private map of the file that holds them.

    Args:
        cache: folder of all that was ever embedded; made if it is not there. None: nothing is kept.
        batch: images a step, and what a killed run can lose.
        tell: called with (images done, all images) after every batch.

    Raises:
        BadInput: the model gave a row that is not finite or not of length 1 (named by its number), or other widths.
        Damaged: what the cache holds is not what was written.   Locked: another process embeds the same.
    """

    def make(start: int, stop: int) -> Tensor:
        return towers.embed_images(images.images[start:stop])

    key = _key("images", towers.digest, images.digest())
    return _embed(towers, make, len(images), images.name, key, cache, batch, tell)


def embed_texts(
    towers: Towers,
    words: Sequence[str],
    cache: Path | None = None,
    batch: int = 256,
    tell: Tell | None = None,
) -> Tensor:
    """float32 [n, d], a unit row for each text. As `embed_images` in everything else."""
    words = list(words)

    def make(start: int, stop: int) -> Tensor:
        return towers.embed_texts(words[start:stop])

    key = _key("texts", towers.digest, *words)
    return _embed(towers, make, len(words), "texts", key, cache, batch, tell)


def unit_rows(values: Tensor, where: str = "embeddings") -> Tensor:
    """x / ||x|| for every row, float32 [n, d]; lengths are taken in float64, some thousand rows at a time.

    Raises:
        BadInput: not floats [n, d], or a row that is zero or holds NaN or Inf, named by its number (from 0).
    """
    if values.ndim != 2 or not values.is_floating_point():
        raise BadInput(f"{values.dtype} {tuple(values.shape)}", where=where, fix="give floats [n, d]")
    out = torch.empty(values.shape, dtype=torch.float32, device=values.device)
    for start in range(0, len(values), _AT_ONCE):
        part = values[start : start + _AT_ONCE].double()
        lengths = part.norm(dim=1, keepdim=True)
        _refuse_rows(lengths.flatten(), start, where)
        out[start : start + _AT_ONCE] = part / lengths
    return out


# -- the cache --------------------------------------------------------------------------------------------------------


def _embed(
    towers: Towers,
    make: Callable[[int, int], Tensor],
    count: int,
    what: str,
    key: str,
    cache: Path | None,
    batch: int,
    tell: Tell | None,
) -> Tensor:
    """Rows 0..count of `make`, from the cache where they are there."""
    if type(batch) is not int or batch < 1:
        raise BadInput(f"{batch!r:.40} is not a count", where="batch", fix="give at least 1")
    tell = tell or _quiet

    def rows(start: int) -> np.ndarray:
        stop = min(start + batch, count)
        found = make(start, stop).detach().to("cpu", torch.float32)
        if found.shape != (stop - start, towers.width):
            raise BadInput(
                f"rows of shape {tuple(found.shape)} for {stop - start} inputs, and a width of {towers.width}",
                where=towers.name,
            )
        lengths = found.double().norm(dim=1)
        _refuse_rows(lengths, start, f"{towers.name}, {what}")
        if float((lengths - 1).abs().max()) > _UNIT:
            raise BadInput("gives rows that are not of length 1", where=towers.name, fix="normalise them")
        return np.ascontiguousarray(found.numpy())

    if cache is None or count == 0:
        out = np.empty((count, towers.width), dtype=np.float32)
        for start in range(0, count, batch):
            part = rows(start)
            out[start : start + len(part)] = part
            tell(start + len(part), count)
        return torch.from_numpy(out)
    final = Path(cache) / key
    if not final.exists():
        final.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(final, resume="rows") as temp:
            _fill(temp, rows, (count, towers.width), batch, tell)
            (temp / PROGRESS).unlink(missing_ok=True)
            write_manifest(temp)
    found = _finished(final)
    if found.shape != (count, towers.width) or found.dtype != np.dtype("<f4"):
        what = f"holds {found.dtype} {list(found.shape)}"
        raise Damaged(what, where=str(final), fix="remove this folder and run again")
    tell(count, count)
    return torch.from_numpy(found)


def _fill(
    folder: Path, rows: Callable[[int], np.ndarray], shape: tuple[int, int], batch: int, tell: Tell
) -> None:
    """Write what is missing of rows.npy."""
    path, facts = folder / ROWS, {"count": shape[0], "width": shape[1], "batch": batch}
    with open(path, "r+b" if path.exists() else "x+b") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        start = file.tell()
        done, sha = _resumed(folder, file, facts)
        file.truncate(start + done * shape[1] * 4)
        file.seek(0, os.SEEK_END)
        while done < shape[0]:
            part = rows(done)
            file.write(data := part.astype("<f4", copy=False).tobytes())
            file.flush()
            os.fsync(file.fileno())
            sha.update(data)
            done += len(part)
            record = {**facts, "done": done, "sha256": sha.hexdigest()}
            write_atomic(folder / PROGRESS, json.dumps(record))
            if done < shape[0]:  # the last is told when all is in place
                tell(done, shape[0])


def _resumed(folder: Path, file: Any, facts: dict[str, int]) -> tuple[int, Any]:
    """(rows that an earlier run left behind the place of `file` and that are what its record says, their sha256)."""
    path, nothing = folder / PROGRESS, (0, hashlib.sha256())
    if not path.is_file():
        return nothing
    try:
        record = strict_json(read_small(path), str(path))
    except Damaged:
        return nothing
    if not isinstance(record, dict) or any(record.get(key) != value for key, value in facts.items()):
        return nothing
    done = record.get("done")
    if type(done) is not int or not 0 < done <= facts["count"]:
        return nothing
    sha, left = hashlib.sha256(), done * facts["width"] * 4
    while left and (data := file.read(min(left, 1 << 22))):
        sha.update(data)
        left -= len(data)
    return (done, sha) if not left and sha.hexdigest() == record.get("sha256") else nothing


def _finished(folder: Path) -> np.ndarray:
    """The rows of a finished folder, every byte checked first."""
    fix = f"remove {folder} and run again"
    try:
        if read_manifest(folder) is None:
            raise Damaged("has lost its manifest", where=str(folder))
        check_manifest(folder)
        return map_array(folder / ROWS)
    except Damaged as error:
        raise Damaged(error.what, where=error.where, fix=fix) from error


def _key(*parts: str) -> str:
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", errors="surrogatepass")
        sha.update(len(data).to_bytes(8, "little") + data)
    return sha.hexdigest()


def _refuse_rows(lengths: Tensor, first: int, where: str) -> None:
    bad = ~(torch.isfinite(lengths) & (lengths > 0))
    if bad.any():
        at = int(bad.nonzero()[0])
        what = "is zero" if lengths[at] == 0 else "holds NaN or Inf"
        more = f" (and {int(bad.sum()) - 1} more)" if int(bad.sum()) > 1 else ""
        raise BadInput(f"row {first + at}{more} {what}", where=where, fix="leave it out, or embed it again")


def _quiet(done: int, total: int) -> None:
    """The default listener."""
