"""Matrices that a file does not hold as one tensor: which there are, of which parts they are, what they stand for.

sparse-bitmask 1   P.shape, P.compressed, P.bitmask, P.row_offsets: see sparse.py
packed 1           P.values, P.mask, P.offsets, P.scales: see packed.py; a part that a layout does not have is not there

The free text in the head of a file says which of the two it is. For `packed` it tells each matrix's kind, shape, n and
group, and the dtype of the tensor P.weight that it stands for.
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateur.errors import Damaged, Unsupported
from secateur.io.header import Header, dtype_code, dtype_of, strict_json
from secateur.io.packed import KINDS, Form, Packed, check, check_form, unpack
from secateur.io.sparse import PARTS, decode

SPARSE, PACKED, VERSION = "sparse-bitmask", "packed", "1"
PACKED_PARTS = ("values", "mask", "offsets", "scales")
_V1 = {"values": "compressed", "mask": "bitmask", "offsets": "row_offsets"}  # of packed.py -> of sparse.py
_SIDE = 1 << 40  # a longer one costs no bytes where the other side is 0, and yet overflows


@dataclass(frozen=True)
class Stored:
    """One matrix: `parts` are its tensors in the file; `dtype` and `shape` those of the dense tensor."""

    format: str
    kind: str
    shape: tuple[int, int]
    dtype: torch.dtype
    parts: dict[str, str]
    n: int = 0
    group: int = 0

    def dense(self, parts: dict[str, Tensor], where: str) -> Tensor:
        """Its parts, as they were read -> the dense tensor; whole numbers times their scales.

        Raises:
            Damaged: parts that do not fit one another.
        """
        if self.format == SPARSE:
            return decode(parts, where)
        packed = self.packed(parts)
        check(packed, where)
        return unpack(packed).to(self.dtype)

    def packed(self, parts: dict[str, Tensor]) -> Packed:
        """The same for the kernels, on the parts' own memory; not looked at."""
        if self.format == SPARSE:
            parts = {name: parts[part] for name, part in _V1.items()}
        return Packed(self.kind, self.shape, **parts, n=self.n, group=self.group)


def sparse_metadata(prefixes: list[str], file: str) -> dict[str, str]:
    """What the head of a sparse-bitmask file says: format, version, which tensors are sparse, the dense file's name."""
    return {**_head(SPARSE, file), "secateur.sparse": _text(sorted(prefixes))}


def packed_metadata(forms: dict[str, tuple[Form, torch.dtype]], file: str) -> dict[str, str]:
    """The same for a packed file: the layout of each matrix, by prefix, and the dtype of its dense tensor."""
    table = {
        prefix: {
            "kind": form.kind,
            "shape": list(form.shape),
            "dtype": dtype_code(dtype),
            "n": form.n,
            "group": form.group,
        }
        for prefix, (form, dtype) in sorted(forms.items())
    }
    return {**_head(PACKED, file), "secateur.packed": _text(table)}


def plain_text(text: dict[str, str]) -> dict[str, str]:
    """The free text of a head without ours."""
    ours = {*_head(SPARSE, ""), "secateur.sparse", "secateur.packed"}
    return {key: value for key, value in text.items() if key not in ours}


def stored_matrices(fd: int, header: Header, where: str) -> dict[str, Stored]:
    """Name of the dense tensor -> how it is stored, checked against the head. Empty for a file of another writer.

    Raises:
        Unsupported: a later format or version.   Damaged: names, parts or shapes that do not fit.
    """
    text = header.metadata
    if "secateur.format" not in text:
        return {}
    found = f"{text['secateur.format']} {text.get('secateur.version')}"
    if found not in (f"{SPARSE} {VERSION}", f"{PACKED} {VERSION}"):
        raise Unsupported(f"is written as {found!r:.60}", where=where, fix="install a newer secateur")
    if text["secateur.format"] == SPARSE:
        return _sparse(fd, header, where)
    table = strict_json(text.get("secateur.packed", "").encode(), where)
    if not isinstance(table, dict):
        raise Damaged("secateur.packed in the header is not a table", where=where)
    return {f"{prefix}.weight": _packed(prefix, row, header, where) for prefix, row in table.items()}


