"""A sparse or packed folder as a model that multiplies it as it lies: matrices stay packed, on the mapped file.

    model = load_packed("half")        # written by `secateur compress --format sparse` or `secateur export --to sparse`

No dense form of a packed matrix is made at any time, and nothing is copied: pages come from the file when a product
first reads them. The rest (norms, biases, what was not packed) lies in private maps as io/checkpoint.py has it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.errors import BadInput, Damaged, Unsupported, require
from secateur.io.checkpoint import model_class_of
from secateur.io.describe import NO_MANIFEST
from secateur.io.files import MANIFEST
from secateur.io.manifest import check_manifest
from secateur.io.packed import Packed
from secateur.io.tensors import TensorFolder
from secateur.runtime.embedding import PackedEmbedding
from secateur.runtime.linear import PackedLinear, is_conv1d

DENSE = "load it dense, or write it dense with `secateur export --to safetensors`"
_FILLS = ("zeros_", "ones_", "zero_", "fill_", "normal_", "uniform_", "trunc_normal_", "kaiming_uniform_")
Matrices = dict[str, tuple[Packed, torch.dtype]]
Names = dict[str, list[str]]


def load_packed(folder: Path | str, *, dtype: torch.dtype | None = None) -> nn.Module:
    """The model of a folder of transformers' kind, in evaluation mode on the CPU; a manifest is checked byte for byte.

    Args:
        dtype: what is computed in, and of all that is not packed; None: as stored. Packed values stay as they lie.

    Raises:
        Damaged: bytes that differ from the manifest, parts that do not fit one another or the model.
        Unsupported: a packed matrix that the model does not multiply with a Linear, Conv1D or Embedding.
        BadInput: no config.json.   NoMatch: no weights.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise BadInput("has no config.json", where=str(folder), fix="name a folder of a transformers model")
    if (folder / MANIFEST).exists():
        check_manifest(folder)
    else:
        warnings.warn(f"{folder}: {NO_MANIFEST}", stacklevel=2)
    matrices, rest = _tensors(folder, dtype)
    entries = sum(packed.shape[0] * packed.shape[1] for packed, _ in matrices.values())
    config, chosen = model_class_of(
        folder, len(matrices) + len(rest), entries + sum(tensor.numel() for tensor in rest.values())
    )
    with Hollow():
        model: Any = chosen(config)
    shared = shared_names(model)
    known = dict(model.state_dict(keep_vars=True))
    _all_known(known, [*matrices, *rest], shared, str(folder))
    for name, tensor in (*matrices.items(), *rest.items()):
        shape = tensor.shape if isinstance(tensor, Tensor) else tensor[0].shape
        if shape != known[name].shape:
            raise Damaged(f"{name!r:.100} is {list(shape)}, not {list(known[name].shape)}", where=str(folder))
    for name, (packed, kind) in matrices.items():
        for place in shared.get(name, [name]):
            _put_packed(model, place, packed, kind, rest, str(folder))
    for name, tensor in rest.items():
        for place in shared.get(name, [name]):
            _put(model, place, tensor)
    left = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if left:
        raise Damaged(
            f"{len(left)} tensors are missing for {chosen.__name__}, first {left[0]!r:.100}",
            where=str(folder),
        )
    _finish(model, folder)
    return model.eval()


class Hollow(TorchFunctionMode):
    """While it is on, what torch.empty makes has no memory, and filling it does nothing: every weight, until it gets
    its own. Buffers that are computed, such as rotary angles, are computed as ever."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            return func(*args, **{**kwargs, "device": "meta"})
        first = args[0] if args else kwargs.get("tensor")
        if func.__name__ in _FILLS and isinstance(first, Tensor) and first.is_meta:
            return first
        return func(*args, **kwargs)


def shared_names(model: nn.Module) -> Names:
    """Name of a parameter -> every name that it has in the model, for those that have several."""
    named: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        named.setdefault(id(parameter), []).append(name)
    return {name: names for names in named.values() if len(names) > 1 for name in names}


def _tensors(folder: Path, dtype: torch.dtype | None) -> tuple[Matrices, dict[str, Tensor]]:
    """The packed matrices with what each computes in, and all other tensors."""
    matrices: Matrices = {}
    rest: dict[str, Tensor] = {}
    with TensorFolder(folder) as tensors:
        for name in tensors.names():
            packed = tensors.packed(name)
            if packed is not None:
                matrices[name] = packed, dtype or tensors.dtype(name)
                continue
            tensor = tensors.view(name)
            rest[name] = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    return matrices, rest


def _all_known(known: dict[str, Any], names: Sequence[str], shared: Names, where: str) -> None:
    """Every tensor has a place in the model, and every place its tensor."""
    given = {place for name in names for place in shared.get(name, [name])}
    strange = sorted(set(names) - set(known))
    missing = sorted(set(known) - given)
    if strange and missing:  # some classes hold their tensors in another form than they are saved in
        raise Unsupported(
            f"tensor {strange[0]!r:.100} has no place of its own in the model", where=where, fix=DENSE
        )
    for word, found in (("unexpected", strange), ("missing", missing)):
        if found:
            raise Damaged(
                f"{len(found)} tensors are {word} for the model, first {found[0]!r:.100}", where=where
            )


def _put_packed(
    model: nn.Module, name: str, packed: Packed, dtype: torch.dtype, rest: dict[str, Tensor], where: str
) -> None:
    """The module that holds this weight, replaced by a packed one; its bias is taken out of `rest`."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf != "weight" or type(module) not in (nn.Linear, nn.Embedding):
        why = "multiplies its other side" if is_conv1d(module) else "is not known to multiply it so"
        raise Unsupported(f"{name} is packed, and {type(module).__name__} {why}", where=where, fix=DENSE)
    made = PackedEmbedding if type(module) is nn.Embedding else PackedLinear
    bias = rest.pop(f"{path}.bias", None)
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, made(packed, bias, dtype=dtype, checked=True))


def _put(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._parameters:
        setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        setattr(module, leaf, tensor)


def _finish(model: Any, folder: Path) -> None:
    """What transformers keeps beside the weights."""
    model.config.name_or_path = str(folder)
    if model.can_generate() and (folder / "generation_config.json").is_file():
        configs: Any = require("transformers", "hf").GenerationConfig
        model.generation_config = configs.from_pretrained(folder, local_files_only=True)
