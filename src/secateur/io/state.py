"""The state of a training as a folder: nested dicts and lists of plain values and tensors, whole or absent, no pickle.

state.json            the nesting; a tensor is {"$tensor": NAME}, a dict whose keys are no text {"$pairs": ...}
state.safetensors     the tensors
manifest.json         sizes and checksums, checked when it is read
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from secateur.errors import BadInput, Damaged, NoMatch
from secateur.io.files import new_folder, read_small, write_atomic
from secateur.io.header import strict_json
from secateur.io.manifest import check_manifest, read_manifest, write_manifest
from secateur.io.tensors import TensorFolder
from secateur.io.writer import FolderWriter

JSON, TENSORS = "state.json", "state.safetensors"
_PLAIN = (str, int, float, bool, type(None))
_LIMIT = 256 << 20


def write_state(folder: Path | str, state: dict[str, Any]) -> Path:
    """Write `state` to `folder`, which changes in one step or not at all.

    Raises:
        BadInput: a value that is neither plain nor a tensor, or a folder that may not be replaced.
    """
    folder, tensors = Path(folder), dict[str, Tensor]()
    text = json.dumps(_flat(state, "", tensors), indent=1) + "\n"
    with new_folder(folder) as temp:
        write_atomic(temp / JSON, text)
        layout = {TENSORS: {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}}
        with FolderWriter(temp, layout) as writer:
            for name, tensor in tensors.items():
                writer.put(name, tensor)
        write_manifest(temp)
    return folder


def read_state(folder: Path | str) -> dict[str, Any]:
    """What `write_state` wrote, tensors as copies on the CPU.

    Raises:
        NoMatch: no such folder.   Damaged: a byte differs from the manifest, or there is none.
    """
    folder = Path(folder)
    if not (folder / JSON).is_file():
        raise NoMatch(
            "holds no state of a training", where=str(folder), fix="name what `secateur train` wrote"
        )
    if read_manifest(folder) is None:
        raise Damaged("has lost its manifest", where=str(folder))
    check_manifest(folder)
    found = strict_json(read_small(folder / JSON, _LIMIT), str(folder / JSON), finite=False)
    with TensorFolder(folder / TENSORS) as source:
        state = _deep(found, source)
    if not isinstance(state, dict):
        raise Damaged("is not a table", where=str(folder / JSON))
    return state


def _flat(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = path or "tensor"
        tensors[name] = value.detach().to("cpu").contiguous()
        return {"$tensor": name}
    if isinstance(value, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {
                key: _flat(each, f"{path}/{key}" if path else key, tensors) for key, each in value.items()
            }
        return {"$pairs": [[key, _flat(each, f"{path}/{key}", tensors)] for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_flat(each, f"{path}/{i}", tensors) for i, each in enumerate(value)]
    if not isinstance(value, _PLAIN):
        raise BadInput(
            f"a {type(value).__name__} cannot be saved", where=path, fix="tensors and plain values only"
        )
    return value


def _deep(value: Any, source: TensorFolder) -> Any:
    if isinstance(value, dict):
        if set(value) == {"$tensor"}:
            return source.get(value["$tensor"])
        if set(value) == {"$pairs"}:
            return {key: _deep(each, source) for key, each in value["$pairs"]}
        return {key: _deep(each, source) for key, each in value.items()}
    return [_deep(each, source) for each in value] if isinstance(value, list) else value
