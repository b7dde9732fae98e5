"""Keep the process as small as what it holds: calls to the allocators of glibc and MKL (elsewhere nothing happens).

A forward pass leaves holes in the heap that glibc keeps for later, and MKL keeps a working buffer for every thread that
has multiplied: 3 MB for each batch of feed `layer`. Measured on SmolLM2-135M: docs/speed.md.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

_M_ARENA_MAX = -8  # malloc.h


def release() -> None:
    """Give free memory back to the system: every few batches, after each site of feed `layer`, after each block."""
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


def leave_thread() -> None:
    """Give back what MKL keeps for this thread. A thread that is about to wait calls it."""
    free = _mkl_free_buffers()
    if free is not None:
        free()


@cache
def _mkl_free_buffers() -> Any:
    """MKL's own function, where torch was linked with MKL and shows it."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not library.is_file():
        return None
    return getattr(ctypes.CDLL(str(library)), "mkl_serv_thread_free_buffers", None)
