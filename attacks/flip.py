"""Damage a saved folder: single flipped bits, zeroed 4 KiB pages, truncations. All of it must be refused, by name.

    python attacks/flip.py --n 1000        (and a fifth of that of pages and of truncations)

Three folders: a plain module, a sharded transformers model, and a sparse one. Each is damaged in place and mended
again; the refusal must name the file and, where the damage lies in a tensor, that tensor.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from attacks.common import llama_model, plain_model, report, rng
from secateur.errors import Damaged
from secateur.io.checkpoint import save_checkpoint
from secateur.io.files import open_regular
from secateur.io.header import read_header
from secateur.io.manifest import check_manifest

PAGE = 4096


def run(n: int, seed: int = 0, llama: bool = True) -> dict[str, Any]:
    """`n` flips, n // 5 pages, n // 5 truncations over the folders. Returns figures and failures."""
    random = rng(seed)
    figures: dict[str, Any] = {
        "flips": 0,
        "pages": 0,
        "truncations": 0,
        "refused": 0,
        "named": 0,
        "failures": [],
    }
    with tempfile.TemporaryDirectory() as root:
        folders = _folders(Path(root), llama)
        files = [path for folder in folders for path in sorted(folder.iterdir())]
        sizes = [path.stat().st_size for path in files]
        for kind, count in (("flips", n), ("pages", n // 5), ("truncations", n // 5)):
            while figures[kind] < count:
                # Half by size, so that weights are hit most; half by file, so that small files are hit too.
                path = random.choice(files) if figures[kind] % 2 else random.choices(files, sizes)[0]
                good = path.read_bytes()
                bad, at = _damage(kind, good, random)
                if bad == good:
                    continue  # a page that was zero already
                figures[kind] += 1
                _try(path, good, bad, at, kind, figures)
        for folder in folders:
            check_manifest(folder)  # all of it was mended: what is refused above is refused for the damage
    return figures


def _folders(root: Path, llama: bool) -> list[Path]:
    torch.manual_seed(0)
    plain = plain_model(4, 64)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter[torch.rand_like(parameter) < 0.5] = 0
    folders = [
        save_checkpoint(root / "plain", model=plain),
        save_checkpoint(root / "sparse", model=plain, format="sparse"),
    ]
    if llama:
        folders.append(save_checkpoint(root / "llama", model=llama_model(), max_shard=40_000))
    return folders


def _damage(kind: str, good: bytes, random: Any) -> tuple[bytes, tuple[int, int]]:
    """The damaged bytes, and from where to where they differ."""
    if kind == "flips":
        at = random.randrange(len(good))
        return good[:at] + bytes([good[at] ^ (1 << random.randrange(8))]) + good[at + 1 :], (at, at + 1)
    if kind == "pages":
        at = random.randrange(-(-len(good) // PAGE)) * PAGE
        end = min(at + PAGE, len(good))
        return good[:at] + bytes(end - at) + good[end:], (at, end)
    at = random.randrange(len(good))
    return good[:at], (at, len(good))


def _try(
    path: Path, good: bytes, bad: bytes, at: tuple[int, int], kind: str, figures: dict[str, Any]
) -> None:
    hit = _tensors_hit(path, at)
    path.write_bytes(bad)
    try:
        check_manifest(path.parent)
        figures["failures"].append(f"{kind} at {at} of {path.name} was accepted")
    except Damaged as error:
        figures["refused"] += 1
        names_file = path.name in str(error)
        names_tensor = not hit or any(repr(name) in str(error) for name in hit)
        if names_file and names_tensor and len(str(error).splitlines()) == 1:
            figures["named"] += 1
        else:
            figures["failures"].append(f"{kind} at {at} of {path.name} in {hit}: says only {error}")
    except Exception as error:
        figures["failures"].append(f"{kind} at {at} of {path.name}: {type(error).__name__}: {error}")
    finally:
        path.write_bytes(good)


def _tensors_hit(path: Path, at: tuple[int, int]) -> list[str]:
    """Names of the tensors whose bytes were damaged; none when the head was hit (then no name can be trusted)."""
    if path.suffix != ".safetensors":
        return []
    import os

    fd = open_regular(path)
    try:
        header = read_header(fd, str(path))
    finally:
        os.close(fd)
    if at[0] < header.data_start:
        return []
    return [name for name, e in header.entries.items() if e.start < at[1] and at[0] < e.end]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--n", type=int, default=1000, help="flipped bits; a fifth of it pages and truncations"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    return report("flip", run(options.n, options.seed))


if __name__ == "__main__":
    sys.exit(main())
