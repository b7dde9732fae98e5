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


def config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    table = json.loads(path.read_text()) if path.exists() else {"model_type": "llama"}
    path.write_text(json.dumps({**table, **changes}))
    (folder / "manifest.json").unlink(missing_ok=True)


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


@hostile
def tied_to_nobody(f: Path, canary: Path, out: Path) -> None:
    weights(f, {**GOOD, "__metadata__": {"secateur.tied": '{"a": "b"}'}})
