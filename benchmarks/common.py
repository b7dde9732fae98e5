"""What the benchmarks share: where things lie, one measured process at a time, result files, tables."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CACHE, RESULTS = HERE / ".cache", HERE / "results"
WIKITEXT = HERE.parent.parent / "shared" / "data" / "wikitext2"
MODEL = "smollm2-135m"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
Row = dict[str, Any]


def data(name: str) -> str:
    """A file of the shared WikiText-2 folder."""
    path = WIKITEXT / name
    if not path.is_file():
        sys.exit(f"{path} is missing: the benchmarks measure on WikiText-2 tokens that lie there")
    return str(path)


def model_folder() -> str:
    """The embedded model as a float32 safetensors folder that transformers loads, made once."""
    folder = CACHE / MODEL
    if not folder.is_dir():
        from secateur.io.store import load, save

        loaded = load(MODEL, dtype="float32")
        CACHE.mkdir(exist_ok=True)
        save(loaded.model, folder, tokenizer=loaded.tokenizer)
    return str(folder)


def cell(job: Row, args: argparse.Namespace, python: str = sys.executable) -> Row:
    """Run one job (see cell.py) in a process of its own; with --keep, take an earlier result of the same job."""
    held = kept(job)
    job = {"model": model_folder(), **job}
    if (args.keep or args.cached) and held.is_file():
        return json.loads(held.read_text())
    name = " ".join(
        str(job[k]) for k in ("system", "method", "pattern", "feed", "products", "seed") if k in job
    )
    print(f"  {time.strftime('%H:%M:%S')}  {name}", file=sys.stderr, flush=True)
    row = process([python, str(HERE / "cell.py"), json.dumps(job)]) | {
        "date": time.strftime("%Y-%m-%d %H:%M")
    }
    held.parent.mkdir(parents=True, exist_ok=True)
    held.write_text(json.dumps(row))
    return row


def kept(job: Row) -> Path:
    """Where the result of a job is kept."""
    text = json.dumps({"model": model_folder(), **job}, sort_keys=True)
    return CACHE / "cells" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def process(command: list[str]) -> Row:
    """Run a command that writes JSON to its last argument, which is added here."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        done = subprocess.run(
            ["nice", "-n", "5", *command, str(out)],
            env={**os.environ, **ONE_THREAD, **QUIET},
            capture_output=True,
            text=True,
            cwd=HERE,
        )
        if done.returncode:
            raise RuntimeError(
                f"{' '.join(command)[:300]}\nleft with {done.returncode}:\n{done.stderr[-3000:]}"
            )
        return json.loads(out.read_text())


def best(runs: Sequence[Row]) -> Row:
    """Of several runs of one job, the smallest figure of each cost: what others do on the machine only adds."""
    out = dict(runs[-1])
    for key in out:
        if key.endswith(("_s", "_mb")):
            out[key] = min(run[key] for run in runs)
    return out | {"runs": len(runs)}


def machine() -> Row:
    """Processor, cores, memory and versions."""
    from importlib.metadata import version

    cpu = next((x.split(":")[1].strip() for x in _lines("/proc/cpuinfo") if x.startswith("model name")), "")
    memory = next((int(x.split()[1]) / 2**20 for x in _lines("/proc/meminfo") if x.startswith("MemTotal")), 0)
    flags = next((x for x in _lines("/proc/cpuinfo") if x.startswith("flags")), "")
    return {
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory),
        "bfloat16": [name for name in ("avx512_bf16", "amx_bf16") if name in flags.split()],
        "python": platform.python_version(),
        **{name: version(name) for name in ("secateur", "torch", "transformers", "numpy", "safetensors")},
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def write(name: str, rows: Sequence[Row], args: argparse.Namespace, **more: Any) -> None:
    """benchmarks/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    head = {
        "benchmark": name,
        "date": time.strftime("%Y-%m-%d"),
        "command": "make bench ARGS='" + " ".join(sys.argv[1:]) + "'",
        "machine": machine(),
    }
    text = json.dumps({**head, **more, "rows": list(rows)}, indent=1, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n")


def of_kernels(name: str, path: str | None) -> str:
    """The result's name for a path of the kernels; None: the best, avx512, which has no name of its own."""
    return name if path in (None, "avx512") else f"{name}-{path}"


def read(name: str) -> Row:
    """benchmarks/results/NAME.json as it was written."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        sys.exit(f"{path} is missing: run `make bench ARGS={name}` first")
    return json.loads(path.read_text())


def others(name: str, rows: Sequence[Row], keys: Sequence[str]) -> list[Row]:
    """Rows that benchmarks/results/NAME.json holds for other values of `keys` than those of `rows`."""
    mine = {tuple(row[key] for key in keys) for row in rows}
    held = read(name)["rows"] if (RESULTS / f"{name}.json").is_file() else []
    return [row for row in held if tuple(row[key] for key in keys) not in mine]


def table(rows: Sequence[Row], columns: dict[str, str | Callable[[Row], str]]) -> str:
    """A Markdown table. columns: head -> key of the row (with an optional format, "key:.2f") or a function."""

    def show(row: Row, how: str | Callable[[Row], str]) -> str:
        if callable(how):
            return how(row)
        key, _, form = how.partition(":")
        value = row.get(key)
        return "" if value is None else format(value, form)

    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += ["| " + " | ".join(show(row, how) for how in columns.values()) + " |" for row in rows]
    return "\n".join(lines)
