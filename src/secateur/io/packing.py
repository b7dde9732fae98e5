"""Which layout of packed.py a matrix gets when a folder is written, and the matrix in it.

A matrix is cut where a bit for each entry and the entries that are not zero take fewer bytes than all of them. A cut
matrix gets the layout asked for, or with `auto` the smallest that holds it. Others stay what they are, or become
`dense` where other values are asked for. Every zero is a cut entry, also -0.0, which comes back as 0.0: weights times a
mask are full of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.errors import BadInput, one_of
from secateur.io.pack import not_nm, pack_bitmask, pack_blocks, pack_dense, pack_nm
from secateur.io.packed import FLOATS, GROUPS, Form, Packed, bands, check_group
from secateur.io.sparse import parts_bytes

KINDS = ("auto", "bitmask", "nm", "1:4", "2:4", "3:4", "1x4", "16x1")
VALUES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True)
class Packing:
    """What was asked for.

    Args:
        kind: of KINDS; nm is the smallest N:4 that a matrix fits.
        values: of VALUES, for every matrix; None: as they are. int8 rounds to the nearest multiple of a scale, the
            largest magnitude of its columns divided by 127.
        group: int8: columns that share a scale, 32, 64 or 128 (scales in bfloat16); 0: the row (float32).

    Raises:
        BadInput: none of these, or a group without int8.
    """

    kind: str = "auto"
    values: str | None = None
    group: int = 0

    def __post_init__(self) -> None:
        one_of(self.kind, KINDS, "kind")
        if self.values is not None:
            one_of(self.values, VALUES, "values")
        if self.group not in GROUPS:
            raise BadInput(f"groups of {self.group} columns", where="group", fix="choose 32, 64 or 128")
        if self.group and self.values != "int8":
            raise BadInput("only int8 has scales", where="group", fix="pass --values int8, or no group")


def form_of(weight: Tensor, packing: Packing, where: str) -> Form | None:
    """The layout for `weight` [R, C]; None: it stays a tensor as it is. `where` names it in errors.

    Raises:
        BadInput: a cut matrix that does not fit the kind asked for; a dtype that cannot be packed; a group that does
            not divide its columns; NaN or Inf that would be rounded.
    """
    rows, columns = weight.shape
    if not weight.is_floating_point() or weight.element_size() == 1 or 0 in weight.shape:
        return None
    entries = weight != 0
    kept = int(np.count_nonzero(entries.numpy()))
    cut = parts_bytes(weight.element_size(), rows, columns, kept) < weight.nbytes
    dtype = VALUES[packing.values] if packing.values else weight.dtype
    if not cut and dtype == weight.dtype:
        return None
    if dtype not in (*FLOATS, torch.int8):
        fix = f"pass --values, one of {', '.join(VALUES)}"
        raise BadInput(f"{weight.dtype} cannot be packed as {dtype}", where=where, fix=fix)
    check_group(packing.group, columns, where)
    scales = None if dtype in FLOATS else torch.bfloat16 if packing.group else torch.float32
    if scales is not None and not bool(weight.isfinite().all()):
        raise BadInput("NaN or Inf cannot be rounded to whole numbers", where=where)
    found = dict(_counts(entries, kept) if cut else ())
    forms = {
        name: Form(kind, (rows, columns), dtype, count, n, packing.group, scales)
        for name, (kind, count, n) in {**found, "dense": ("dense", rows, 0)}.items()
    }
    if not cut:
        return forms["dense"]
    if packing.kind == "auto":
        return min(forms.values(), key=lambda form: form.bytes)
    return _asked(packing.kind, forms, entries, where)


def packed_as(weight: Tensor, form: Form) -> Packed:
    """`weight` in the layout that `form_of` gave for it."""
    how: dict[str, Any] = {"dtype": form.dtype, "group": form.group}
    if form.scales is not None:
        how["scale_dtype"] = form.scales
    if form.kind == "dense":
        return pack_dense(weight, **how)
    plain = torch.where(weight == 0, torch.zeros((), dtype=weight.dtype), weight)
    if form.kind == "bitmask":
        return pack_bitmask(plain, **how)
    return pack_nm(plain, form.n, **how) if form.kind == "nm" else pack_blocks(plain, form.kind, **how)


def _asked(kind: str, forms: dict[str, Form], entries: Tensor, where: str) -> Form:
    """The form of this kind, or why there is none."""
    columns = entries.shape[1]
    if kind != "bitmask" and kind != "16x1" and columns % 4:
        raise BadInput(
            f"{kind} does not fit {columns} columns", where=where, fix="choose --kind auto or bitmask"
        )
    if kind in forms:
        if forms[kind].bytes >= forms["dense"].bytes:
            held = forms[kind].bytes / forms["dense"].bytes
            line = f"as {kind} it would take {held:.2f} times what all its entries take"
            raise BadInput(line, where=where, fix="choose --kind auto")
        return forms[kind]
    n = 3 if kind == "nm" else int(kind[0])
    held = forms.get("nm")
    if held is not None and held.n <= n:
        return Form(
            "nm", held.shape, held.dtype, held.count, n if kind != "nm" else held.n, held.group, held.scales
        )
    raise BadInput(f"{not_nm(entries, n)}", where=where, fix="choose --kind auto or bitmask")


def _counts(entries: Tensor, kept: int) -> list[tuple[str, tuple[str, int, int]]]:
    """(word, (kind, entries or tiles, n)) of every layout that the places of the zeros allow; bool [R, C]."""
    rows, columns = entries.shape
    out = [("bitmask", ("bitmask", kept, 0))]
    tall = int(torch.count_nonzero(bands(entries).any(1)))
    out.append(("16x1", ("16x1", tall, 0)))
    if columns % 4 == 0:
        fours = entries.view(rows, columns // 4, 4).numpy().view(np.uint8).sum(2, dtype=np.uint8)
        out.append(("1x4", ("1x4", int(np.count_nonzero(fours)), 0)))
        if (n := max(1, int(fours.max()))) < 4:
            out.append(("nm", ("nm", rows, n)))
    return out
