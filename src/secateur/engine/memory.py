"""Keep the process as small as what it holds: two calls to the allocator of glibc (elsewhere nothing happens).

A forward pass leaves holes in the heap that glibc keeps for later. Measured on SmolLM2-135M: docs/speed.md.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from typing import Any

_M_ARENA_MAX = -8  # malloc.h


def release() -> None:
    """Give free memory back to the system. The walk calls it every few batches and after each block."""
    trim = getattr(_libc(), "malloc_trim", None)
    if trim is not None:
        trim(0)


def one_heap() -> None:
    """Let all threads of this process share one heap. Call it before any work.

    glibc gives each thread a heap of its own and keeps what was freed there for that thread alone; the batches of feed
    `layer` run in threads that never run at the same time (engine/turns.py), so one heap serves them all. It holds for
    the whole process, so a command calls it and the library does not.
    """
    mallopt = getattr(_libc(), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


@cache
def _libc() -> Any:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
