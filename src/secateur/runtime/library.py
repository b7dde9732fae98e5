"""The compiled kernels of runtime/kernels: found inside the package, loaded once, told which threads to use.

Where they are missing (no compiler when the package was installed, another system) everything works through torch,
with one `KernelsMissing` warning. SECATEUR_KERNELS chooses a path for a process: portable, avx2, avx512, or torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import time
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch

from secateur.errors import BadInput, one_of
from secateur.runtime import pages

ABI = 2
PATHS = ("portable", "avx2", "avx512")
VARIABLE = "SECATEUR_KERNELS"
FILE = "libsecateur_kernels.so"  # on macOS too: CMake's name for a module


class KernelsMissing(UserWarning):
    """The compiled kernels are not there: sparse products go through torch, many times slower."""


@cache
def load() -> ctypes.CDLL | None:
    """The kernels, or None (warned of once) where there are none or SECATEUR_KERNELS=torch asks for none.

    Raises:
        BadInput: SECATEUR_KERNELS is no path, or one that this processor does not have.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked:
        one_of(asked, (*PATHS, "torch"), VARIABLE)
    if asked == "torch":
        return None
    library, why = _open()
    if library is None:
        warnings.warn(
            f"no compiled kernels ({why}): sparse products go through torch, many times slower; "
            "with a C compiler, pip install --force-reinstall secateur builds them",
            KernelsMissing,
            stacklevel=2,
        )
        return None
    library.secateur_set_gomp(openmp())
    if asked:
        _use(library, asked)
    return library


def features() -> dict[str, Any]:
    """What runs here: `path` (torch where the kernels are missing), `paths` it could take, `threads`, whose threads."""
    library = load()
    known: dict[str, Any] = {
        "path": "torch",
        "paths": [],
        "threads": torch.get_num_threads(),
        "pool": "torch",
    }
    if library is None:
        return known
    paths = PATHS[: library.secateur_best() + 1]
    pool = "OpenMP of torch" if openmp() else "own"
    return known | {"path": PATHS[library.secateur_path()], "paths": list(paths), "pool": pool}


@cache
def digest() -> str:
    """Of the compiled kernels, as they lie in their file: others have other times. Empty where there are none."""
    library = load()
    return "" if library is None else hashlib.sha256(Path(library._name).read_bytes()).hexdigest()[:16]


def use(path: str) -> None:
    """Take this path from now on, in the whole process: for tests and measurements.

    Raises:
        BadInput: no such path, not on this processor, or no kernels.
    """
    one_of(path, PATHS, "path")
    library = load()
    if library is None:
        raise BadInput(f"no compiled kernels to take {path} in", where="kernels")
    _use(library, path)


def bandwidth(megabytes: int = 256, repeats: int = 5) -> float:
    """Bytes a second that memory delivers to torch's number of threads: the best of some reads of so many megabytes.

    Without the kernels torch sums instead, which may be slower than memory is.
    """
    library, memory = load(), pages.room(megabytes << 20).fill_(1)
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        if library is None:
            memory.view(torch.float32).sum()
        else:
            library.secateur_read(memory.data_ptr(), memory.nbytes, torch.get_num_threads())
        best = max(best, memory.nbytes / (time.perf_counter() - start))
    return best


def _use(library: ctypes.CDLL, path: str) -> None:
    index, best = PATHS.index(path), library.secateur_best()
    if index > best:
        raise BadInput(
            f"{path} is more than this processor has", where=VARIABLE, fix=f"its best is {PATHS[best]}"
        )
    library.secateur_use(index)


def _open() -> tuple[ctypes.CDLL | None, str]:
    """The library and what stood in the way of it."""
    import secateur.runtime

    # An editable install puts it beside the wheel's files; who works on the kernels builds it in the tree: the newest.
    places = [Path(folder) / "kernels" / FILE for folder in secateur.runtime.__path__]
    found = sorted((place for place in places if place.is_file()), key=lambda place: place.stat().st_mtime)
    if not found:
        return None, "not built when secateur was installed"
    try:
        library = ctypes.CDLL(str(found[-1]))
        _signatures(library)
    except (OSError, AttributeError) as error:
        return None, " ".join(str(error).split())
    if library.secateur_abi() != ABI:
        return None, f"{FILE} was built from other sources"
    return library, ""


def _signatures(library: ctypes.CDLL) -> None:
    """What the functions of secateur.h take and return."""
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.secateur_linear.argtypes = [ctypes.c_char_p, pointer, pointer, number, number, number]
    library.secateur_linear.restype = ctypes.c_int
    library.secateur_step.argtypes = [ctypes.c_char_p, pointer, number, number, number, number]
    library.secateur_step.restype = ctypes.c_int
    library.secateur_use.argtypes = [number]
    library.secateur_read.argtypes, library.secateur_read.restype = [pointer, number, number], number
    for name in ("abi", "best", "path", "use"):
        getattr(library, f"secateur_{name}").restype = number
    library.secateur_set_gomp.argtypes, library.secateur_set_gomp.restype = [pointer], None


@cache
def openmp() -> int | None:
    """Address of GOMP_parallel in the OpenMP runtime that torch has loaded; None: it is another kind."""
    folder = Path(torch.__file__).parent / "lib"
    loaded = sorted(str(path) for pattern in ("libgomp*", "libiomp*") for path in folder.glob(pattern))
    for name in (None, *loaded):
        try:
            return ctypes.cast(ctypes.CDLL(name).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None
