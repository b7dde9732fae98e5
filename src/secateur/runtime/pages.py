"""Memory in huge pages (Linux): weights that are read through once a token, at one page-table entry for 2 MiB.

With entries for 4 KiB a product of 4096 x 4096 in the kernels takes about a tenth longer (docs/faster.md). Small
tensors lie side by side in blocks of 32 MiB, larger ones in one of their own; a block goes when its last tensor does.
"""

from __future__ import annotations

import mmap
import threading
import weakref
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

PAGE = 2 << 20
BLOCK = 32 << 20
_LINE = 64  # bytes of a cache line, where every tensor begins
_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_taken: weakref.WeakKeyDictionary[mmap.mmap, tuple[int, int]] = weakref.WeakKeyDictionary()  # addresses


class _Block:
    """The last block that small tensors lie in, as long as one of them is alive, and what is left of it."""

    held: weakref.ref[mmap.mmap] | None = None
    at = end = 0
    lock = threading.Lock()


def room(nbytes: int) -> Tensor:
    """uint8 [nbytes] of fresh memory: in huge pages where the system has them, else as torch takes it."""
    if not nbytes or not there_are():
        return torch.empty(nbytes, dtype=torch.uint8)
    space = -(-nbytes // _LINE) * _LINE
    if space > BLOCK // 2:
        held, at, _ = _map(space)
        return torch.frombuffer(held, dtype=torch.uint8, count=nbytes, offset=at)
    with _Block.lock:
        held = None if _Block.held is None else _Block.held()
        if held is None or _Block.at + space > _Block.end:
            held, _Block.at, _Block.end = _map(BLOCK)
            _Block.held = weakref.ref(held)
        at, _Block.at = _Block.at, _Block.at + space
    return torch.frombuffer(held, dtype=torch.uint8, count=nbytes, offset=at)


def copied(tensor: Tensor) -> Tensor:
    """A contiguous copy of a tensor of the CPU, in `room`."""
    made = room(tensor.nbytes).view(tensor.dtype).view(tensor.shape)
    return made.copy_(tensor)


def holds(tensor: Tensor) -> bool:
    """Whether a tensor lies in a `room` of huge pages."""
    return any(first <= tensor.data_ptr() < last for first, last in _taken.values())


def there_are() -> bool:
    """Whether this system gives out huge pages to who asks."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return False
    try:
        return "[never]" not in _SWITCH.read_text()
    except OSError:
        return False


def _map(nbytes: int) -> tuple[mmap.mmap, int, int]:
    """Anonymous memory, and where in it whole huge pages begin and end that hold so many bytes."""
    size = -(-nbytes // PAGE) * PAGE
    held = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = torch.frombuffer(held, dtype=torch.uint8, count=1).data_ptr()
    at = -start % PAGE
    with suppress(OSError):  # a wish, which a sandbox may not pass on: the memory is good without
        held.madvise(mmap.MADV_HUGEPAGE, at, size)
    _taken[held] = start + at, start + at + size
    return held, at, at + size
