"""A fitted head as a folder that is whole or absent: numbers in safetensors, words in JSON, nothing that could run.

    head.safetensors   weight, prompts, rows, perhaps bias; coefficients by rows (starts, columns, values) and features
    head.json          {"format": 1, "classes", "words", "owner", "sources", "method", "settings", "figures", ..}
    manifest.json      sizes and checksums; a head is loaded when every byte is right, and when its parts fit

What comes back is what went in, bit for bit; equal heads are equal files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.core.scores import finite
from secateur.errors import BadInput, Damaged, NoMatch, Unsupported
from secateur.io.descriptors import Descriptors, check_line
from secateur.io.files import inside, new_folder, read_small, write_atomic
from secateur.io.header import strict_json
from secateur.io.manifest import check_manifest, read_manifest, write_manifest
from secateur.io.tensors import TensorFolder, TensorWriter

FORMAT = 1
TABLE, TENSORS = "head.json", "head.safetensors"
FOLD = 1e-3  # how far from W U, relative to its largest entry, a weight may lie: what float32 sums differ by, and more
_ENTRIES = 1 << 30  # of the dense coefficients; a file of some bytes could otherwise ask for any memory
_LIMIT = 256 << 20
_DEPTH = 20  # of tables in tables
_SPARSE = ("coefficients.starts", "coefficients.columns", "coefficients.values")
_LISTS = ("classes", "words", "owner", "sources")
_FIELDS = {"format", *_LISTS, "scale", "text_scale", "method", "settings", "figures", "model", "digest"}


@dataclass(frozen=True, eq=False, kw_only=True)
class SavedHead:
    """A head and all that is needed to use, explain and blend it. C classes, M descriptors, F features, width d.

    Attributes:
        classes, words, owner, sources: as in `Descriptors`; owner has one place a word.
        weight: float32 [C, d]; logits are scale * weight @ h + bias.   bias: float32 [C] or None.
        coefficients: float32 [C, F] or None; stored without its zeros.
        features: int64 [F] or None, with coefficients: for each column its place among the M descriptors followed by
            the C class prompts, all different. Then weight is coefficients @ (rows, prompts)[features].
        prompts: float32 [C, d], the zero-shot head (U_cp).   rows: float32 [M, d], the descriptors' embeddings (U_vd).
        text_scale: the model's logit scale, that of the zero-shot head.
        method: its name.   settings, figures: plain values by name (lists and tables of them too; tuples become lists).
        model: name and digest of the towers; "" where embeddings came from disk.

    Raises:
        BadInput: parts that do not fit one another, a value that is not finite, a setting that JSON has no word for.
    """

    classes: tuple[str, ...]
    words: tuple[str, ...]
    owner: tuple[int, ...]
    sources: tuple[str, ...]
    weight: Tensor
    scale: float
    prompts: Tensor
    rows: Tensor
    text_scale: float
    method: str
    settings: dict[str, Any]
    figures: dict[str, Any]
    model: tuple[str, str] = ("", "")
    bias: Tensor | None = None
    coefficients: Tensor | None = None
    features: Tensor | None = None

    def __post_init__(self) -> None:
        Descriptors(self.classes, self.words, self.owner, self.sources)
        count, words = len(self.classes), len(self.words)
        width = self.weight.shape[-1] if isinstance(self.weight, Tensor) and self.weight.ndim else 0
        _check_tensor(self.weight, "weight", (count, width))
        _check_tensor(self.prompts, "prompts", (count, width))
        _check_tensor(self.rows, "rows", (words, width))
        if self.bias is not None:
            _check_tensor(self.bias, "bias", (count,))
        for name in ("scale", "text_scale"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
                raise BadInput(f"{value!r:.40} is no logit scale", where=name, fix="CLIP's is about 100")
            object.__setattr__(self, name, float(value))
        check_line(self.method, "method")
        if len(self.model) != 2:
            raise BadInput("is no name and digest", where="model")
        for name, value in zip(("model", "digest"), self.model, strict=True):
            if value != "":
                check_line(value, name)
        for name in ("settings", "figures"):
            table = getattr(self, name)
            if not isinstance(table, Mapping):
                raise BadInput("is no table", where=name)
            object.__setattr__(self, name, _plain(table, name))
        if (self.coefficients is None) != (self.features is None):
            raise BadInput("coefficients and features go together", where="head", fix="give both, or neither")
        if self.coefficients is not None and self.features is not None:
            self._check_features(self.coefficients, self.features)

    def _check_features(self, coefficients: Tensor, features: Tensor) -> None:
        known = len(self.words) + len(self.classes)
        if features.dtype != torch.int64 or features.ndim != 1:
            raise BadInput(f"{features.dtype} {list(features.shape)}, not int64 [F]", where="features")
        if len(features) and not 0 <= int(features.min()) <= int(features.max()) < known:
            raise BadInput(f"holds places outside 0..{known - 1}", where="features")
        if len(features.unique()) != len(features):
            raise BadInput("holds a place twice", where="features")
        _check_entries(len(self.classes), len(features), "coefficients")
        _check_tensor(coefficients, "coefficients", (len(self.classes), len(features)))
        texts = torch.cat([self.rows.detach().cpu(), self.prompts.detach().cpu()])[features.cpu()]
        folded, weight = coefficients.detach().cpu() @ texts, self.weight.detach().cpu()
        largest = max(float(weight.abs().max()), float(folded.abs().max())) if weight.numel() else 0.0
        if weight.numel() and float((folded - weight).abs().max()) > FOLD * largest:
            raise BadInput("is not coefficients @ texts", where="weight", fix="leave the coefficients out")


def save_head(folder: Path | str, saved: SavedHead, overwrite: bool = False) -> Path:
    """Write `saved` to `folder`, which changes in one step or not at all. Returns the folder.

    Raises:
        BadInput: the folder holds something: a head, unless `overwrite`, or anything else.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / TABLE).is_file():
            raise BadInput("holds files and is no head", where=str(folder), fix="choose another folder")
        if not overwrite:
            raise BadInput("exists already", where=str(folder), fix="choose another folder, or overwrite it")
    tensors = _tensors(saved)
    body = {name: list(getattr(saved, name)) for name in _LISTS}
    body |= {name: getattr(saved, name) for name in ("scale", "text_scale", "method", "settings", "figures")}
    body |= {"format": FORMAT, "model": saved.model[0], "digest": saved.model[1]}
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, indent=1, sort_keys=False) + "\n"
    with new_folder(folder) as temp:
        write_atomic(temp / TABLE, text)
        with TensorWriter(temp / TENSORS, {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()}) as out:
            for name, tensor in tensors.items():
                out.put(name, tensor)
        write_manifest(temp)
    return folder


