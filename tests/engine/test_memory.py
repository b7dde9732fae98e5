"""Memory handed back to the system, measured in a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

HOLES = """
import sys, torch
from secateur.engine.memory import one_heap, release

def resident():
    return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmRSS"))

one_heap()
held = [torch.ones(16_000) for _ in range(3000)]  # 64 kB each: below what malloc maps for itself
top = resident()
del held[:-1]
import gc; gc.collect()
before = resident()
release()
print(top, before, resident())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's allocator only"
)
def test_what_was_freed_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    _, before, after = map(int, done.stdout.split())
    assert before - after > 150_000  # of about 190 MB: they lay in holes below the last tensor
