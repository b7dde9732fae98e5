"""Read folders in the two sparse formats that compressed-tensors wrote up to 0.14 and no longer reads.

config.json says so (`sparsity_config`, in `quantization_config` or `compression_config` or by itself):

    sparse-bitmask      P.shape [n] int64 | P.bitmask uint8 [.., ceil(C/8)] | P.compressed [kept] | P.row_offsets
    sparse-24-bitmask   P.shape [2, 1] int64 | P.bitmask uint8 [R, ceil(C/8)] | P.compressed [R, C/2]

P is a tensor's name without ".weight" (the first files kept it). Entry j of a row is bit j % 8 of byte j // 8. 2:4
keeps two of every four, zeros among them. Everything else in the folder is stored as usual. What comes out is an
ordinary folder, every bit as it was stored (their writer dropped the sign of -0.0).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.errors import Damaged, Locked, Unsupported
from secateur.io.convert import copy_side_files
from secateur.io.files import inside, new_folder, open_regular, read_small, write_atomic
from secateur.io.header import strict_json
from secateur.io.manifest import check_manifest, read_manifest, write_manifest
from secateur.io.sparse import decode
from secateur.io.tensors import TensorFolder
from secateur.io.writer import FolderWriter, Layout

CONFIG = "config.json"
BITMASK, TWO_FOUR = "sparse-bitmask", "sparse-24-bitmask"
_KEYS = ("sparsity_config", "compression_config", "quantization_config")
_LIMIT, _WAIT = 8 << 20, 900.0


def plain_folder(folder: Path | str, cache: Path) -> Path:
    """`folder` itself; for a compressed one its plain copy under `cache`, made at the first use, known by its bytes.

    Raises: as `decompress_folder`.
    """
    folder = Path(folder)
    if not is_compressed(folder):
        return folder
    final = Path(cache) / f"{folder.resolve().name}-{_digest(folder)[:16]}"
    deadline = time.monotonic() + _WAIT
    while not (final / CONFIG).is_file():
        try:
            decompress_folder(folder, final)
        except Locked:  # another process is at it: wait for its result
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
    return final


def decompress_folder(source: Path | str, out: Path | str) -> Path:
    """Write the compressed checkpoint folder `source` to `out` as a plain one. Peak memory: one tensor.

    Raises:
        Damaged: parts that do not fit one another, by the tensor's name.
        Unsupported: the folder is in neither format, or its weights are quantised too.
        And as TensorFolder, check_manifest (where there is one) and new_folder do.
    """
    source, out = Path(source), Path(out)
    config = _read_config(source)
    kind = compressed_format(config)
    if not kind:
        raise Unsupported(f"is neither {BITMASK} nor {TWO_FOUR}", where=str(source / CONFIG))
    if any(holder.get("config_groups") for holder in _holders(config)):
        what = "its weights are quantised as well, which is not read here"
        raise Unsupported(what, where=str(source / CONFIG), fix="let the library that wrote it make it dense")
    if read_manifest(source) is not None:
        check_manifest(source)
    with TensorFolder(source) as tensors, new_folder(out) as folder:
        found = _compressed(tensors, kind)
        layout, metadata = _layout(tensors, found)
        with FolderWriter(folder, layout, metadata) as writer:
            for name in (name for specs in layout.values() for name in specs):
                writer.put(
                    name, _dense(tensors, found[name], kind, name) if name in found else tensors.get(name)
                )
        copy_side_files(source, folder, set(tensors.shards))
        rest = {key: value for key, value in config.items() if key not in _KEYS}
        write_atomic(folder / CONFIG, json.dumps(rest, indent=2, sort_keys=True) + "\n")
        write_manifest(folder)
    return out


def is_compressed(folder: Path | str) -> bool:
    """Whether the config.json of a folder, if there is one, names one of the two formats. Damaged: it is no table."""
    folder = Path(folder)
    return (folder / CONFIG).is_file() and bool(compressed_format(_read_config(folder)))


def compressed_format(config: Mapping[str, Any]) -> str:
    """The format that a config.json's content names: "sparse-bitmask", "sparse-24-bitmask", or "" for neither."""
    named = [str(holder.get("format")) for holder in _holders(config)]
    return next((name for name in named if name in (BITMASK, TWO_FOUR)), "")