def load_head(folder: Path | str) -> SavedHead:
    """What `save_head` wrote, tensors as copies on the CPU.

    Raises:
        NoMatch: no head there.   Damaged: a byte differs from the manifest, or the parts do not fit one another.
        Unsupported: a newer secateur wrote it.
    """
    folder = Path(folder)
    where = str(folder / TABLE)
    if not (folder / TABLE).is_file():
        raise NoMatch(
            "holds no head", where=str(folder), fix="name a folder that `secateur features fit` wrote"
        )
    if read_manifest(folder) is None:
        raise Damaged("has lost its manifest", where=str(folder), fix="fit the head again")
    listed = check_manifest(folder)["files"]
    for name in (TABLE, TENSORS):
        if name not in listed:
            raise Damaged("is not in the manifest", where=str(folder / name), fix="fit the head again")
    table = _table(strict_json(read_small(inside(folder, TABLE), _LIMIT), where), where)
    with TensorFolder(folder / TENSORS) as source:
        tensors = _Tensors(source, str(folder / TENSORS))
        parts = tensors.parts(len(table["classes"]))
    try:
        return SavedHead(**table, **parts)
    except BadInput as error:
        raise Damaged(f"{error.where}: {error.what}", where=str(folder), fix="fit the head again") from error


def _tensors(saved: SavedHead) -> dict[str, Tensor]:
    """Name -> tensor as it is stored."""
    out = {name: getattr(saved, name) for name in ("weight", "prompts", "rows", "bias", "features")}
    out = {name: tensor.detach().cpu().contiguous() for name, tensor in out.items() if tensor is not None}
    if saved.coefficients is not None:
        dense = saved.coefficients.detach().cpu().contiguous().numpy()
        kept = dense.view(np.int32) != 0  # by bits: -0.0 comes back as it was
        starts = np.concatenate([[0], np.cumsum(kept.sum(1, dtype=np.int64))])
        columns = np.nonzero(kept)[1].astype(np.int32)
        parts = (starts.astype(np.int64), columns, dense[kept])
        out |= {name: torch.from_numpy(part) for name, part in zip(_SPARSE, parts, strict=True)}
    return out


