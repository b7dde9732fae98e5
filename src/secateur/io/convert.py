"""Whole folders from dense to sparse or packed and back, tensor by tensor, and the files beside the weights.

A sparse folder holds `sparse*.safetensors` instead of `model*.safetensors`: a loader that does not know them finds no
weights and says so, where parts under the usual name would leave it with random ones. Back from sparse, every weight
file has the bytes it had; back from packed too, where values were not rounded.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from secateur.errors import Unsupported
from secateur.io.files import MANIFEST, inside, new_folder, open_regular
from secateur.io.manifest import check_manifest, read_manifest, write_manifest
from secateur.io.packed import Form
from secateur.io.packing import Packing, form_of, packed_as
from secateur.io.sparse import PARTS, count_kept, encode, parts_bytes, parts_specs
from secateur.io.stored import PACKED_PARTS, packed_metadata, plain_text, sparse_metadata
from secateur.io.tensors import TensorFolder
from secateur.io.writer import FolderWriter, Layout, Spec

# Words, tokenizers and templates; never weights, never code.
_SIDE_ENDINGS = (".json", ".jsonl", ".txt", ".md", ".jinja", ".model", ".tiktoken", ".vocab")
_SIDE_NAMES = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY", "README")
_TEMPLATES = "additional_chat_templates"


def to_sparse(source: Path | str, out: Path | str, packing: Packing | None = None) -> Path:
    """Write the checkpoint folder `source` to `out` with its pruned matrices stored sparse. Peak memory: two tensors.

    Args:
        packing: as for `write_sparse`.

    Raises: as TensorFolder, check_manifest (where there is one), new_folder and write_sparse do.
    """
    return _convert(Path(source), Path(out), lambda tensors, folder: write_sparse(tensors, folder, packing))


def to_dense(source: Path | str, out: Path | str) -> Path:
    """The way back: `out` is a plain folder that transformers loads. Raises as `to_sparse`."""
    return _convert(Path(source), Path(out), write_dense)


def _convert(source: Path, out: Path, write: Callable[[TensorFolder, Path], object]) -> Path:
    if read_manifest(source) is not None:
        check_manifest(source)
    with TensorFolder(source) as tensors, new_folder(out) as folder:
        copy_side_files(source, folder, set(tensors.shards), everything=True)
        write(tensors, folder)
        write_manifest(folder)
    return out


def write_sparse(source: TensorFolder, folder: Path, packing: Packing | None = None) -> list[str]:
    """Write the tensors of `source` into `folder`, matrices in parts where that is smaller. Returns their names.

    Args:
        packing: None: sparse-bitmask, every bit as it is. Else packed, in the layouts and values that it asks for.

    Raises:
        BadInput: a matrix that does not fit what `packing` asks for.
    """
    forms = _forms(source, packing)
    layout: Layout = {}
    metadata: dict[str, dict[str, str]] = {}
    for file, specs in source.layout().items():
        target = _sparse_name(file)
        layout[target] = {}
        for name, spec in specs.items():
            parts = {name: spec} if name not in forms else _part_specs(_prefix(name), forms[name], packing)
            layout[target].update(parts)
        mine = {_prefix(name): (forms[name], dtype) for name, (dtype, _) in specs.items() if name in forms}
        dense = _dense_name(source, file)
        own = sparse_metadata(list(mine), dense) if packing is None else packed_metadata(mine, dense)
        metadata[target] = {**plain_text(source.metadata(file)), **own}
    with FolderWriter(folder, layout, metadata) as writer:
        for name in source.names():
            tensor, form = source.get(name), forms.get(name)
            if form is None:
                writer.put(name, tensor)
                continue
            for part, value in (
                encode(tensor) if packing is None else packed_as(tensor, form).tensors
            ).items():
                writer.put(f"{_prefix(name)}.{part}", value)
    return sorted(forms)


def write_dense(source: TensorFolder, folder: Path) -> None:
    """Write the tensors of `source`, sparse or not, into `folder` as the plain files they came from."""
    layout: dict[str, dict[str, Spec]] = {}
    metadata: dict[str, dict[str, str]] = {}
    for file, specs in source.layout().items():
        target = _dense_name(source, file)
        layout[target], metadata[target] = specs, plain_text(source.metadata(file))
    with FolderWriter(folder, layout, metadata) as writer:
        for name in source.names():
            writer.put(name, source.get(name))


def copy_side_files(
    source: Path, folder: Path, weights: set[str], skip: set[str] | None = None, everything: bool = False
) -> list[str]:
    """Copy, byte for byte, what lies beside the weights and is not in `folder` yet: tokenizer, templates, licence.

    Args:
        weights: files of `source` that hold its tensors (never copied, as their index is not).
        skip: names that are not wanted.
        everything: also what else the manifest of `source` lists, and config.json.
    Returns the names copied. Raises Damaged for a link that leads out of `source`.
    """
    body = read_manifest(source) if everything else None
    names = set(body["files"]) if body else {name for name in _beside(source)}
    names -= weights | (skip or set()) | {MANIFEST}
    if not everything:
        names.discard("config.json")
    copied = []
    for name in sorted(n for n in names if not n.endswith(".index.json")):
        target = folder / name
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        fd = open_regular(inside(source, name))
        with os.fdopen(fd, "rb") as old, open(target, "xb") as new:
            shutil.copyfileobj(old, new, 1 << 20)
        copied.append(name)
    return copied


def _beside(source: Path) -> list[str]:
    names = [p.name for p in source.iterdir() if p.is_file() or p.is_symlink()]
    templates = source / _TEMPLATES
    names += [f"{_TEMPLATES}/{p.name}" for p in templates.iterdir()] if templates.is_dir() else []
    return [name for name in names if not name.startswith(".") and _is_words(name)]


def _is_words(name: str) -> bool:
    base = name.rsplit("/", 1)[-1]
    return base.lower().endswith(_SIDE_ENDINGS) or ("." not in base and base.upper().startswith(_SIDE_NAMES))


def _forms(source: TensorFolder, packing: Packing | None) -> dict[str, Form]:
    """The layout of each matrix that is stored in parts."""
    forms: dict[str, Form] = {}
    for name in source.names():
        if not _may_be_sparse(source, name, PARTS if packing is None else PACKED_PARTS):
            continue
        rows, columns = source.shape(name)
        if packing is not None:
            form = form_of(source.get(name), packing, name)
        else:
            form = Form("bitmask", (rows, columns), source.dtype(name), count_kept(source.get(name)))
            form = form if _pays(form) else None
        if form is not None:
            forms[name] = form
    return forms


def _part_specs(prefix: str, form: Form, packing: Packing | None) -> dict[str, Spec]:
    parts = parts_specs(form.dtype, *form.shape, form.count) if packing is None else form.specs()
    return {f"{prefix}.{part}": spec for part, spec in parts.items()}


def _may_be_sparse(source: TensorFolder, name: str, parts: tuple[str, ...]) -> bool:
    taken = any(f"{_prefix(name)}.{part}" in source for part in parts)
    return (
        name.endswith(".weight")
        and len(source.shape(name)) == 2
        and not taken
        and 0 not in source.shape(name)
    )


def _pays(form: Form) -> bool:
    (rows, columns), size = form.shape, form.dtype.itemsize
    return form.dtype != torch.bool and parts_bytes(size, rows, columns, form.count) < rows * columns * size


def _prefix(name: str) -> str:
    return name.removesuffix(".weight")


def _sparse_name(file: str) -> str:
    if "/" in file:
        raise Unsupported("weights in a folder below the checkpoint's cannot be stored sparse", where=file)
    if file.startswith("sparse"):
        return file
    return "sparse" + file.removeprefix("model") if file.startswith("model") else f"sparse-{file}"


def _dense_name(source: TensorFolder, file: str) -> str:
    """The name the dense file had; it was read from a file, so it may not lead anywhere."""
    name = source.metadata(file).get("secateur.file", file)
    plain = name.endswith(".safetensors") and "/" not in name and not name.startswith(".")
    if not plain:
        raise Unsupported(f"was made from a file called {name!r:.80}", where=file)
    return inside(source.path if source.path.is_dir() else source.path.parent, name).name
