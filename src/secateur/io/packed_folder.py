"""A folder's packed matrices as the runtime multiplies them, on the memory of the files themselves."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from secateur.io.packed import Packed
from secateur.io.tensors import TensorFolder


def read_packed(folder: Path | str) -> dict[str, Packed]:
    """Name of the weight -> the matrix, for all that a sparse or packed folder holds in parts; no manifest is checked.

    Nothing is copied: pages come from the file when they are touched, and stay valid when the folder is replaced. Masks
    and scales are read and checked, values are not.

    Raises:
        Damaged: parts that do not fit one another, a file cut short.   Unsupported: a later version of the format.
        NoMatch: no such folder, or no weights in it.
    """
    return read_weights(folder)[0]


def read_weights(folder: Path | str) -> tuple[dict[str, Packed], dict[str, Tensor]]:
    """The same, and every other tensor of the folder, mapped too. Raises as `read_packed`."""
    packed: dict[str, Packed] = {}
    rest: dict[str, Tensor] = {}
    with TensorFolder(folder) as tensors:
        for name in tensors.names():
            matrix = tensors.packed(name)
            if matrix is None:
                rest[name] = tensors.view(name)
            else:
                packed[name] = matrix
    return packed, rest
