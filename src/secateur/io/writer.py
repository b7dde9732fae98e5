"""Write safetensors files tensor by tensor, in any order, each at the place its file's head gives it in advance.

Peak memory is one tensor. The bytes are those safetensors itself would write, whatever the order of `put`. A
half-written file can be opened again (`reopen`): a job that was killed goes on and ends with the same bytes.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from secateur.errors import BadInput, Damaged, NoMatch, nearest
from secateur.io.files import sync_folder, write_all, write_atomic
from secateur.io.header import build_header

Spec = tuple[torch.dtype, tuple[int, ...]]
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")  # transformers finds such a file through an index only
Layout = dict[str, dict[str, Spec]]  # file -> tensor -> (dtype, shape)


class TensorWriter:
    """One safetensors file whose tensors are known by dtype and shape before any value is.

    Args:
        path: the file; it must not exist unless `reopen`.
        specs: name -> (dtype, shape).
        metadata: free text for the head; transformers wants {"format": "pt"}.
        reopen: go on with a file of the same specs that an earlier run left (made anew where there is none).
        done: with `reopen`, the names whose bytes were synced before; the others must be put again.
    """

    def __init__(
        self,
        path: Path | str,
        specs: Mapping[str, Spec],
        metadata: Mapping[str, str] | None = None,
        *,
        reopen: bool = False,
        done: Iterable[str] = (),
    ) -> None:
        self.path = Path(path)
        self.specs: dict[str, Spec] = {name: (dtype, tuple(shape)) for name, (dtype, shape) in specs.items()}
        self._head, self._header = build_header(self.specs, dict(metadata or {}))
        self._missing = set(self.specs)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | (0 if reopen else os.O_EXCL)
        self._fd = os.open(self.path, flags, 0o666)
        try:
            if reopen and os.fstat(self._fd).st_size:
                self._take_up(set(done))
            else:
                self._begin()
        except BaseException:
            self._shut()
            raise

    def _begin(self) -> None:
        # Reserve the space now: a full disk shows before hours of work, not after.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._fd, 0, self._header.file_size)
        else:  # macOS
            os.ftruncate(self._fd, self._header.file_size)
        write_all(self._fd, self._head, 0)

    def _take_up(self, done: set[str]) -> None:
        found = os.pread(self._fd, len(self._head), 0)
        if found == self._head and os.fstat(self._fd).st_size == self._header.file_size:
            self._missing -= done
        elif not done and self._head.startswith(found.rstrip(b"\0")):
            os.ftruncate(self._fd, 0)  # killed before the head was whole
            self._begin()
        else:
            raise Damaged(
                "is of another job: its header differs", where=str(self.path), fix="start without --resume"
            )

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor at its place. Putting a name again overwrites it.

        Raises:
            NoMatch: a name that is not in the specs.   BadInput: another dtype or shape, or no data (meta).
        """
        if name not in self.specs:
            raise NoMatch(
                f"no tensor {name!r:.100} was announced", where=str(self.path), fix=nearest(name, self.specs)
            )
        dtype, shape = self.specs[name]
        if tensor.dtype != dtype or tuple(tensor.shape) != shape:
            raise BadInput(
                f"is {tensor.dtype} {list(tensor.shape)}, announced as {dtype} {list(shape)}", where=name
            )
        if tensor.is_meta:
            raise BadInput("has no data (meta device)", where=name)
        if tensor.numel():
            # A tensor of one entry counts as contiguous whatever its stride, which `view` then minds.
            flat = tensor.detach().cpu().contiguous().as_strided((tensor.numel(),), (1,))
            raw = flat.view(torch.uint8)
            write_all(self._descriptor(), raw.numpy().data, self._header.entries[name].start)
        self._missing.discard(name)

    def missing(self) -> set[str]:
        """Names not yet put."""
        return set(self._missing)

    def sync(self) -> None:
        """fsync what was put so far: after this it may be given as `done` to a later run."""
        os.fsync(self._descriptor())

    def close(self) -> None:
        """Finish: BadInput when a tensor is missing, else fsync. Closing twice is allowed."""
        if self._fd < 0:
            return
        try:
            if self._missing:
                name = min(self._missing)
                raise BadInput(
                    f"tensor {name!r:.100} was never written ({len(self._missing)} missing)",
                    where=str(self.path),
                )
            os.fsync(self._fd)
        finally:
            self._shut()

    def abandon(self) -> None:
        """Close without checking or syncing; the half-written file stays for whoever made its folder."""
        self._shut()

    def _descriptor(self) -> int:
        if self._fd < 0:
            raise BadInput("is closed already", where=str(self.path))
        return self._fd

    def _shut(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close() if kind is None else self.abandon()


class FolderWriter:
    """The weights of a checkpoint folder: one file, or shards and their index, written tensor by tensor in any order.

    Args:
        folder: an existing folder, usually the one that `files.new_folder` gives.
        layout: file -> name -> (dtype, shape), as `TensorFolder.layout()` gives it.
        metadata: file -> free text of its head; {"format": "pt"} where it says nothing.
        reopen, done: as for TensorWriter.
    """

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        metadata: Mapping[str, Mapping[str, str]] | None = None,
        *,
        reopen: bool = False,
        done: Iterable[str] = (),
    ) -> None:
        self.folder, self.layout = Path(folder), layout
        self._file = {name: file for file, specs in layout.items() for name in specs}
        if len(self._file) != sum(len(specs) for specs in layout.values()):
            raise BadInput("a tensor is given to two files", where=str(folder))
        done = set(done)
        self._writers: dict[str, TensorWriter] = {}
        try:
            for file, specs in layout.items():
                text = (metadata or {}).get(file, {"format": "pt"})
                held = {name for name in specs if name in done}
                self._writers[file] = TensorWriter(self.folder / file, specs, text, reopen=reopen, done=held)
        except BaseException:
            self.abandon()
            raise

    def put(self, name: str, tensor: Tensor) -> None:
        """Write one tensor at its place; see TensorWriter.put."""
        if name not in self._file:
            raise NoMatch(
                f"no tensor {name!r:.100} was announced",
                where=str(self.folder),
                fix=nearest(name, self._file),
            )
        self._writers[self._file[name]].put(name, tensor)

    def missing(self) -> set[str]:
        return set().union(*(writer.missing() for writer in self._writers.values()))

    def sync(self) -> None:
        """fsync all files: what was put so far survives a kill or power loss."""
        for writer in self._writers.values():
            writer.sync()
        sync_folder(self.folder)

    def close(self) -> None:
        """Finish every file (BadInput when a tensor is missing) and, for shards, write the index."""
        try:
            for writer in self._writers.values():
                writer.close()
        finally:
            self.abandon()
        if len(self.layout) > 1 or any(_SHARD.search(file) for file in self.layout):
            write_index(self.folder, self.layout)

    def abandon(self) -> None:
        for writer in self._writers.values():
            writer.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close() if kind is None else self.abandon()


def write_index(folder: Path, layout: Layout) -> Path:
    """`STEM.safetensors.index.json` beside its shards, as transformers does; STEM is how their names start."""
    stems = {file.split("-")[0].removesuffix(".safetensors") for file in layout}
    stem = stems.pop() if len(stems) == 1 else "model"
    total = sum(
        math.prod(shape) * dtype.itemsize for specs in layout.values() for dtype, shape in specs.values()
    )
    weight_map = {name: file for file, specs in layout.items() for name in specs}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    path = folder / f"{stem}.safetensors.index.json"
    write_atomic(path, json.dumps(index, indent=2, ensure_ascii=False) + "\n")
    return path
