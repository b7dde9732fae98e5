"""Arrays of numbers from disk: .npy, .parquet, .safetensors for embeddings, and .txt too for labels.

Nothing pickled is read. A plain float32 .npy is mapped, so that an array larger than memory can be used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.errors import BadInput, Damaged, NoMatch, nearest, require
from secateur.io.files import open_regular, read_small, stray_name, sync_folder
from secateur.io.tensors import TensorFolder

KINDS = (".npy", ".parquet", ".safetensors")
_LABEL = re.compile(r"-?\d{1,18}")


def read_array(path: str | Path, column: str | None = None) -> Tensor:
    """float32 [n, d] from a file. A C-ordered float32 .npy stays on disk and is mapped; values are not looked at.

    Args:
        path: .npy of float16, 32 or 64; .parquet; .safetensors with one tensor of two axes.
        column: of a .parquet a column of lists, all of one length; of a .safetensors the tensor. Without it, the only
            such one; or of a .parquet without lists every floating column is a coordinate, in the order of the file.

    Raises:
        NoMatch: no such file or column.   BadInput: another kind of file, numbers or shape, a missing value.
        Damaged: a file that cannot be parsed.   Unsupported: pyarrow is needed and not installed.
    """
    path = _file(path, KINDS)
    if path.suffix == ".safetensors":
        return _tensor_of(path, column)
    if path.suffix == ".parquet":
        return torch.from_numpy(_parquet_rows(path, column).astype(np.float32, copy=True))
    found = map_array(path)
    if found.dtype.kind != "f" or found.dtype.itemsize > 8 or found.ndim != 2:
        what = f"holds {found.dtype} {list(found.shape)}"
        raise BadInput(what, where=str(path), fix="save float16, float32 or float64 [n, d]")
    if found.dtype == np.dtype("=f4") and found.flags.c_contiguous:
        return torch.from_numpy(found)
    return torch.from_numpy(np.array(found, dtype=np.float32, order="C"))


def read_labels(path: str | Path, column: str | None = None, classes: Sequence[str] | None = None) -> Tensor:
    """int64 [n] from a .npy of whole numbers, a .txt with one label a line, or a column of a .parquet (`label`).

    Args:
        classes: where the file holds names: their order.

    Raises: as `read_array`; NoMatch too for a name that is no class.
    """
    path = _file(path, (".npy", ".txt", ".parquet"))
    where = str(path)
    if path.suffix == ".npy":
        found = map_array(path)
        if found.dtype.kind not in "iu" or found.ndim != 1:
            raise BadInput(
                f"holds {found.dtype} {list(found.shape)}", where=where, fix="save whole numbers [n]"
            )
        return torch.from_numpy(found.astype(np.int64, copy=True))
    if path.suffix == ".parquet":
        values = _parquet_column(path, column or "label").to_pylist()
    else:
        text = read_small(path, 1 << 30).decode("utf-8", errors="replace")
        values = [line.strip() for line in text.splitlines()]
    return torch.tensor([_label(v, at, classes, where) for at, v in enumerate(values)], dtype=torch.int64)


def write_array(path: str | Path, values: Tensor) -> Path:
    """Write a tensor as .npy, whole or not at all, in its own numbers (bfloat16 as float32).

    Raises:
        BadInput: a name that does not end in .npy, for which numpy and `read_array` would not look.
    """
    path = Path(path)
    if path.suffix != ".npy":
        raise BadInput("does not end in .npy", where=str(path), fix="call it so")
    values = values.detach().to("cpu")
    array = np.ascontiguousarray((values.float() if values.dtype == torch.bfloat16 else values).numpy())
    temp = path.parent / stray_name(path.name, "tmp")
    try:
        with open(temp, "xb") as file:
            np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temp, path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return path


def _file(path: str | Path, kinds: Sequence[str]) -> Path:
    path = Path(path)
    if path.suffix not in kinds:
        raise BadInput("is a file of no kind known here", where=str(path), fix=f"known: {', '.join(kinds)}")
    try:
        os.close(open_regular(path))  # a pipe could block for ever
    except FileNotFoundError as error:
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        fix = nearest(path.name, sorted(beside))
        raise NoMatch("no such file", where=str(path), fix=fix) from error
    return path


def map_array(path: Path) -> np.ndarray:
    """A private map of an .npy: what is written to it never reaches the file."""
    try:
        found = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, EOFError, TypeError, SyntaxError, OverflowError) as error:
        fix = "save a plain array of numbers with np.save"
        raise Damaged("is no whole .npy file of numbers", where=str(path), fix=fix) from error
    if not isinstance(found, np.ndarray):
        raise Damaged("is no .npy file", where=str(path), fix="save one array with np.save")
    return found.view(np.ndarray)


def _tensor_of(path: Path, name: str | None) -> Tensor:
    with TensorFolder(path) as source:
        fitting = [
            n for n in source.names() if len(source.shape(n)) == 2 and source.dtype(n).is_floating_point
        ]
        if name is None and len(fitting) != 1:
            what = f"holds {len(fitting)} floating tensors of two axes"
            raise BadInput(
                what, where=str(path), fix=f"give column=: {', '.join(fitting[:8]) or 'none fits'}"
            )
        chosen = fitting[0] if name is None else name
        if chosen not in fitting:
            fix = nearest(chosen, fitting)
            raise NoMatch(f"holds no floating tensor {chosen!r:.60} of two axes", where=str(path), fix=fix)
        return source.view(chosen).float()


def _label(value: Any, at: int, classes: Sequence[str] | None, where: str) -> int:
    if classes is not None and isinstance(value, str) and value in classes:
        return list(classes).index(value)
    if type(value) is int or (isinstance(value, str) and _LABEL.fullmatch(value)):
        return int(value)
    if classes is not None and isinstance(value, str):
        raise NoMatch(f"label {at} is {value!r:.60}", where=where, fix=nearest(value, classes))
    raise BadInput(f"label {at} is {value!r:.60}", where=where, fix="one whole number for each image")


def _parquet(path: Path) -> Any:
    parquet = require("pyarrow.parquet", "data")
    pyarrow = require("pyarrow", "data")
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0][:100]
        raise Damaged(
            f"is not readable as parquet ({first})", where=str(path), fix="write it again"
        ) from error


def _parquet_column(path: Path, name: str) -> Any:
    """One column, as one array; NoMatch where it is not there."""
    pyarrow = require("pyarrow", "data")
    file = _parquet(path)
    names = file.schema_arrow.names
    if name not in names:
        raise NoMatch(f"holds no column {name!r:.60}", where=str(path), fix=nearest(name, names))
    try:
        found = file.read(columns=[name]).column(name).combine_chunks()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise Damaged(f"column {name!r:.60} cannot be read", where=str(path), fix="write it again") from error
    if found.null_count:
        at = found.is_null().to_pylist().index(True)
        raise BadInput(f"row {at} of {name!r:.60} is missing", where=str(path), fix="fill it or leave it out")
    return found


def _parquet_rows(path: Path, column: str | None) -> np.ndarray:
    """[n, d] of a column of lists, or of all floating columns."""
    types = require("pyarrow", "data").types
    schema = _parquet(path).schema_arrow
    listed = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    lists = [f.name for f in schema if any(kind(f.type) for kind in listed)]
    if column is None and not lists:
        names = [f.name for f in schema if types.is_floating(f.type)]
        if not names:
            raise BadInput("holds no floating column and no lists", where=str(path), fix="give column=")
        return np.stack([_parquet_column(path, n).to_numpy(zero_copy_only=False) for n in names], axis=1)
    if column is None and len(lists) > 1:
        raise BadInput(f"holds {len(lists)} columns of lists", str(path), f"give column=: {', '.join(lists)}")
    name = lists[0] if column is None else column
    found = _parquet_column(path, name)
    if name not in lists:
        raise BadInput(f"column {name!r:.60} holds no lists", where=str(path), fix=nearest(name, lists))
    lengths = require("pyarrow.compute", "data").list_value_length(found).to_numpy(zero_copy_only=False)
    if len(lengths) and (lengths != lengths[0]).any():
        at = int((lengths != lengths[0]).argmax())
        what = f"row {at} of {name!r:.60} has {lengths[at]} values, row 0 has {lengths[0]}"
        raise BadInput(what, where=str(path), fix="all embeddings have one width")
    values = found.flatten()
    if not types.is_floating(values.type) or values.null_count:
        what = f"column {name!r:.60} holds {'missing values' if values.null_count else values.type}"
        raise BadInput(what, where=str(path), fix="write lists of floats")
    return values.to_numpy(zero_copy_only=False).reshape(len(lengths), -1)
