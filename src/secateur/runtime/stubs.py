"""A language model without its weights, for forecasts: its linear layers are replaced while a block runs.

stubs     modules that give back zeros and only read memory, as weights would
thin      packed matrices that keep little or nothing, so that whole layers run in the kernels (runtime/native.py)

And what those layers multiply in the model as it is (`inputs`): kernels take more steps for whole-number weights where
some entries of x are far larger than the others, which in language models they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.runtime import choice, library
from secateur.runtime.linear import PackedLinear
from secateur.runtime.sliver import sliver
from secateur.runtime.ways import Target

SPAN = 2 << 20  # bytes that a stub reads at most: all of a core's own cache


@torch.inference_mode()
def inputs(model: Any, found: list[Target], length: int = 8) -> dict[str, Tensor]:
    """What each layer of a language model multiplies for the last token of a prompt, [1, 1, columns], by the layers'
    names; none for a layer that is not called."""
    seen: dict[str, Tensor] = {}
    vocabulary = model.get_input_embeddings().weight.shape[0]

    def keep(target: Target) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0]
            seen[target.name] = x.reshape(-1, x.shape[-1])[-1:].unsqueeze(0).clone()

        return hook

    handles = [target.module.register_forward_pre_hook(keep(target)) for target in found]
    try:
        model(input_ids=torch.tensor([[(37 * at + 11) % vocabulary for at in range(length)]]))
    finally:
        for handle in handles:
            handle.remove()
    return seen


class Traffic:
    """Reads of weights that nobody needs: through more memory than a cache holds, with their seconds counted."""

    def __init__(self) -> None:
        self.memory = torch.ones(choice.COLD >> 2)
        self.at, self.seconds = 0, 0.0
        self.library: Any = library.load()

    def read(self, size: int) -> None:
        """Pass on over the next `size` bytes; at the end from the start."""
        start = time.perf_counter()
        size = min(size, SPAN)  # in one thread: others have no part in what is not weights
        self.at = self.at if self.at + size <= self.memory.nbytes else 0
        if self.library is not None:
            self.library.secateur_read(self.memory.data_ptr() + self.at, size, 1)
        self.at += size // 64 * 64
        self.seconds += time.perf_counter() - start

    def clock(self) -> float:
        """Seconds, but for those of reading."""
        return time.perf_counter() - self.seconds


class Stub(nn.Module):
    """A linear layer that costs nothing but its traffic: zeros, made before."""

    def __init__(self, target: Target, traffic: Traffic) -> None:
        super().__init__()
        rows, columns = target.weight.shape
        self.in_features, self.out_features = columns, rows
        self.row = torch.zeros(1, 1, rows, dtype=target.weight.dtype)
        self.held: dict[tuple[int, ...], Tensor] = {}
        self.traffic = traffic

    def forward(self, x: Tensor) -> Tensor:
        self.traffic.read(self.in_features * self.out_features)
        if x.numel() == self.in_features and x.dim() == 3:
            return self.row
        shape = (*x.shape[:-1], self.out_features)
        if shape not in self.held:
            self.held = {shape: self.row.new_zeros(shape)}
        return self.held[shape]


@contextmanager
def stubs(found: list[Target]) -> Iterator[Traffic]:
    """The model with a `Stub` for every linear layer; gives what counts the reading."""
    traffic = Traffic()
    with _replaced(found, lambda target: Stub(target, traffic)):
        yield traffic


@contextmanager
def thin(found: list[Target], kept: int) -> Iterator[None]:
    """The model with a `sliver` for every linear layer; layers of one shape share some, once they fill no cache."""
    held: dict[tuple[int, int], list[PackedLinear]] = {}
    size = 0

    def made(target: Target) -> nn.Module:
        nonlocal size
        rows, columns = target.weight.shape
        some = held.setdefault((rows, columns), [])
        if size < choice.COLD or not some:
            some.append(sliver(rows, columns, kept, target.weight.dtype))
            size += some[-1].nbytes
        else:
            some.append(some.pop(0))
        return some[-1]

    with _replaced(found, made):
        yield


@contextmanager
def _replaced(found: list[Target], make: Callable[[Target], nn.Module]) -> Iterator[None]:
    try:
        for target in found:
            made = make(target)
            for parent, name in target.places:
                setattr(parent, name, made)
        yield
    finally:
        for target in found:
            for parent, name in target.places:
                setattr(parent, name, target.module)
