"""A folder's packed matrices as the runtime multiplies them, on the memory of the files themselves."""

from __future__ import annotations

from pathlib import Path

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
    with TensorFolder(folder) as tensors:
        found = {name: tensors.packed(name) for name in tensors.names()}
    return {name: matrix for name, matrix in found.items() if matrix is not None}
