"""The hostile folders themselves: each function turns a good checkpoint folder into one that tries something.

`HOSTILE[name](folder, canary, outside)`: `folder` is a good plain-module or Llama checkpoint to be changed in place,
`canary` a path that any code run would create, `outside` a folder with weights and a config that must not be reached.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOSTILE: dict[str, Callable[[Path, Path, Path], object]] = {}
# These may load (the trap is beside the weights and must simply not be sprung); all others must be refused.
MAY_LOAD: set[str] = set()
GOOD = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def hostile(function: Callable[[Path, Path, Path], object]) -> Callable[[Path, Path, Path], object]:
    HOSTILE[function.__name__] = function
    return function


def may_load(function: Callable[[Path, Path, Path], object]) -> Callable[[Path, Path, Path], object]:
    MAY_LOAD.add(function.__name__)
    return hostile(function)


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def bare(folder: Path) -> None:
    """Leave no weights and no manifest."""
    for path in folder.iterdir():
        if path.name != "config.json":
            path.unlink()


def weights(folder: Path, header: object, data: bytes = bytes(8), length: int | None = None) -> None:
    """One weight file with this header (JSON, or raw bytes) and this data, no manifest."""
    bare(folder)
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", len(raw) if length is None else length) + raw + data
    )


def index(folder: Path, weight_map: object, **metadata: object) -> None:
    """An index over what weight files there are, no manifest."""
    good = folder / "model.safetensors"
    if good.exists():
        good.rename(folder / "model-00001-of-00002.safetensors")
    (folder / "manifest.json").unlink(missing_ok=True)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": metadata, "weight_map": weight_map})
    )


def lie(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and give it a right digest again, as an attacker who knows the code would."""
    path = folder / "manifest.json"
    body = json.loads(path.read_text())
    body.pop("sha256")
    change(body)
    text = json.dumps(body, sort_keys=True, indent=1)
    body["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(body, sort_keys=True, indent=1) + "\n")


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


def config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    table = json.loads(path.read_text()) if path.exists() else {"model_type": "llama"}
    path.write_text(json.dumps({**table, **changes}))
    (folder / "manifest.json").unlink(missing_ok=True)


def spec(**changes: object) -> dict[str, Any]:
    return {"w": {**GOOD["w"], **changes}}


# --- code that wants to run
@hostile
def pickle_only(f: Path, canary: Path, out: Path) -> None:
    bare(f)
    (f / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))


@hostile
def pickle_named_safetensors(f: Path, canary: Path, out: Path) -> None:
    bare(f)
    (f / "model.safetensors").write_bytes(pickle.dumps(Canary(canary)))


@hostile
def pickle_in_index(f: Path, canary: Path, out: Path) -> None:
    (f / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))
    index(f, {"w": "pytorch_model.bin"})


@may_load
def pickle_of_distributed_checkpoint(f: Path, canary: Path, out: Path) -> None:
    (f / "manifest.json").unlink()
    (f / ".metadata").write_bytes(pickle.dumps(Canary(canary)))


