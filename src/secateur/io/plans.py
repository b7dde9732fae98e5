"""Plan files: one safetensors file, the packed bits of each site as a tensor and all the rest as JSON in its head.

    tensors    site name -> uint8 [ceil(n / 8)], unit 0 in bit 0, the last byte padded with zeros
    metadata   secateur.format "plan", secateur.version "1", secateur.plan (JSON), secateur.sha256 (of that JSON)

Reading trusts nothing: the JSON has its own digest, the bits have the plan's, and shapes and counts must fit the bits.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.core.plan import Kept, Plan
from secateur.errors import BadInput, Damaged, Unsupported
from secateur.io.files import open_regular, stray_name, sync_folder
from secateur.io.header import Header, read_header, strict_json
from secateur.io.tensors import Shard, TensorWriter, read_stored

FORMAT, VERSION = "plan", "1"
_FIX = "make it again with `secateur plan`"
_KINDS: dict[str, type] = {
    "method": str,
    "config": dict,
    "sites": dict,
    "digest": str,
    "score_digest": str,
    "updates": bool,
    "notes": list,
    "errors": dict,
    "made": dict,
}
_ONES = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


def save_plan(plan: Plan, path: Path | str) -> Path:
    """Write a plan in one piece: a reader or a crash sees the old file or the new one. Returns the path.

    Raises:
        BadInput: the plan holds no site, or a setting that JSON has no word for.   OSError: as the system gives it.
    """
    path = Path(path)
    if not plan.sites:
        raise BadInput("the plan holds no site", where=str(path))
    text = plan_json(plan, str(path))
    metadata = {
        "secateur.format": FORMAT,
        "secateur.version": VERSION,
        "secateur.plan": text,
        "secateur.sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    specs = {name: (torch.uint8, tuple(kept.bits.shape)) for name, kept in plan.sites.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.parent / stray_name(path.name, "tmp")
    try:
        with TensorWriter(temp, specs, metadata) as writer:
            for name, kept in plan.sites.items():
                writer.put(name, kept.bits)
        os.replace(temp, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temp)
        raise
    sync_folder(path.parent)
    return path


def load_plan(path: Path | str) -> Plan:
    """Read a plan file.

    Raises:
        Damaged: not a plan, or any byte of it is not what was written.   Unsupported: a newer version wrote it.
        OSError: it cannot be opened.
    """
    where = str(path)
    fd = open_regular(Path(path))
    try:
        header = read_header(fd, where)
        table = _table(header, where)
        plan = Plan(
            method=table["method"],
            config=table["config"],
            score_digest=table["score_digest"],
            updates=table["updates"],
            notes=table["notes"],
            errors=table["errors"],
            made=table["made"],
        )
        shard = Shard(Path(path).name, fd, header, where, {})
        for name, (shape, count) in _sites(table, header, where).items():
            bits = read_stored(shard, name)
            if _ones(bits) != count:
                raise Damaged(
                    f"site {name!r:.80} keeps {_ones(bits)} units, not {count}", where=where, fix=_FIX
                )
            plan.sites[name] = Kept(bits, shape, count)
    finally:
        os.close(fd)
    if plan.digest() != table["digest"]:
        raise Damaged("bits are damaged (their digest differs)", where=where, fix=_FIX)
    return plan


def plan_json(plan: Plan, where: str = "plan") -> str:
    """All of a plan but its bits, as one line of JSON: what a checkpoint folder carries (its zeros are the bits)."""
    body = {
        "method": plan.method,
        "config": plan.config,
        "sites": {name: {"shape": list(kept.shape), "kept": kept.count} for name, kept in plan.sites.items()},
        "digest": plan.digest(),
        "score_digest": plan.score_digest,
        "updates": plan.updates,
        "notes": plan.notes,
        "errors": plan.errors,
        "made": plan.made,
    }
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise BadInput(f"the plan holds what JSON cannot ({error})", where=where) from error


def _table(header: Header, where: str) -> dict[str, Any]:
    text = header.metadata
    if text.get("secateur.format") != FORMAT or "secateur.plan" not in text:
        raise Damaged("is not a plan", where=where, fix=_FIX)
    if text.get("secateur.version") != VERSION:
        found = text.get("secateur.version")
        raise Unsupported(f"is a plan of version {found!r:.20}", where=where, fix="install a newer secateur")
    raw = text["secateur.plan"].encode(errors="replace")
    if hashlib.sha256(raw).hexdigest() != text.get("secateur.sha256"):
        raise Damaged("head is damaged (its sha256 differs)", where=where, fix=_FIX)
    table = strict_json(raw, where)
    if not isinstance(table, dict) or set(table) != set(_KINDS):
        raise Damaged("head is not that of a plan", where=where, fix=_FIX)
    for name, kind in _KINDS.items():
        if not isinstance(table[name], kind):
            raise Damaged(f"field {name!r} is no {kind.__name__}", where=where, fix=_FIX)
    fractions = all(isinstance(v, int | float) and not isinstance(v, bool) for v in table["errors"].values())
    if not fractions or not all(isinstance(note, str) for note in table["notes"]):
        raise Damaged("notes or errors are of the wrong kind", where=where, fix=_FIX)
    return table


def _sites(table: dict[str, Any], header: Header, where: str) -> dict[str, tuple[tuple[int, ...], int]]:
    """Site name -> (shape, units kept), each checked against the tensor that holds its bits."""
    if table["sites"].keys() != header.entries.keys():
        raise Damaged("does not hold the bits of exactly its sites", where=where, fix=_FIX)
    out: dict[str, tuple[tuple[int, ...], int]] = {}
    for name, found in table["sites"].items():
        shape, kept = (found.get("shape"), found.get("kept")) if isinstance(found, dict) else (None, None)
        whole = isinstance(shape, list) and shape and all(type(side) is int and side > 0 for side in shape)
        if not whole or type(kept) is not int or not 0 <= kept <= prod(shape):  # type: ignore[arg-type]
            what = f"site {name!r:.80} has the shape {shape!r:.40} and keeps {kept!r:.20}"
            raise Damaged(what, where=where, fix=_FIX)
        assert isinstance(shape, list)
        entry = header.entries[name]
        if entry.dtype != torch.uint8 or entry.shape != (-(-prod(shape) // 8),):
            what = f"site {name!r:.80} has {entry.nbytes} bytes of bits for {shape!r:.40}"
            raise Damaged(what, where=where, fix=_FIX)
        out[name] = (tuple(shape), kept)
    return out


def _ones(bits: Tensor) -> int:
    return int(_ONES[bits.numpy()].sum(dtype=np.int64))