def decompress(parts: Mapping[str, Tensor], kind: str, where: str = "") -> Tensor:
    """The parts of one tensor (see the head of this file; row_offsets may be missing) -> the dense tensor.

    Raises:
        Damaged: the parts do not fit one another; `where` is put in front of the line.
    """
    shape = _shape(parts["shape"], where)
    values, bitmask = parts["compressed"], parts["bitmask"]
    _check_sizes(shape, tuple(values.shape), tuple(bitmask.shape), kind, where)
    if bitmask.dtype != torch.uint8:
        raise Damaged(f"its bitmask is {bitmask.dtype}, not uint8", where=where)
    rows, columns = math.prod(shape[:-1]), shape[-1]
    packed = bitmask.reshape(rows, -(-columns // 8))
    kept = np.unpackbits(packed.numpy(), axis=1, count=columns, bitorder="little")
    if kind == TWO_FOUR and not bool((kept.reshape(-1, 4).sum(axis=1) == 2).all()):
        raise Damaged("its bitmask is not 2:4", where=where)
    counts = kept.sum(axis=1, dtype=np.int64)
    stored = parts.get("row_offsets")
    if stored is not None:
        # along the first dimension, which is what their writer does for any number of them
        by_shape = torch.from_numpy(counts).reshape(shape[:-1])
        if not torch.equal(stored.to(torch.int64), torch.cumsum(by_shape, 0) - by_shape):
            raise Damaged("its row_offsets are not those of its bitmask", where=where)
    flat = {
        "shape": torch.tensor([rows, columns]),
        "compressed": values.reshape(-1),
        "bitmask": packed,
        "row_offsets": torch.from_numpy(np.cumsum(counts) - counts),
    }
    return decode(flat, where).reshape(shape)


def _dense(tensors: TensorFolder, prefix: str, kind: str, name: str) -> Tensor:
    names = {part: f"{prefix}.{part}" for part in ("shape", "compressed", "bitmask", "row_offsets")}
    parts = {part: tensors.get(full) for part, full in names.items() if full in tensors}
    return decompress(parts, kind, where=f"{tensors.path}: {name}")


def _compressed(tensors: TensorFolder, kind: str) -> dict[str, str]:
    """Dense name -> the prefix of its parts. Their heads are checked, before space is taken for what they claim."""
    found: dict[str, str] = {}
    for full in (name for name in tensors.names() if name.endswith(".compressed")):
        prefix = full.removesuffix(".compressed")
        name = prefix if prefix.endswith(".weight") else f"{prefix}.weight"
        where = f"{tensors.path}: {name}"
        missing = [part for part in ("shape", "bitmask") if f"{prefix}.{part}" not in tensors]
        if missing:
            raise Damaged(f"has no {missing[0]} beside its compressed values", where=where)
        if name in tensors or name in found:
            raise Damaged("is stored twice", where=where)
        shape = _shape(tensors.get(f"{prefix}.shape"), where)
        _check_sizes(shape, tensors.shape(full), tensors.shape(f"{prefix}.bitmask"), kind, where)
        found[name] = prefix
    return found


def _shape(stored: Tensor, where: str) -> tuple[int, ...]:
    if stored.dtype not in (torch.int64, torch.int32) or not 1 <= stored.numel() <= 8:
        raise Damaged("its shape is not a few whole numbers", where=where)
    shape = tuple(int(v) for v in stored.reshape(-1))
    if min(shape) < 0 or max(shape) > 1 << 40:
        raise Damaged(f"its shape is {list(shape)}", where=where)
    return shape


def _check_sizes(
    shape: tuple[int, ...], values: tuple[int, ...], mask: tuple[int, ...], kind: str, where: str
) -> None:
    wanted = (*shape[:-1], -(-shape[-1] // 8))
    if mask != wanted:
        raise Damaged(
            f"its shape {list(shape)} needs a bitmask of {list(wanted)}, not {list(mask)}", where=where
        )
    if kind == BITMASK:
        if len(values) != 1:
            raise Damaged(f"its values are {list(values)}, not one row", where=where)
        return
    if len(shape) != 2 or shape[1] % 2 or math.prod(shape) % 4 or values != (shape[0], shape[1] // 2):
        raise Damaged(f"its shape {list(shape)} does not go with 2:4 values of {list(values)}", where=where)


def _layout(tensors: TensorFolder, found: Mapping[str, str]) -> tuple[Layout, dict[str, dict[str, str]]]:
    """Each dense tensor goes to the file that held its values."""
    parts = {
        f"{p}.{part}" for p in found.values() for part in ("shape", "compressed", "bitmask", "row_offsets")
    }
    named = {f"{prefix}.compressed": name for name, prefix in found.items()}
    layout: Layout = {file: {} for file in tensors.shards}
    for full in tensors.names():
        if full in named:
            shape = _shape(tensors.get(f"{found[named[full]]}.shape"), named[full])
            layout[tensors.file(full)][named[full]] = (tensors.dtype(full), shape)
        elif full not in parts:
            layout[tensors.file(full)][full] = (tensors.dtype(full), tensors.shape(full))
    layout = {file: specs for file, specs in layout.items() if specs}
    return layout, {file: {"format": "pt", **tensors.metadata(file)} for file in layout}


def _holders(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The tables of a config that may name a format, the inner ones first."""
    outer = [held for key in _KEYS if isinstance(held := config.get(key), Mapping)]
    inner = [held for table in outer if isinstance(held := table.get("sparsity_config"), Mapping)]
    return [*inner, *outer]


def _read_config(folder: Path) -> dict[str, Any]:
    where = str(folder / CONFIG)
    config = strict_json(read_small(inside(folder, CONFIG), _LIMIT), where, finite=False)
    if not isinstance(config, dict):
        raise Damaged("is not a table", where=where)
    return config


def _digest(folder: Path) -> str:
    """sha256 over names and bytes of the files that lie in the folder."""
    total = hashlib.sha256()
    for name in sorted(p.name for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        with os.fdopen(open_regular(inside(folder, name)), "rb") as file:
            total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()
