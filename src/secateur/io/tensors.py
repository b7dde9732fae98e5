"""TensorFolder: the tensors of one safetensors file or of a folder of shards, read one at a time.

`get` reads a tensor by `pread` into memory of its own, so that resident memory is what the caller holds; `view` maps
the file instead, privately: pages come in when they are touched, and what is written to them never reaches the file.
Every shard is opened and its head checked when the folder is; later reads come from these same files even if the
folder is replaced. What secateur wrote sparse or packed (see stored.py) is decoded on the way: names, shapes and dtypes
are those of the dense model. `packed` gives such a matrix as it lies in the file, for the runtime.
"""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from secateur.errors import BadInput, Damaged, NoMatch, Unsupported, nearest
from secateur.io.files import inside, open_regular, read_small
from secateur.io.header import Entry, Header, read_header, strict_json
from secateur.io.packed import FLOATS, Packed, check
from secateur.io.stored import SPARSE, Stored, sparse_metadata, stored_matrices
from secateur.io.writer import FolderWriter, Layout, TensorWriter

__all__ = ["FolderWriter", "Shard", "TensorFolder", "TensorWriter", "read_stored", "sparse_metadata"]

INDEX_LIMIT = 32 << 20  # bytes; the largest published index has 9 MB


@dataclass(frozen=True)
class Shard:
    """One open file: its name inside the folder, its descriptor, its head, and the matrices it holds in parts, by the
    names of the tensors they stand for."""

    name: str
    fd: int
    header: Header
    where: str
    sparse: dict[str, Stored]


