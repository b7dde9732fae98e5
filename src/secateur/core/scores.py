"""Scores are plain tensors, one number a unit, higher = keep. Here: the checks and the digest every score passes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.errors import BadInput


def finite(tensor: Tensor, name: str, what: str = "weights") -> Tensor:
    """Return `tensor` unchanged, or refuse it.

    Raises:
        BadInput: it holds NaN or Inf; the line names the tensor and counts both.
    """
    # One reduction answers for good tensors: a sum of squares is finite only if every entry is (or it overflowed,
    # which the exact count below settles).
    if tensor.is_floating_point() and not torch.isfinite(
        tensor.detach().abs().amax() if tensor.numel() else tensor.sum()
    ):
        nan, inf = int(torch.isnan(tensor).sum()), int(torch.isinf(tensor).sum())
        raise BadInput(
            f"{nan} NaN and {inf} Inf among {tensor.numel()} {what}",
            where=name,
            fix="repair or drop it first",
        )
    return tensor


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """True if none of the tensors holds NaN or Inf: by their 2-norms, and by the maximum where squares overflow."""
    held = [tensor.detach() for tensor in tensors if tensor.numel()]
    for order in (2.0, float("inf")) if held else ():
        norms = torch._foreach_norm(held, order)  # pyright: ignore[reportPrivateImportUsage]
        if bool(torch.stack([value.float() for value in norms]).isfinite().all()):
            return True
    return not held


def digest(*tensors: Tensor) -> str:
    """sha256 (hex) of the bytes, dtypes and shapes, in order: two runs that agree on it agree on every bit."""
    sha = hashlib.sha256()
    for tensor in tensors:
        cpu = tensor.detach().to("cpu").contiguous()
        sha.update(f"{cpu.dtype}{tuple(cpu.shape)}".encode())
        sha.update(cpu.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