class _Tensors:
    """The tensors of a file, each refused where it is not what it should be."""

    def __init__(self, source: TensorFolder, where: str) -> None:
        self.source, self.where = source, where
        names = set(source.names())
        self.sparse = bool(names & {*_SPARSE, "features"})
        wanted = {"weight", "prompts", "rows", *((*_SPARSE, "features") if self.sparse else ())}
        if names - {"bias"} != wanted:
            odd = sorted((names - {"bias"}) ^ wanted)
            raise Damaged(
                f"lacks {odd[0]!r:.80}, or should not hold it", where=where, fix="fit the head again"
            )

    def parts(self, classes: int) -> dict[str, Any]:
        names = ["weight", "prompts", "rows", *(["bias"] if "bias" in self.source else [])]
        out = {name: self.source.get(name) for name in names}
        if self.sparse:
            out["features"] = self._get("features", torch.int64)
            out["coefficients"] = self._dense(classes, len(out["features"]))
        return out

    def _get(self, name: str, dtype: torch.dtype) -> Tensor:
        tensor = self.source.get(name)
        if tensor.dtype != dtype or tensor.ndim != 1:
            what = f"tensor {name!r} is {tensor.dtype} {list(tensor.shape)}, not {dtype} [n]"
            raise Damaged(what, where=self.where)
        return tensor

    def _dense(self, classes: int, features: int) -> Tensor:
        kinds = (torch.int64, torch.int32, torch.float32)
        starts, columns, values = (
            self._get(name, kind).numpy() for name, kind in zip(_SPARSE, kinds, strict=True)
        )
        counts = np.diff(starts)
        fits = len(starts) == classes + 1 and starts[0] == 0 and starts[-1] == len(values) == len(columns)
        if not fits or (counts < 0).any():
            raise Damaged("the coefficients' starts do not fit their values", where=self.where)
        if len(columns) and not 0 <= columns.min() <= columns.max() < features:
            raise Damaged(f"a coefficient lies outside the {features} features", where=self.where)
        places = np.repeat(np.arange(classes, dtype=np.int64), counts) * features + columns
        if (np.diff(places) <= 0).any():
            raise Damaged("the coefficients are not in order, each once", where=self.where)
        try:
            _check_entries(classes, features, "coefficients")
        except BadInput as error:
            raise Damaged(f"{error.where}: {error.what}", where=self.where) from error
        dense = np.zeros((classes, features), dtype=np.float32)
        dense.reshape(-1)[places] = values
        return torch.from_numpy(dense)


def _table(found: Any, where: str) -> dict[str, Any]:
    """The checked content of head.json, as arguments of SavedHead."""
    if not isinstance(found, dict):
        raise Damaged("is not a table", where=where)
    number = found.get("format")
    if type(number) is not int or number < 1:
        raise Damaged(f"format {number!r:.40} is no number of a format", where=where)
    if number > FORMAT:
        raise Unsupported(f"is of format {number}", where=where, fix="install a newer secateur")
    if set(found) != _FIELDS:
        odd = sorted(set(found) ^ _FIELDS)[0]
        raise Damaged(f"lacks {odd!r:.80}, or should not hold it", where=where)
    for name in _LISTS:
        if not isinstance(found[name], list):
            raise Damaged(f"{name!r} is no list", where=where)
    for name in ("model", "digest", "method"):
        if not isinstance(found[name], str):
            raise Damaged(f"{name!r} is no text", where=where)
    lists = {name: tuple(found[name]) for name in _LISTS}
    rest = {name: found[name] for name in ("scale", "text_scale", "method", "settings", "figures")}
    return {**lists, **rest, "model": (found["model"], found["digest"])}


def _check_tensor(tensor: object, name: str, shape: tuple[int, ...]) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.float32 or tuple(tensor.shape) != shape:
        what = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
        raise BadInput(f"{what}, not float32 {list(shape)}", where=name)
    finite(tensor.detach(), name, "values")


def _check_entries(classes: int, features: int, where: str) -> None:
    if classes * features > _ENTRIES:
        raise BadInput(f"{classes} x {features} entries, more than {_ENTRIES}", where=where)


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """`value` as JSON gives it back; BadInput names the part that it would not."""
    if value is None or isinstance(value, bool) or (type(value) is int and abs(value) < 1 << 63):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, str) and value.encode(errors="replace").decode() == value:
        return value
    if depth > _DEPTH:
        raise BadInput(f"is nested more than {_DEPTH} deep", where=where[:80])
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise BadInput(f"{key!r:.40} is no name", where=where, fix="use text")
        return {_plain(key, where): _plain(each, f"{where}.{key}", depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, f"{where}[{i}]", depth + 1) for i, each in enumerate(value)]
    raise BadInput(
        f"{value!r:.40} is no plain value", where=where, fix="give numbers, text, lists and tables"
    )
