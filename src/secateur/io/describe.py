"""What a checkpoint folder holds, measured from the weights one tensor at a time, and whether it is whole.

density = entries that are not zero / entries          pattern: the layout the zeros have, see `zero_pattern`
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.errors import BadInput
from secateur.io.files import inside, read_small
from secateur.io.header import strict_json
from secateur.io.manifest import check_manifest, read_manifest
from secateur.io.tensors import TensorFolder, read_stored

NO_MANIFEST = "no manifest.json: damage to the weights cannot be seen"
_GROUPS = (2, 4, 8, 16, 32)
_CHUNK = 1 << 20  # entries looked at together: what bounds the memory taken beside the tensor
_SIGN = {1: -(1 << 7), 2: -(1 << 15), 4: -(1 << 31), 8: -(1 << 63)}
_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def verify(folder: Path | str) -> dict[str, Any]:
    """Read every byte of a checkpoint folder and compare it with the manifest.

    Returns {"folder", "files", "tensors", "bytes", "seconds", "manifest": bool, "warnings": [..]}. Without a
    manifest only heads, index and shards can be checked, and a warning says so.

    Raises:
        Damaged: naming the file and the tensor.   NoMatch: no such folder, or no weights in it.
    """
    folder, start = Path(folder), time.perf_counter()
    body = read_manifest(folder)
    if body is not None:
        check_manifest(folder)
    with TensorFolder(folder) as tensors:
        for shard in tensors.shards.values():
            for name in shard.header.entries:
                read_stored(shard, name)
        for name in tensors.names():
            if tensors.is_sparse(name):
                tensors.get(name)
        files = len(body["files"]) if body else len(tensors.shards)
        held = sum(entry["bytes"] for entry in body["files"].values()) if body else None
        return {
            "folder": str(folder),
            "files": files,
            "tensors": len(tensors.names()),
            "bytes": held if held is not None else sum(s.header.file_size for s in tensors.shards.values()),
            "seconds": time.perf_counter() - start,
            "manifest": body is not None,
            "warnings": [] if body else [NO_MANIFEST],
        }


def describe(folder: Path | str) -> dict[str, Any]:
    """What a checkpoint holds. Everything is measured from the weights, nothing is echoed from a config or a plan.

    Returns {"folder", "manifest": bool, "layout": "dense" | "sparse", "model": {"type", "architectures"},
    "files": {name: bytes}, "bytes": all files, "weight_bytes", "parameters", "nonzero", "density", "negative_zeros",
    "cut": {"tensors", "parameters", "nonzero", "density", "patterns": {pattern: tensors}}: the same over tensors with
    two dimensions and at least 5% zeros (4-bit rounding alone leaves 1% in an embedding),
    "tensors": [{"name", "shape", "dtype", "density", "zeros", "negative_zeros", "nonfinite", "pattern", "bytes",
    "stored", "file"}], "warnings": [..]}.
    """
    folder = Path(folder)
    body = read_manifest(folder) if folder.is_dir() else None
    with TensorFolder(folder) as tensors:
        rows = [_row(tensors, name) for name in tensors.names()]
        layout = "sparse" if any(tensors.is_sparse(name) for name in tensors.names()) else "dense"
        files = _sizes(folder, tensors)
    warnings = [] if body else [NO_MANIFEST]
    for row in rows:
        if row["nonfinite"]:
            warnings.append(f"{row['name']} holds {row['nonfinite']} NaN or Inf")
    negative = sum(row["negative_zeros"] for row in rows)
    if negative:
        warnings.append(f"{negative} zeros are -0.0, which the sparse format keeps as values")
    cut = [row for row in rows if len(row["shape"]) >= 2 and row["zeros"] * 20 >= row["entries"] > 0]
    return {
        "folder": str(folder),
        "manifest": body is not None,
        "layout": layout,
        "model": _model(folder),
        "files": files,
        "bytes": sum(files.values()),
        "weight_bytes": sum(row["bytes"] for row in rows),
        **_totals(rows),
        "negative_zeros": negative,
        "cut": {"tensors": len(cut), **_totals(cut), "patterns": _patterns(cut)},
        "tensors": [{key: value for key, value in row.items() if key != "entries"} for row in rows],
        "warnings": warnings,
    }


def zero_pattern(weight: Tensor) -> str:
    """The layout of zeros: "dense" (none), "N:M" (at most N of M neighbours along a row or a column, nearly always
    exactly N), "row" or "column" (the same count in every one), or "none". More than two dimensions are folded to
    [out, rest].

    >>> zero_pattern(torch.tensor([[1.0, 0, 2, 0], [0, 3, 0, 4]]))
    '1:2'
    >>> zero_pattern(torch.tensor([[1.0, 5, 0, 0], [0, 3, 0, 4]]))
    '2:4'
    """
    kept = weight if weight.dtype == torch.bool else weight != 0
    if weight.dim() < 2 or bool(kept.all()):
        return "dense" if bool(kept.all()) else "none"
    # [experts, out, in] counts as many rows; a convolution [out, in, h, w] as rows of in * h * w
    kept = kept.reshape(-1, kept.shape[-1]) if kept.dim() == 3 else kept.flatten(1)
    found = _n_of_m(kept) or _n_of_m(kept.T)
    if found:
        return found
    for axis, word in ((1, "row"), (0, "column")):
        counts = np.count_nonzero(
            kept.numpy(), axis=axis
        )  # torch would first make eight bytes of every entry
        if counts.size > 1 and counts[0] > 0 and bool((counts == counts[0]).all()):
            return word
    return "none"


def _n_of_m(kept: Tensor) -> str:
    for m in _GROUPS:
        if kept.shape[1] % m or not kept.numel():
            continue
        # One full group in the first rows settles it for most tensors, before all of them are counted.
        if int(_group_counts(kept[:16], m).max()) == m:
            continue
        counts = _group_counts(kept, m)
        n = int(counts.max())
        # Weights that were zero before the cut make a few groups poorer; a random mask makes most of them so.
        if 0 < n < m and float((counts == n).float().mean()) >= 0.9:
            return f"{n}:{m}"
    return ""


def _group_counts(kept: Tensor, m: int) -> Tensor:
    return kept.reshape(-1, m).to(torch.uint8).sum(1, dtype=torch.uint8)


def _row(tensors: TensorFolder, name: str) -> dict[str, Any]:
    weight = tensors.get(name)
    flat = weight.reshape(-1)
    zeros = negative = strange = 0
    kept = torch.empty(weight.numel(), dtype=torch.bool)
    for start in range(0, weight.numel(), _CHUNK):
        part = flat[start : start + _CHUNK]
        values = part.float() if part.dtype.itemsize == 1 and part.is_floating_point() else part
        kept[start : start + _CHUNK] = values != 0  # float8 has no comparison of its own
        zeros += part.numel() - int(np.count_nonzero(kept[start : start + _CHUNK].numpy()))
        if part.is_floating_point():
            negative += _negative_zeros(part)
        if part.is_floating_point() or part.is_complex():
            strange += part.numel() - int(torch.isfinite(values).sum())
    return {
        "name": name,
        "shape": list(weight.shape),
        "dtype": str(weight.dtype).removeprefix("torch."),
        "density": 1 - zeros / weight.numel() if weight.numel() else 1.0,
        "zeros": zeros,
        "negative_zeros": negative,
        "nonfinite": strange,
        "pattern": zero_pattern(kept.reshape(weight.shape)) if zeros else "dense",
        "bytes": tensors.stored_bytes(name),
        "stored": "sparse" if tensors.is_sparse(name) else "dense",
        "file": tensors.file(name),
        "entries": weight.numel(),
    }


def _negative_zeros(flat: Tensor) -> int:
    size = flat.element_size()
    return int(flat.view(_INTEGER[size]).eq(_SIGN[size]).sum())


def _totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    entries, zeros = sum(row["entries"] for row in rows), sum(row["zeros"] for row in rows)
    return {
        "parameters": entries,
        "nonzero": entries - zeros,
        "density": (entries - zeros) / entries if entries else 1.0,
    }


def _patterns(rows: list[dict[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["pattern"]] = counts.get(row["pattern"], 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _sizes(folder: Path, tensors: TensorFolder) -> dict[str, int]:
    if not folder.is_dir():
        return {shard.name: shard.header.file_size for shard in tensors.shards.values()}
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}


def _model(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        return {"type": None, "architectures": []}
    config = strict_json(read_small(inside(folder, "config.json"), 8 << 20), str(path), finite=False)
    if not isinstance(config, dict):
        raise BadInput("is not a table", where=str(path))
    return {"type": config.get("model_type"), "architectures": config.get("architectures") or []}