def _sparse(fd: int, header: Header, where: str) -> dict[str, Stored]:
    names = strict_json(header.metadata.get("secateur.sparse", "").encode(), where)
    if (
        not isinstance(names, list)
        or not all(isinstance(n, str) for n in names)
        or len(set(names)) != len(names)
    ):
        raise Damaged("secateur.sparse in the header is not a list of different names", where=where)
    out: dict[str, Stored] = {}
    for prefix in names:
        parts = {part: f"{prefix}.{part}" for part in PARTS}
        _all_there(prefix, parts, header, where)
        entry = header.entries[parts["shape"]]
        if entry.dtype != torch.int64 or entry.shape != (2,):
            raise Damaged(f"sparse tensor {prefix!r:.100} has no shape of two whole numbers", where=where)
        rows, columns = struct.unpack("<2q", os.pread(fd, 16, entry.start))
        mask = header.entries[parts["bitmask"]].shape
        if min(rows, columns) < 0 or mask != (rows, -(-columns // 8)):
            raise Damaged(
                f"sparse tensor {prefix!r:.100} has the shape [{rows}, {columns}], its bitmask {mask}",
                where=where,
            )
        dtype = header.entries[parts["compressed"]].dtype
        out[f"{prefix}.weight"] = Stored(SPARSE, "bitmask", (rows, columns), dtype, parts)
    return out


def _packed(prefix: str, row: Any, header: Header, where: str) -> Stored:
    def bad(what: str) -> Damaged:
        return Damaged(f"packed tensor {prefix!r:.100} {what}", where=where)

    if not isinstance(row, dict) or set(row) != {"kind", "shape", "dtype", "n", "group"}:
        raise bad("is not described by exactly kind, shape, dtype, n and group")
    kind, shape, n, group = row["kind"], row["shape"], row["n"], row["group"]
    whole = isinstance(shape, list) and len(shape) == 2 and all(type(v) is int for v in (*shape, n, group))
    if not whole or not all(0 <= side <= _SIDE for side in shape) or kind not in KINDS:
        raise bad(f"is {kind!r:.20} of shape {shape!r:.60}, n {n!r:.20}, group {group!r:.20}")
    dtype = dtype_of(row["dtype"])
    if dtype is None or not dtype.is_floating_point:
        raise bad(f"stands for {row['dtype']!r:.20}")
    values, scales = (header.entries.get(f"{prefix}.{part}") for part in ("values", "scales"))
    if values is None or not values.shape:
        raise bad("has no values")
    form = Form(kind, (shape[0], shape[1]), values.dtype, values.shape[0], n, group, scales and scales.dtype)
    check_form(form, where=f"{where}: {prefix}.weight")
    expected = form.specs()
    parts = {part: f"{prefix}.{part}" for part in expected}
    _all_there(prefix, parts, header, where)
    for part, name in parts.items():
        entry = header.entries[name]
        if (entry.dtype, entry.shape) != expected[part]:
            raise bad(f"has {part} of {entry.code} {list(entry.shape)}, which do not fit {kind} {shape}")
    return Stored(PACKED, kind, form.shape, dtype, parts, n, group)


def _all_there(prefix: str, parts: dict[str, str], header: Header, where: str) -> None:
    missing = [part for part, name in parts.items() if name not in header.entries]
    if missing or f"{prefix}.weight" in header.entries:
        raise Damaged(f"sparse tensor {prefix!r:.100} lacks {missing} or is stored twice", where=where)


def _head(format: str, file: str) -> dict[str, str]:
    return {"secateur.format": format, "secateur.version": VERSION, "secateur.file": file}


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
