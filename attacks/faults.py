"""Fail each input-output call of a save in turn: the last good folder stays, nothing half written takes its name.

    python attacks/faults.py --n 50

ENOSPC, EIO, EACCES and EMFILE are raised at call 1, 2, 3 .. of a save, first for a plain module, then for a sharded
transformers model (whose own writer counts as one call). Then the real limits of the system: files that may not grow
(EFBIG, met inside safetensors too) and no more descriptors.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from attacks.common import forked, hear, llama_model, plain_model, report, save, value_of
from secateur.io import files
from secateur.io.files import sweep

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EMFILE)
CALLS = (
    *(
        (os, name)
        for name in ("open", "write", "pwrite", "pread", "fsync", "fchmod", "ftruncate", "posix_fallocate")
    ),
    *((os, name) for name in ("rename", "replace", "mkdir", "unlink", "rmdir", "scandir", "listdir", "stat")),
    (builtins, "open"),
    (files, "_exchange"),
)


@contextmanager
def failing(at: int, code: int) -> Iterator[Callable[[], int]]:
    """Within the block call number `at` (from 1; 0: none) raises OSError(code). Yields a counter of calls."""
    import safetensors.torch

    targets = [*CALLS, (safetensors.torch, "serialize_file")]
    targets += [(m, "safe_save_file") for m in list(sys.modules.values()) if hasattr(m, "safe_save_file")]
    real = [(owner, name, getattr(owner, name)) for owner, name in targets]
    count = 0

    def wrap(call: Any, name: str) -> Any:
        def counted(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                raise OSError(code, f"{os.strerror(code)} (injected in {name})")
            return call(*args, **options)

        return counted

    for owner, name, call in real:
        setattr(owner, name, wrap(call, name))
    try:
        yield lambda: count
    finally:
        for owner, name, call in real:
            setattr(owner, name, call)


def run(n: int, llama: bool = True) -> dict[str, Any]:
    """The first `n` calls x four errors x two kinds of model, then the system's own limits."""
    figures: dict[str, Any] = {
        "faults": 0,
        "raised": 0,
        "survived": 0,
        "calls_in_a_save": {},
        "limits": 0,
        "failures": [],
    }
    models = {"plain": plain_model(3, 16), **({"llama": llama_model()} if llama else {})}
    for kind, model in models.items():
        with tempfile.TemporaryDirectory() as root:
            _inject(kind, model, Path(root), n, figures)
        for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
            with tempfile.TemporaryDirectory() as root:
                _limit(kind, model, Path(root), limit, figures)
    return figures


def _inject(kind: str, model: torch.nn.Module, root: Path, n: int, figures: dict[str, Any]) -> None:
    out, value = root / "out", 1
    save(model, out, float(value))
    with failing(0, 0) as calls:
        save(model, out, float(value))
    figures["calls_in_a_save"][kind] = calls()
    for at in range(1, min(n, figures["calls_in_a_save"][kind]) + 1):
        for code in ERRORS:
            figures["faults"] += 1
            what = f"{kind}: {errno.errorcode[code]} at call {at}"
            try:
                with failing(at, code):
                    save(model, out, value + 1.0)
                figures["survived"] += 1
                expected = {value + 1}
            except OSError as error:
                figures["raised"] += 1
                expected = {value, value + 1}
                # Inside transformers makedirs turns a failed stat into EEXIST; ours must come through as they are.
                if error.errno != code and kind == "plain":
                    figures["failures"].append(f"{what}: became errno {error.errno}: {error}")
            except Exception as error:
                expected = {value, value + 1}
                figures["failures"].append(f"{what}: became {type(error).__name__}: {error}")
            value = _still_good(out, expected, what, figures) or value
    sweep(root)
    left = sorted(path.name for path in root.iterdir() if path != out)
    figures["failures"] += [f"{kind}: stray left: {name}" for name in left]


def _still_good(out: Path, expected: set[int], what: str, figures: dict[str, Any]) -> int | None:
    try:
        found = int(value_of(out))
    except Exception as error:
        figures["failures"].append(f"{what}: then {type(error).__name__}: {error}")
        return None
    if found not in expected:
        figures["failures"].append(f"{what}: holds {found}, expected one of {sorted(expected)}")
    return found


def _limit(kind: str, model: torch.nn.Module, root: Path, limit: int, figures: dict[str, Any]) -> None:
    """A child whose files may not grow beyond a few kB, or that may open few files, tries to save."""
    out = root / "out"
    save(model, out, 1.0)
    held = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 16
    for size in (0, 512, 4096) if limit == resource.RLIMIT_FSIZE else range(held - 2, held + 6, 2):

        def victim(say: Any, size: int = size) -> None:
            resource.setrlimit(limit, (size, size))
            try:
                save(model, out, 2.0)
                say("saved")
            except OSError as error:
                say(f"refused {error.errno}")

        pid, read = forked(victim)
        os.waitpid(pid, 0)
        lines = hear(read)
        figures["limits"] += 1
        what = f"{kind}: limit {limit} of {size}"
        if len(lines) != 1 or not lines[0].startswith(("saved", "refused")):
            figures["failures"].append(f"{what}: {lines}")
        _still_good(out, {2} if lines == ["saved"] else {1, 2}, what, figures)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=50, help="fail each of the first N calls")
    return report("faults", run(parser.parse_args().n))


if __name__ == "__main__":
    sys.exit(main())
