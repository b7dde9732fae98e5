"""Hostile weight files: lengths, JSON, shapes, offsets of their heads, and sparse parts that do not fit. They are added
to the table of hostile_files.py."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attacks.hostile_files import GOOD, HOSTILE, bare, hostile, weights


def sparse(folder: Path, change: Callable[[dict[str, Any], dict[str, str]], object]) -> None:
    """A sparse weight file of one 2 x 8 matrix, changed before it is written."""
    import torch
    from safetensors.torch import save_file

    from secateur.io.sparse import encode
    from secateur.io.tensors import sparse_metadata

    bare(folder)
    parts = {f"w.{part}": value for part, value in encode(torch.eye(2, 8)).items()}
    text = sparse_metadata(["w"], "model.safetensors")
    change(parts, text)
    save_file(parts, folder / "sparse.safetensors", text)


def spec(**changes: object) -> dict[str, Any]:
    return {"w": {**GOOD["w"], **changes}}


for _name, _header, _data in (
    ("header_is_a_list", [1], b""),
    ("header_unknown_dtype", spec(dtype="F13"), bytes(8)),
    ("header_dtype_a_number", spec(dtype=3), bytes(8)),
    ("header_wrong_dtype", spec(dtype="F64"), bytes(8)),
    ("header_shape_overflow", spec(shape=[1 << 61, 1 << 61]), bytes(8)),
    ("header_shape_overflow_to_zero", spec(shape=[1 << 32, 1 << 32], data_offsets=[0, 0]), b""),
    ("header_zero_times_huge", spec(shape=[0, 1 << 61, 1 << 61], data_offsets=[0, 0]), b""),
    ("header_shape_negative", spec(shape=[-2]), bytes(8)),
    ("header_shape_float", spec(shape=[2.0]), bytes(8)),
    ("header_shape_bool", spec(shape=[True, 2]), bytes(8)),
    ("header_rank_of_a_million", spec(shape=[1] * 1_000_000, data_offsets=[0, 4]), bytes(4)),
    ("header_offsets_negative", spec(data_offsets=[-8, 0]), b""),
    ("header_offsets_backwards", spec(data_offsets=[8, 0]), bytes(8)),
    ("header_offsets_beyond_the_end", spec(shape=[4], data_offsets=[0, 16]), bytes(8)),
    ("header_offsets_three", spec(data_offsets=[0, 4, 8]), bytes(8)),
    ("header_gap", {**GOOD, "v": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]}}, bytes(16)),
    ("header_overlap", {**GOOD, "v": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)),
    ("header_same_bytes_twice", {**GOOD, "v": GOOD["w"]}, bytes(8)),
    ("header_hole_at_the_start", spec(data_offsets=[8, 16]), bytes(16)),
    ("header_bytes_left_over", GOOD, bytes(64)),
    ("header_data_missing", GOOD, b""),
    ("header_extra_field", {"w": {**GOOD["w"], "run": "me"}}, bytes(8)),
    ("header_metadata_a_list", {**GOOD, "__metadata__": [1]}, bytes(8)),
    ("header_metadata_numbers", {**GOOD, "__metadata__": {"a": 1}}, bytes(8)),
    ("header_nan", b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', bytes(8)),
    (
        "header_number_without_end",
        b'{"w":{"dtype":"F32","shape":[' + b"9" * 9000 + b'],"data_offsets":[0,8]}}',
        b"",
    ),
    ("header_infinite", b'{"w":{"dtype":"F32","shape":[1e999],"data_offsets":[0,8]}}', bytes(8)),
    (
        "header_duplicate_tensor",
        json.dumps(GOOD).encode()[:-1] + b"," + json.dumps(GOOD).encode()[1:],
        bytes(8),
    ),
    (
        "header_duplicate_field",
        b'{"w":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        bytes(8),
    ),
    ("header_deep", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b""),
    ("header_bomb_of_lists", b'{"a":[' + b"[]," * 8_000_000 + b"1]}", b""),
    ("header_bomb_of_numbers", b'{"a":[' + b"0," * 12_000_000 + b"1]}", b""),
    ("header_not_utf8", b'{"\xff\xfe":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    ("header_lone_surrogate", b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    ("header_cut_json", b'{"w":{"dtype":"F32"', bytes(8)),
    ("header_leading_space", b" " + json.dumps(GOOD).encode(), bytes(8)),
):
    HOSTILE[_name] = lambda f, canary, out, h=_header, d=_data: weights(f, h, d)

for _name, _length in (
    ("claims_2_to_63", 1 << 63),
    ("claims_100_MB", 100 << 20),
    ("claims_the_file", 1 << 20),
):
    HOSTILE[f"length_{_name}"] = lambda f, canary, out, n=_length: weights(f, GOOD, bytes(8), length=n)


@hostile
def length_100_MB_that_is_there(f: Path, canary: Path, out: Path) -> None:
    weights(f, b"{", b"", length=100 << 20)
    os.truncate(f / "model.safetensors", 101 << 20)


@hostile
def file_empty(f: Path, canary: Path, out: Path) -> None:
    bare(f)
    (f / "model.safetensors").touch()


@hostile
def file_a_zip_bomb(f: Path, canary: Path, out: Path) -> None:
    bare(f)
    with zipfile.ZipFile(f / "model.safetensors", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", bytes(50_000_000))


@hostile
def file_cut(f: Path, canary: Path, out: Path) -> None:
    (f / "manifest.json").unlink()
    os.truncate(f / "model.safetensors", (f / "model.safetensors").stat().st_size - 3)


# --- sparse files
for _name, _change in {
    "sparse_mask_says_more": lambda p, t: p["w.bitmask"].fill_(255),
    "sparse_values_missing": lambda p, t: p.update({"w.compressed": p["w.compressed"][:1].clone()}),
    "sparse_shape_other": lambda p, t: p["w.shape"].copy_(p["w.shape"].flip(0)),
    "sparse_shape_negative": lambda p, t: p["w.shape"].neg_(),
    "sparse_shape_huge": lambda p, t: p["w.shape"].fill_(1 << 62),
    "sparse_offsets_lie": lambda p, t: p["w.row_offsets"].fill_(7),
    "sparse_part_missing": lambda p, t: p.pop("w.bitmask"),
    "sparse_names_nobody": lambda p, t: t.update({"secateur.sparse": '["x"]'}),
    "sparse_names_not_json": lambda p, t: t.update({"secateur.sparse": "__import__('os')"}),
    "sparse_from_the_future": lambda p, t: t.update({"secateur.version": "99"}),
    "sparse_of_another_kind": lambda p, t: t.update({"secateur.format": "evil"}),
}.items():
    HOSTILE[_name] = lambda f, canary, out, c=_change: sparse(f, c)