class TensorFolder:
    """Lazy reader of `path`: a folder with `model.safetensors`, with `model.safetensors.index.json` and shards, with
    secateur's `sparse*.safetensors`, or one such file. Use it as a context manager, or call `close()`.

    Raises:
        NoMatch: no such folder, or no weights in it.   Unsupported: only pickled weights, or a newer sparse format.
        Damaged: a head or index that is not what it says, a tensor missing or present twice, a name leading outside.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.shards: dict[str, Shard] = {}
        self._where: dict[str, Shard] = {}
        self._maps: dict[str, mmap.mmap] = {}
        try:
            root, files, index = _find(self.path)
            for name in files:
                self._open(root, name)
            if index is not None:
                self._check_index(*index)
        except BaseException:
            self.close()
            raise

    def _open(self, root: Path, name: str) -> None:
        real = inside(root, name)
        where = str(root / name)
        if not real.exists():
            raise Damaged("is missing", where=where, fix="fetch or write the checkpoint again")
        fd = open_regular(real)
        try:
            header = read_header(fd, where)
            shard = Shard(name, fd, header, where, stored_matrices(fd, header, where))
        except BaseException:
            os.close(fd)
            raise
        self.shards[name] = shard
        for tensor in _logical_names(shard):
            if tensor in self._where:
                raise Damaged(
                    f"holds tensor {tensor!r:.100}, and so does {self._where[tensor].name}", where=where
                )
            self._where[tensor] = shard

    def _check_index(self, path: Path, weight_map: dict[str, str], total: float | None) -> None:
        stored = {name: shard.name for shard in self.shards.values() for name in shard.header.entries}
        for name, file in weight_map.items():
            if stored.get(name) != file:
                raise Damaged(
                    f"tensor {name!r:.100} should be in {file}, which does not hold it", where=str(path)
                )
        for name, file in stored.items():
            if name not in weight_map:
                raise Damaged(f"tensor {name!r:.100} of {file} is not in the index", where=str(path))
        held = sum(shard.header.file_size - shard.header.data_start for shard in self.shards.values())
        if total is not None and total != held:
            raise Damaged(
                f"total_size is {total}, the shards hold {held} bytes of tensors",
                where=str(path),
                fix="the shards may be of two different saves",
            )

    def names(self) -> tuple[str, ...]:
        """Names of all tensors, shard by shard in the order of their bytes."""
        return tuple(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._described(name).shape

    def dtype(self, name: str) -> torch.dtype:
        return self._described(name).dtype

    def stored_bytes(self, name: str) -> int:
        """Bytes the tensor takes on disk (all parts of a sparse one)."""
        shard = self._shard(name)
        stored = shard.sparse.get(name)
        names = [name] if stored is None else stored.parts.values()
        return sum(shard.header.entries[part].nbytes for part in names)

    def is_sparse(self, name: str) -> bool:
        """Whether it lies in the file in parts: as its kept entries, or packed."""
        return name in self._shard(name).sparse

    def file(self, name: str) -> str:
        """The file, inside the folder, that holds the tensor."""
        return self._shard(name).name

    def get(self, name: str) -> Tensor:
        """The tensor, as a copy of its own on the CPU."""
        shard = self._shard(name)
        stored = shard.sparse.get(name)
        if stored is None:
            return read_stored(shard, name)
        parts = {part: read_stored(shard, tensor) for part, tensor in stored.parts.items()}
        return stored.dense(parts, where=f"{shard.where}: {name}")

    def view(self, name: str) -> Tensor:
        """As `get`, but a dense tensor lies in a private map of its file, which lives as long as the tensor does."""
        return self.get(name) if self.is_sparse(name) else self._mapped(self._shard(name), name)

    def packed(self, name: str, unchecked: bool = False) -> Packed | None:
        """A matrix that is stored in parts, on a private map of its file: nothing is copied, and masks and scales are
        all that is read. None where it is one tensor, or of a dtype that is not multiplied packed.

        Args:
            unchecked: read nothing; for a caller who calls packed.py's `check`.

        Raises:
            Damaged: parts that do not fit one another.
        """
        shard = self._shard(name)
        stored = shard.sparse.get(name)
        if stored is None or (stored.format == SPARSE and stored.dtype not in FLOATS):
            return None
        packed = stored.packed({part: self._mapped(shard, tensor) for part, tensor in stored.parts.items()})
        if not unchecked:
            check(packed, where=f"{shard.where}: {name}")
        return packed

    def _mapped(self, shard: Shard, name: str) -> Tensor:
        """One tensor of a file where it lies."""
        entry = shard.header.entries[name]
        if not entry.nbytes or entry.start % entry.dtype.itemsize:
            return read_stored(shard, name)
        if shard.name not in self._maps:
            self._maps[shard.name] = mmap.mmap(shard.fd, 0, access=mmap.ACCESS_COPY)
        space = self._maps[shard.name]
        if entry.start + entry.nbytes > len(space):
            raise Damaged(f"is cut short inside tensor {name!r:.100}", where=shard.where)
        flat = torch.frombuffer(space, dtype=torch.uint8, count=entry.nbytes, offset=entry.start)
        return flat.view(entry.dtype).reshape(entry.shape)

    def layout(self) -> Layout:
        """File -> name -> (dtype, shape) of the dense tensors it stands for: what a writer of a like folder needs."""
        return {
            shard.name: {name: (self.dtype(name), self.shape(name)) for name in _logical_names(shard)}
            for shard in self.shards.values()
        }

    def metadata(self, file: str) -> dict[str, str]:
        """The free text in the head of one file."""
        return dict(self.shards[file].header.metadata)

    def close(self) -> None:
        for shard in self.shards.values():
            os.close(shard.fd)
        self.shards, self._where, self._maps = {}, {}, {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def _shard(self, name: str) -> Shard:
        if name not in self._where:
            raise NoMatch(
                f"holds no tensor {name!r:.100}", where=str(self.path), fix=nearest(name, self._where)
            )
        return self._where[name]

    def _described(self, name: str) -> Entry | Stored:
        """Where its shape and dtype are said."""
        shard = self._shard(name)
        return shard.sparse.get(name) or shard.header.entries[name]


def read_stored(shard: Shard, name: str) -> Tensor:
    """One tensor as it lies in the file (a part of a sparse one too), into fresh memory."""
    entry = shard.header.entries[name]
    raw = torch.empty(entry.nbytes, dtype=torch.uint8)
    view = raw.numpy().data
    at = 0
    while at < entry.nbytes:
        done = os.preadv(shard.fd, [view[at : at + (1 << 30)]], entry.start + at)
        if done == 0:
            raise Damaged(f"is cut short inside tensor {name!r:.100}", where=shard.where)
        at += done
    try:
        if math.prod(entry.shape) == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        return raw.view(entry.dtype).reshape(entry.shape)
    except (RuntimeError, OverflowError, TypeError) as error:  # strides of an empty tensor can still overflow
        raise Damaged(f"tensor {name!r:.100} has an impossible shape", where=shard.where) from error


def _logical_names(shard: Shard) -> list[str]:
    hidden = {part: name for name, stored in shard.sparse.items() for part in stored.parts.values()}
    return list(dict.fromkeys(hidden.get(name, name) for name in shard.header.entries))


def _find(path: Path) -> tuple[Path, list[str], tuple[Path, dict[str, str], float | None] | None]:
    """(folder, files, and for shards the index: its path, tensor -> file, total bytes)."""
    if path.is_file():
        root, name = path.parent, path.name
    elif path.is_dir():
        root, name = path, _weights_name(path)
    else:
        raise NoMatch("no such file or folder", where=str(path))
    if not name.endswith(".index.json"):
        return root, [name], None
    index_path = root / name
    index = strict_json(read_small(inside(root, name), INDEX_LIMIT), str(index_path))
    weight_map: Any = index.get("weight_map") if isinstance(index, dict) else None
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(v, str) for v in weight_map.values())
    ):
        raise Damaged("weight_map is not a table of tensor names and files", where=str(index_path))
    files = list(dict.fromkeys(weight_map.values()))
    for file in files:
        if not file.endswith(".safetensors"):
            raise Unsupported(f"points to {file!r:.80}, which is not safetensors", where=str(index_path))
        inside(root, file)
    metadata = index.get("metadata") or {}
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if total is not None and (isinstance(total, bool) or not isinstance(total, int | float) or total < 0):
        raise Damaged(f"total_size is {total!r:.40}", where=str(index_path))
    return root, files, (index_path, weight_map, total)


def _weights_name(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir() if p.is_file() or p.is_symlink())
    for stem in ("model", "sparse"):
        for name in (f"{stem}.safetensors", f"{stem}.safetensors.index.json"):
            if name in names:
                return name
    for ending in (".safetensors.index.json", ".safetensors"):
        found = [name for name in names if name.endswith(ending)]
        if len(found) == 1:
            return found[0]
        if found:
            raise BadInput(f"holds {len(found)} files *{ending}", where=str(folder), fix="name one of them")
    if any(name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt")) for name in names):
        raise Unsupported(
            "holds pickled weights only, which can run code",
            where=str(folder),
            fix="convert them to safetensors",
        )
    raise NoMatch("holds no safetensors weights", where=str(folder))
