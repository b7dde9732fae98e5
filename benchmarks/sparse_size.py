"""sparse-size: bytes of --format sparse against dense over the cut tensors, and the time to load both."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import Row, model_folder, table, write

LIMITS = {"float32": 0.54, "bfloat16": 0.57}


def run(args: argparse.Namespace) -> None:
    """Wanda 50% needs no calibration to have half zeros: magnitude per row gives the same counts, so it stands in."""
    torch.set_num_threads(1)
    rows = [measure(dtype, pattern) for dtype in LIMITS for pattern in ("row", "2:4")]
    write("sparse-size", rows, args)


def measure(dtype: str, pattern: str) -> Row:
    """Save one cut model in both formats, read both back, and compare every bit."""
    from secateur import api
    from secateur.registry import make

    loaded = api.load(model_folder(), dtype=dtype)
    method = {"pattern": pattern} | ({} if ":" in pattern else {"sparsity": 0.5})
    result = api.compress(loaded, make("magnitude", **method), undo=False)
    cut = [f"{name}.weight" for name in result.plan.sites]
    row: Row = {"dtype": dtype, "pattern": pattern, "limit": LIMITS[dtype]}
    with tempfile.TemporaryDirectory() as folder:
        states: dict[str, dict[str, torch.Tensor]] = {}
        for format in ("dense", "sparse"):
            out = Path(folder) / format
            row[f"{format}_save_cpu_s"], _ = timed(
                lambda out=out, format=format: api.save(
                    loaded.model,
                    out,
                    tokenizer=loaded.tokenizer,
                    plan=result.plan,
                    source=loaded.folder,
                    format=format,
                )
            )
            row[f"{format}_load_cpu_s"], found = timed(lambda out=out: api.load(out))
            states[format] = found.model.state_dict()
            row[f"{format}_cut_bytes"] = stored_bytes(out, cut)
            row[f"{format}_folder_bytes"] = sum(p.stat().st_size for p in out.iterdir())
        row["bit_for_bit"] = all(
            torch.equal(states["dense"][n], states["sparse"][n]) for n in states["dense"]
        )
    row["of_dense"] = row["sparse_cut_bytes"] / row["dense_cut_bytes"]
    row["folder_of_dense"] = row["sparse_folder_bytes"] / row["dense_folder_bytes"]
    return row


def stored_bytes(folder: Path, names: list[str]) -> int:
    """Bytes in the files that hold these tensors, whatever parts the format stores them in."""
    from secateur.io.tensors import TensorFolder

    with TensorFolder(folder) as tensors:
        return sum(tensors.stored_bytes(name) for name in names)


def timed(run: Any) -> tuple[float, Any]:
    start = time.process_time()
    out = run()
    return round(time.process_time() - start, 2), out


def tables(found: Row) -> str:
    """The table of results/sparse-size.json."""
    return table(
        found["rows"],
        {
            "dtype": "dtype",
            "pattern": "pattern",
            "cut tensors, sparse of dense": "of_dense:.4f",
            "at most": "limit",
            "whole folder": "folder_of_dense:.3f",
            "load dense, CPU-s": "dense_load_cpu_s:.2f",
            "load sparse, CPU-s": "sparse_load_cpu_s:.2f",
            "same bits": "bit_for_bit",
        },
    )
