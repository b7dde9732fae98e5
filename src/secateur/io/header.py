"""The head of a safetensors file and other JSON from outside, read as strictly as the format is written down.

    u64 header length | JSON {"name": {"dtype", "shape", "data_offsets": [start, end]}, "__metadata__": {..}} | data

Everything is checked before a byte of data is used: lengths, duplicate names, types, overflow, overlaps, gaps, the end.
Format: https://github.com/huggingface/safetensors (README, "Format"); our bytes equal those of its own writer.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass, field
from typing import Any

import torch

from secateur.errors import BadInput, Damaged, Unsupported

HEADER_LIMIT = 32 << 20  # bytes; the largest published shards stay below 8 MB
# In the order in which safetensors lays tensors out (the last first), so that the files come out the same.
_CODES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
_NAMES = {dtype: code for code, dtype in _CODES.items()}
_RANK = {code: rank for rank, code in enumerate(_CODES)}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its dtype, its shape, and where its bytes start and end, counted from the file's start."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def code(self) -> str:
        return _NAMES[self.dtype]

    @property
    def nbytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """The parsed head of one file: tensors in the order of their bytes, free text, and where the data starts."""

    entries: dict[str, Entry]
    metadata: dict[str, str] = field(default_factory=dict)
    data_start: int = 8
    file_size: int = 8


def strict_json(data: bytes, where: str, finite: bool = True) -> Any:
    """Parse JSON from a file we do not trust. Damaged on a duplicate key, NaN or Infinity (unless `finite` is False),
    bad UTF-8, nesting without end, or far more structure than its length has room for (a bomb)."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise Damaged(f"JSON has the key {twice!r:.80} twice", where=where)
        return keys

    def no_constant(word: str) -> float:
        if finite:
            raise Damaged(f"JSON holds {word}", where=where)
        return float(word)

    dense = (data.count(b"[") + data.count(b"{")) * 8 + data.count(b",") * 5
    if len(data) > 1 << 20 and dense > len(data):
        raise Damaged("JSON holds more structure than any model needs", where=where)
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"is not valid JSON ({type(error).__name__}: {error!s:.80})", where=where) from error


def dtype_code(dtype: torch.dtype, where: str = "") -> str:
    """The format's word for a dtype, such as `BF16`. Raises Unsupported for one it has no word for."""
    if dtype not in _NAMES:
        raise Unsupported(f"safetensors cannot store {dtype}", where=where, fix="convert the tensor first")
    return _NAMES[dtype]


def dtype_of(code: object) -> torch.dtype | None:
    """The dtype of the format's word, such as `BF16`; None for what is no word of it."""
    return _CODES.get(code) if isinstance(code, str) else None


def read_header(fd: int, where: str) -> Header:
    """Parse and check the head of an open file. Raises Damaged naming the file and, where it can, the tensor."""
    size = os.fstat(fd).st_size
    lead = os.pread(fd, 8, 0)
    if len(lead) < 8:
        raise Damaged(f"is cut short: {size} bytes, less than any safetensors file", where=where)
    length = struct.unpack("<Q", lead)[0]
    if length > HEADER_LIMIT:
        raise Damaged(f"claims a header of {length} bytes (limit {HEADER_LIMIT})", where=where)
    if length + 8 > size:
        raise Damaged(
            f"is cut short inside its header: {size} bytes, the header needs {length + 8}", where=where
        )
    raw = os.pread(fd, length, 8)
    if len(raw) != length or raw[:1] != b"{":
        raise Damaged("header does not start with '{'", where=where)
    table = strict_json(raw, where)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise Damaged("__metadata__ of the header is not a table of strings", where=where)
    entries = {name: _entry(name, value, 8 + length, where) for name, value in table.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)))
    _check_cover(ordered, 8 + length, size, where)
    return Header(ordered, metadata, 8 + length, size)


def _entry(name: str, value: Any, data_start: int, where: str) -> Entry:
    def bad(what: str) -> Damaged:
        return Damaged(f"tensor {name!r:.100} {what}", where=where)

    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise bad("has a name that is no text") from error
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise bad("is not described by exactly dtype, shape and data_offsets")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(code, str) or code not in _CODES:
        raise bad(f"has the unknown dtype {code!r:.40}")
    if not isinstance(shape, list) or len(shape) > 64 or not _whole_numbers(shape):
        raise bad(f"has the shape {str(shape)[:60] if not isinstance(shape, list) else shape[:8]}")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise bad(f"has the offsets {offsets!r:.60}")
    need = math.prod(shape) * _CODES[code].itemsize
    # Zero times a huge number is zero bytes, yet no tensor can have such strides.
    if need >= 1 << 63 or math.prod(d for d in shape if d) >= 1 << 62:
        raise bad(f"has the shape {shape!r:.60}, which overflows")
    if offsets[1] - offsets[0] != need:
        raise bad(f"has {offsets[1] - offsets[0]} bytes where {code} {shape!r:.60} needs {need}")
    return Entry(_CODES[code], tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 62 for v in value)


def _check_cover(entries: dict[str, Entry], start: int, size: int, where: str) -> None:
    at = start
    for name, entry in entries.items():
        if entry.start != at:
            kind = "overlaps the one before it" if entry.start < at else "leaves a gap before it"
            raise Damaged(f"tensor {name!r:.100} {kind}", where=where)
        if entry.end > size:
            raise Damaged(
                f"is cut short inside tensor {name!r:.100}: {size} bytes, it ends at {entry.end}", where=where
            )
        at = entry.end
    if at != size:
        raise Damaged(f"has {size - at} bytes after its last tensor", where=where)


def build_header(
    specs: dict[str, tuple[torch.dtype, tuple[int, ...]]], metadata: dict[str, str]
) -> tuple[bytes, Header]:
    """The head of a file for `specs` (name -> dtype, shape), byte for byte as safetensors would write it."""
    for name in specs:
        if name == "__metadata__" or not _is_text(name):
            raise BadInput("is a name that safetensors cannot store", where=repr(name)[:100])
    if not all(_is_text(text) for pair in metadata.items() for text in pair):
        raise BadInput("file metadata must be text")
    codes = {name: dtype_code(dtype, name) for name, (dtype, _) in specs.items()}
    order = sorted(specs, key=lambda name: (-_RANK[codes[name]], name.encode()))
    table: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    spans: dict[str, tuple[int, int]] = {}
    at = 0
    for name in order:
        dtype, shape = specs[name]
        spans[name] = (at, at + math.prod(shape) * dtype.itemsize)
        table[name] = {"dtype": codes[name], "shape": list(shape), "data_offsets": list(spans[name])}
        at = spans[name][1]
    raw = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    if len(raw) > HEADER_LIMIT:
        raise BadInput(
            f"{len(specs)} tensors need a header of {len(raw)} bytes (limit {HEADER_LIMIT})",
            fix="use more shards",
        )
    lead = 8 + len(raw)
    entries = {
        n: Entry(specs[n][0], tuple(specs[n][1]), lead + spans[n][0], lead + spans[n][1]) for n in order
    }
    return struct.pack("<Q", len(raw)) + raw, Header(entries, dict(metadata), lead, lead + at)


def _is_text(text: object) -> bool:
    try:
        return isinstance(text, str) and text.encode() is not None
    except UnicodeEncodeError:
        return False