@may_load
def pickled_adapter_beside(f: Path, canary: Path, out: Path) -> None:
    (f / "manifest.json").unlink()
    (f / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x", "r": 8}')
    (f / "adapter_model.bin").write_bytes(pickle.dumps(Canary(canary)))


@hostile
def adapter_beside_a_manifest(f: Path, canary: Path, out: Path) -> None:
    (f / "adapter_config.json").write_text('{"peft_type": "LORA"}')


@hostile
def code_in_auto_map(f: Path, canary: Path, out: Path) -> None:
    (f / "modeling_evil.py").write_text(f"import os; os.mkdir({str(canary)!r})\n")
    (f / "configuration_evil.py").write_text(f"import os; os.mkdir({str(canary)!r})\n")
    auto = {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}
    config(f, auto_map=auto, model_type="evil", architectures=["Evil"])


@hostile
def kernel_from_the_hub(f: Path, canary: Path, out: Path) -> None:
    config(f, attn_implementation="evil/kernel")


@hostile
def kernel_in_a_table(f: Path, canary: Path, out: Path) -> None:
    config(f, attn_implementation={"": "evil/kernel@main"})


@hostile
def architecture_that_is_no_model(f: Path, canary: Path, out: Path) -> None:
    config(f, architectures=["Trainer"], model_type="evil")


@hostile
def config_of_a_million_layers(f: Path, canary: Path, out: Path) -> None:
    config(f, num_hidden_layers=1_000_000, architectures=["LlamaForCausalLM"], model_type="llama")


@hostile
def config_of_a_huge_model(f: Path, canary: Path, out: Path) -> None:
    config(f, vocab_size=1 << 40, architectures=["LlamaForCausalLM"], model_type="llama")


@hostile
def config_bomb(f: Path, canary: Path, out: Path) -> None:
    (f / "manifest.json").unlink()
    (f / "config.json").write_bytes(b"[" * 4_000_000)


# --- names that lead outside
@hostile
def index_dotdot(f: Path, canary: Path, out: Path) -> None:
    index(f, {"w": f"../{out.name}/model.safetensors"})


@hostile
def index_absolute(f: Path, canary: Path, out: Path) -> None:
    index(f, {"w": str(out / "model.safetensors")})


@hostile
def index_symlink(f: Path, canary: Path, out: Path) -> None:
    (f / "model-00002-of-00002.safetensors").symlink_to(out / "model.safetensors")
    index(f, {"w": "model-00002-of-00002.safetensors"})


@hostile
def index_backslash(f: Path, canary: Path, out: Path) -> None:
    index(f, {"w": "..\\secret.safetensors"})


@hostile
def index_nul(f: Path, canary: Path, out: Path) -> None:
    index(f, {"w": "a\0.safetensors"})


@hostile
def index_name_without_end(f: Path, canary: Path, out: Path) -> None:
    index(f, {"w": "a" * 100_000 + ".safetensors"})


@hostile
def weights_symlink(f: Path, canary: Path, out: Path) -> None:
    bare(f)
    (f / "model.safetensors").symlink_to(out / "model.safetensors")


@hostile
def folder_symlink(f: Path, canary: Path, out: Path) -> None:
    (f / "sub").symlink_to(out)
    index(f, {"w": "sub/model.safetensors"})


@hostile
def symlink_loop(f: Path, canary: Path, out: Path) -> None:
    bare(f)
    (f / "model.safetensors").symlink_to(f / "model.safetensors")


@hostile
def config_symlink(f: Path, canary: Path, out: Path) -> None:
    (f / "config.json").unlink(missing_ok=True)
    (f / "config.json").symlink_to(out / "config.json")
    (f / "manifest.json").unlink()


@hostile
def manifest_dotdot(f: Path, canary: Path, out: Path) -> None:
    lie(f, lambda b: b["files"].update({f"../{out.name}/config.json": {"bytes": 2, "sha256": "0"}}))


@hostile
def weights_a_device(f: Path, canary: Path, out: Path) -> None:
    bare(f)
    (f / "model.safetensors").symlink_to("/dev/zero")


@hostile
def weights_a_pipe(f: Path, canary: Path, out: Path) -> None:
    bare(f)
    os.mkfifo(f / "model.safetensors")


@hostile
def shard_a_pipe(f: Path, canary: Path, out: Path) -> None:
    os.mkfifo(f / "model-00002-of-00002.safetensors")
    index(f, {"w": "model-00002-of-00002.safetensors"})


@hostile
def config_a_pipe(f: Path, canary: Path, out: Path) -> None:
    (f / "manifest.json").unlink()
    (f / "config.json").unlink(missing_ok=True)
    os.mkfifo(f / "config.json")


@hostile
def weights_a_folder(f: Path, canary: Path, out: Path) -> None:
    bare(f)
    (f / "model.safetensors").mkdir()


# --- heads of weight files
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


# --- indexes
@hostile
def index_a_list(f: Path, canary: Path, out: Path) -> None:
    index(f, ["w"])


@hostile
def index_file_a_number(f: Path, canary: Path, out: Path) -> None:
    index(f, {"w": 1})


@hostile
def index_of_a_missing_shard(f: Path, canary: Path, out: Path) -> None:
    index(f, {"w": "model-00002-of-00002.safetensors"})


@hostile
def index_of_a_missing_tensor(f: Path, canary: Path, out: Path) -> None:
    index(f, {"not.there": "model-00001-of-00002.safetensors"})


@hostile
def index_total_size_lies(f: Path, canary: Path, out: Path) -> None:
    from safetensors import safe_open

    with safe_open(f / "model.safetensors", "pt") as file:
        names = list(file.keys())
    index(f, dict.fromkeys(names, "model-00001-of-00002.safetensors"), total_size=1)


@hostile
def index_duplicate_key(f: Path, canary: Path, out: Path) -> None:
    index(f, {})
    (f / "model.safetensors.index.json").write_text(
        '{"weight_map": {"w": "a.safetensors", "w": "b.safetensors"}}'
    )


@hostile
def index_bomb(f: Path, canary: Path, out: Path) -> None:
    index(f, {})
    (f / "model.safetensors.index.json").write_bytes(b'{"weight_map":' * 2_000_000)


@hostile
def tensor_in_two_shards(f: Path, canary: Path, out: Path) -> None:
    weights(f, GOOD)
    (f / "model-00002-of-00002.safetensors").write_bytes((f / "model.safetensors").read_bytes())
    index(f, {"w": "model-00001-of-00002.safetensors", "v": "model-00002-of-00002.safetensors"})


# --- manifests
@hostile
def manifest_lies_about_a_size(f: Path, canary: Path, out: Path) -> None:
    lie(f, lambda b: b["files"]["model.safetensors"].update(bytes=1 << 62))


@hostile
def manifest_lies_about_a_crc(f: Path, canary: Path, out: Path) -> None:
    lie(f, lambda b: next(iter(b["tensors"]["model.safetensors"].values())).update(crc32="00000000"))


@hostile
def manifest_lies_about_a_dtype(f: Path, canary: Path, out: Path) -> None:
    lie(f, lambda b: next(iter(b["tensors"]["model.safetensors"].values())).update(dtype="BF16"))


@hostile
def manifest_forgets_a_tensor(f: Path, canary: Path, out: Path) -> None:
    lie(f, lambda b: b["tensors"]["model.safetensors"].popitem())


@hostile
def manifest_forgets_the_weights(f: Path, canary: Path, out: Path) -> None:
    lie(f, lambda b: (b["files"].pop("model.safetensors"), b["tensors"].clear()))


@hostile
def manifest_of_another_shape(f: Path, canary: Path, out: Path) -> None:
    lie(f, lambda b: b.update(files=[1, 2]))


@hostile
def manifest_file_entry_a_string(f: Path, canary: Path, out: Path) -> None:
    lie(f, lambda b: b["files"].update({"config.json": "x"}))


@hostile
def manifest_from_the_future(f: Path, canary: Path, out: Path) -> None:
    lie(f, lambda b: b.update(version=2))


@hostile
def manifest_changed_without_digest(f: Path, canary: Path, out: Path) -> None:
    text = (f / "manifest.json").read_text()
    (f / "manifest.json").write_text(text.replace('"F32"', '"I32"', 1))


@hostile
def manifest_nan(f: Path, canary: Path, out: Path) -> None:
    (f / "manifest.json").write_text('{"format": "secateur.manifest", "version": NaN}')


@hostile
def manifest_deep(f: Path, canary: Path, out: Path) -> None:
    (f / "manifest.json").write_text("[" * 500_000)


@hostile
def manifest_empty(f: Path, canary: Path, out: Path) -> None:
    (f / "manifest.json").touch()
    os.truncate(f / "manifest.json", 0)


@hostile
def weights_the_manifest_does_not_know(f: Path, canary: Path, out: Path) -> None:
    (f / "model-00009-of-00009.safetensors").write_bytes((f / "model.safetensors").read_bytes())


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


@hostile
def tied_to_nobody(f: Path, canary: Path, out: Path) -> None:
    weights(f, {**GOOD, "__metadata__": {"secateur.tied": '{"a": "b"}'}})
