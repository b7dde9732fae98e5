"""quality: the yardstick on the shared tokens, agreement of masks, methods x patterns x seeds by `secateur compare`."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import speed
from common import CACHE, HERE, ONE_THREAD, QUIET, Row, cell, data, table, write

# What the papers' own procedure gave on these tokens (shared/data/README.md), and how far off a row may be.
YARDSTICK = {
    "dense": (32.9, 0.02),
    "wanda 50%": (69.1, 0.02),
    "sparsegpt 50%": (59.0, 0.02),
    "wanda 2:4": (217.0, 0.05),
    "magnitude 50%": (506.0, 0.05),
}
PATTERNS = ("50%", "4:8", "2:4")
# (name, mask file, mask file, fraction of positions that must agree at least)
MASKS = (
    (
        "wanda: feed block, float32, against the plain two-pass loop",
        "secateur-block-float32",
        "plain",
        "wanda",
        0.995,
    ),
    (
        "wanda: bfloat16 against float32 products",
        "secateur-layer-bfloat16",
        "secateur-layer-float32",
        "wanda",
        0.99,
    ),
    ("wanda: feed layer against block", "secateur-layer-float32", "secateur-block-float32", "wanda", None),
    ("wanda: feed none against block", "secateur-none-float32", "secateur-block-float32", "wanda", None),
    (
        "sparsegpt: feed block, float32, against the plain two-pass loop",
        "secateur-block-float32",
        "plain",
        "sparsegpt",
        None,
    ),
    (
        "sparsegpt: bfloat16 against float32 products",
        "secateur-block-bfloat16",
        "secateur-block-float32",
        "sparsegpt",
        None,
    ),
)
WINDOWS = 12


def run(args: argparse.Namespace) -> None:
    """Measure and write results/quality.json."""
    rows = yardstick(args)
    masks = agreements()
    compared, command = compare(args)
    more = {"masks": masks, "compare_command": command, "compare": compared, "order": order(compared)}
    write("quality", rows, args, **more)


def tables(found: Row) -> str:
    """The tables of results/quality.json."""
    met = {"met": "met"}
    columns = {"": "name", "measured": "perplexity:.2f", "yardstick": "yardstick", "off by": "off:+.1%"} | met
    masks = {"masks": "name", "same positions": "positions:.3%", "at least": "limit"} | met
    return "\n\n".join(
        [
            table(found["rows"], columns),
            table(found["masks"], masks),
            f"`{found['compare_command']}`",
            show(found["compare"]),
            table(found["order"], {"order": "name", "holds for every seed": "holds"}),
        ]
    )


def yardstick(args: argparse.Namespace) -> list[Row]:
    """Feed block, float32, on exactly the shared tokens. A cell that `speed` has measured is taken from there."""
    args = argparse.Namespace(**{**vars(args), "keep": True})
    known = {name: job for name, job, _ in speed.jobs(["wanda", "sparsegpt"], None)}
    base = known["wanda: secateur block float32"]
    jobs = {
        "dense": {"system": "dense", "evaluation": base["evaluation"], "windows": 24},
        "wanda 50%": base | mask("wanda: secateur block float32"),
        "sparsegpt 50%": known["sparsegpt: secateur block float32"]
        | mask("sparsegpt: secateur block float32"),
        "wanda 2:4": {**base, "pattern": "2:4"},
        "magnitude 50%": {**base, "method": "magnitude", "pattern": "layer"},
    }
    out = []
    for name, job in jobs.items():
        goal, limit = YARDSTICK[name]
        found = cell(job, args)["perplexity"]
        off = found / goal - 1
        out.append(
            {
                "name": name,
                "perplexity": found,
                "yardstick": goal,
                "off": off,
                "limit": limit,
                "met": str(abs(off) <= limit),
            }
        )
        print(name, round(found, 2), flush=True)
    return out


def mask(name: str) -> Row:
    return {"masks": str(speed.mask_file(name))}


def agreements() -> list[Row]:
    """Fraction of positions with the same fate, of the mask files that `speed` left."""
    out = []
    for name, first, second, method, limit in MASKS:
        files = [CACHE / "masks" / f"{method}-{part}.npz" for part in (first, second)]
        if not all(file.is_file() for file in files):
            print(f"no masks for {name!r}: run speed first", file=sys.stderr)
            continue
        a, b = (np.load(file, allow_pickle=False) for file in files)
        different = sum(int(np.bitwise_count(a[n] ^ b[n]).sum()) for n in a.files)
        positions = 1 - different / (8 * sum(a[n].size for n in a.files))  # all widths are multiples of 8
        out.append({"name": name, "positions": positions, "limit": limit})
        out[-1]["met"] = "" if limit is None else str(positions >= limit)
    return out


def compare(args: argparse.Namespace) -> tuple[list[Row], str]:
    """`secateur compare` in a process of its own; its rows, grouped over the seeds, and the command.

    With --keep, methods that an earlier command has compared (`.cache/cmp-*`) are taken from there.
    """
    methods = {
        f"{m} {p}": f"{m}:pattern={p}" if ":" in p else m for m in ("wanda", "sparsegpt") for p in PATTERNS
    }
    methods["magnitude 50%"] = "magnitude"
    seeds = ",".join(map(str, range(args.seeds)))
    terms = f"--seeds {seeds} --samples 32 --length 512 --windows {WINDOWS}".split()
    terms += ["--calibration", data("wiki.valid.raw"), "--text", data("wiki.test.raw")]
    shown = shlex.join(["secateur", "compare", "smollm2-135m", *methods.values(), *terms])
    found = _compared() if args.keep or args.cached else []
    missing = [words for name, words in methods.items() if not any(row["name"] == name for row in found)]
    if missing and not args.cached:
        program = Path(sys.executable).with_name("secateur")
        out = CACHE / f"cmp-{time.strftime('%H%M%S')}"
        words = [str(program), "compare", "smollm2-135m", *missing, *terms, "--out", str(out), "--quiet"]
        print(f"  {shlex.join(words)}", file=sys.stderr, flush=True)
        subprocess.run(["nice", "-n", "5", *words], env={**os.environ, **ONE_THREAD, **QUIET}, check=True)
        found += [row for row in _rows(out) if row["name"] in methods or not found]
    order = ["dense", *methods]
    rows = sorted(
        (row for row in grouped(found) if row["name"] in order), key=lambda r: order.index(r["name"])
    )
    return rows, shown.replace(str(HERE.parent.parent), "..")


def _compared() -> list[Row]:
    """Rows of earlier comparisons, each model and seed once."""
    found: dict[tuple[str, int | None], Row] = {}
    for folder in sorted(CACHE.glob("cmp-*")):
        for row in _rows(folder):
            found.setdefault((row["name"], row["seed"]), row)
    return list(found.values())


def _rows(folder: Path) -> list[Row]:
    path = folder / "results.json"
    return json.loads(path.read_text())["rows"] if path.is_file() else []


def grouped(rows: list[Row]) -> list[Row]:
    """One row a method and pattern: mean and spread of the perplexity over the seeds."""
    out = []
    for name in dict.fromkeys(row["name"] for row in rows):
        found = [row for row in rows if row["name"] == name]
        values = [row["metrics"]["perplexity"] for row in found]
        out.append(
            {
                "name": name,
                "perplexity": mean(values),
                "spread": stdev(values) if len(values) > 1 else None,
                "values": values,
                "accuracy": mean(row["metrics"]["accuracy"] for row in found),
                "sparsity": found[0]["sparsity"],
            }
        )
    return out


def order(rows: list[Row]) -> list[Row]:
    """The papers' order, each seed against the same seed of the other."""
    by_name = {row["name"]: row["values"] for row in rows}

    def below(low: str, high: str) -> bool:
        a, b = by_name[low], by_name[high]
        return all(a[min(i, len(a) - 1)] < b[min(i, len(b) - 1)] for i in range(max(len(a), len(b))))

    chains = [["dense", "sparsegpt 50%", "wanda 50%", "magnitude 50%"]]
    chains += [[f"{m} {p}" for p in PATTERNS] for m in ("wanda", "sparsegpt")]
    return [
        {
            "name": " < ".join(chain),
            "holds": str(all(below(a, b) for a, b in pairwise(chain))),
        }
        for chain in chains
        if all(name in by_name for name in chain)
    ]


def show(rows: list[Row]) -> str:
    def spread(row: Row) -> str:
        return f"{row['perplexity']:.2f}" + ("" if row["spread"] is None else f" ± {row['spread']:.2f}")

    return table(
        rows, {"model": "name", "perplexity": spread, "accuracy": "accuracy:.3f", "sparsity": "sparsity:.3f"}
    )
