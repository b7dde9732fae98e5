"""The head of a safetensors file: ours equals theirs byte for byte, and what is not valid is refused by name.

The hostile heads are in attacks/hostile_files.py; here are those that need a closer look.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from secateur.errors import BadInput, Damaged, Unsupported
from secateur.io.header import build_header, dtype_code, read_header, strict_json

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.float8_e5m2, torch.float8_e4m3fn, torch.float8_e8m0fnu,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.int16, torch.uint16, torch.float16, torch.bfloat16,
    torch.int32, torch.uint32, torch.float32, torch.complex64, torch.float64, torch.int64, torch.uint64,
]  # fmt: skip


def read(path: Path, data: bytes):
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        return read_header(fd, str(path))
    finally:
        os.close(fd)


def test_the_head_is_what_safetensors_writes(tmp_path: Path) -> None:
    tensors = {f'{i}/é"\x01\u2028': torch.zeros(i % 3, 2, dtype=dtype) for i, dtype in enumerate(DTYPES)}
    theirs = save(tensors, {"format": "ü\n"})
    specs = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    ours, header = build_header(specs, {"format": "ü\n"})
    assert theirs[: len(ours)] == ours and header.file_size == len(theirs)
    assert read(tmp_path / "f", theirs) == header


def test_nothing_at_all_is_a_valid_file(tmp_path: Path) -> None:
    ours, header = build_header({}, {})
    assert ours == save({}) and read(tmp_path / "f", ours).entries == {} and header.file_size == 16


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"])
def test_a_name_that_cannot_be_stored_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="cannot store"):
        build_header({name: (torch.float32, (1,))}, {})


def test_a_dtype_that_cannot_be_stored_is_refused() -> None:
    assert dtype_code(torch.bfloat16) == "BF16"
    with pytest.raises(Unsupported, match="complex128"):
        dtype_code(torch.complex128)


def test_the_tensor_is_named(tmp_path: Path) -> None:
    table = {"model.w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}
    raw = json.dumps(table).encode()
    with pytest.raises(Damaged, match=r"'model\.w' has 8 bytes where F32 \[3\] needs 12"):
        read(tmp_path / "f", struct.pack("<Q", len(raw)) + raw + bytes(8))


@pytest.mark.parametrize("cut", range(0, 96, 5))
def test_every_cut_is_refused(tmp_path: Path, cut: int) -> None:
    data = save({"w": torch.arange(4.0)})
    with pytest.raises(Damaged, match="f"):
        read(tmp_path / "f", data[: min(cut, len(data) - 1)])


def test_json_from_outside_is_read_strictly() -> None:
    assert strict_json(b'{"a": [1, 2.5, null, true]}', "f") == {"a": [1, 2.5, None, True]}
    assert strict_json(b"[Infinity]", "f", finite=False) == [float("inf")]
    for bad in (
        b'{"a":1,"a":2}',
        b"[NaN]",
        b"[-Infinity]",
        b"\xff",
        b"{",
        b"[" * 100_000,
        b"",
        b"[1]]",
        b"[],",
    ):
        with pytest.raises(Damaged, match="f: "):
            strict_json(bad, "f")
    with pytest.raises(Damaged, match="more structure"):
        strict_json(b"[" + b"[]," * 1_000_000 + b"1]", "f")
