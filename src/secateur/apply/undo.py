"""Changing weights in a way that can be taken back: the originals are kept beside the model until they are let go."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor


class Undo:
    """Remembers what it overwrites. As a context manager it takes everything back if an exception passes through.

    Args:
        keep: with False nothing is remembered (the caller holds the model on disk) and memory is not doubled.
    """

    def __init__(self, keep: bool = True) -> None:
        self.keep = keep
        self._before: list[tuple[Tensor, Tensor]] = []

    def write(self, target: Tensor, values: Tensor) -> None:
        """Copy `values` over `target` (same shape), remembering what was there."""
        if self.keep:
            self._before.append((target, target.clone()))
        with torch.no_grad():
            target.copy_(values)

    def undo(self) -> None:
        """Put back every original, last change first; the memory is released."""
        with torch.no_grad():
            while self._before:
                target, before = self._before.pop()
                target.copy_(before)

    def release(self) -> None:
        """Make the changes final."""
        self._before.clear()

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.undo()
