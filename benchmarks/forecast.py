"""forecast: what `secateur forecast` promises beside what is then measured, for whole models.

    make bench ARGS="forecast [--models smollm2-135m llama-1.1b] [--rounds 3] [--match int8 ...] [--show]"

Models and cuts are those of end_to_end. Every row is a process of its own: the packed model writes 32 tokens after a
prompt of 128 (medians of 3), then the forecast probes kernels and the model without its weights, then it writes again;
so both see the same state of the machine. Where what was written before and after differs by more than STEADY the
machine changed meanwhile (a neighbour on its cores or its memory), and the reading is taken again, up to TRIES times;
`drift` is what is left. Rounds go round all rows; figures are medians over them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import HERE, MODEL, QUIET, Row, others, read, table, write
from end_to_end import cut, prepared

AIM = 0.15
STEADY, TRIES = 0.08, 4
# name -> dtype of the model, its cut, the layout and values of its layers
WAYS: dict[str, Row] = {
    "dense float32, torch": {"dtype": "float32", "kind": "torch", "values": "float32"},
    "dense bfloat16, torch": {"dtype": "bfloat16", "kind": "torch", "values": "bfloat16"},
    "dense int8": {"dtype": "bfloat16", "kind": "dense", "values": "int8"},
    "50% bfloat16": {"dtype": "bfloat16", "cut": "50%", "kind": "bitmask", "values": "bfloat16", "sparsity": 0.5},
    "50% int8": {"dtype": "bfloat16", "cut": "50%", "kind": "bitmask", "values": "int8", "sparsity": 0.5},
    "2:4 int8": {"dtype": "bfloat16", "cut": "2:4", "kind": "2:4", "values": "int8", "sparsity": 0.5},
    "16x1 70% int8": {"dtype": "bfloat16", "cut": "16x1 70%", "kind": "16x1", "values": "int8", "sparsity": 0.7},
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[MODEL, "llama-1.1b"], choices=(MODEL, "llama-1.1b"))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3, help="processes of every row")
    parser.add_argument("--match", nargs="+", help="only ways whose name holds one of these")
    parser.add_argument("--show", action="store_true", help="measure nothing: print the table of the results")
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.cell:
        print("RESULT " + json.dumps(cell(json.loads(args.cell))))
        return 0
    if not args.show:
        run(args)
    print(f"\n## forecast\n\n{shown(read('forecast'))}\n")
    return 0


def run(args: argparse.Namespace) -> None:
    """Measure and write results/forecast.json."""
    jobs = [
        {"model": model, "way": way, **how, "threads": threads, "run": "ours"}
        for model in args.models
        for way, how in WAYS.items()
        for threads in args.threads
        if not args.match or any(part in way for part in args.match)
    ]
    found: list[list[Row]] = [[] for _ in jobs]
    for _ in range(args.rounds):
        for job, rows in zip(jobs, found, strict=True):
            rows.append(steady({**job, "path": prepared(job)}))
            print(f"  {job['model']} {job['way']} x{job['threads']}: {rows[-1]}", file=sys.stderr, flush=True)
            keep(jobs, found, args)


def keep(jobs: list[Row], found: list[list[Row]], args: argparse.Namespace) -> None:
    """Write what has been measured so far; rows that are not measured in this call stay."""
    rows = [summary(job, measured) for job, measured in zip(jobs, found, strict=True) if measured]
    rows += others("forecast", rows, ("model", "way", "threads"))
    order = list(WAYS)
    rows.sort(key=lambda row: (row["model"], order.index(row["way"]), row["threads"]))
    worst = max(rows, key=lambda row: abs(row["off"]))
    aims = [
        {"what": f"largest |off|: {worst['model']} {worst['way']}", "measured": abs(worst["off"]), "aim": AIM}
    ]
    write("forecast", rows, args, rounds=args.rounds, aims=aims)


def summary(job: Row, rows: list[Row]) -> Row:
    """Medians over the rounds; `off` is the median of the rounds' own."""
    keys = ("forecast_per_s", "per_s", "forecast_prompt_s", "prompt_s", "off", "drift", "readings", "bytes")
    offs = [row["off"] for row in rows]
    return {
        **{key: job[key] for key in ("model", "way", "threads")},
        **{key: statistics.median(row[key] for row in rows) for key in keys},
        "spread": max(offs) - min(offs),
    }


def steady(job: Row) -> Row:
    """The reading with the least drift, of as many as it takes to have one within STEADY."""
    found: list[Row] = []
    while not found or (found[-1]["drift"] > STEADY and len(found) < TRIES):
        found.append(process(job))
    return {**min(found, key=lambda row: row["drift"]), "readings": len(found)}


def process(job: Row) -> Row:
    """One row in a process of its own."""
    threads = {name: str(job["threads"]) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, __file__, "--cell", json.dumps(job)],
        env={**os.environ, **QUIET, **threads},
        capture_output=True,
        text=True,
        cwd=HERE,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        raise RuntimeError(f"{job} left with {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(lines[-1].removeprefix("RESULT "))


def cell(job: Row) -> Row:
    """Forecast and measurement of one row, in this process."""
    import torch

    from secateur.io.hub import load_folder
    from secateur.runtime.beside import beside
    from secateur.runtime.forecast import Case

    torch.set_num_threads(job["threads"])
    model: Any = load_folder(Path(job["path"]), dtype=job["dtype"])
    if job.get("cut") and job["model"] != MODEL:
        cut(model, job["cut"])
    found = beside(model, case=Case(job["way"], job["kind"], job["values"], job.get("sparsity", 0.0)))
    return {
        "forecast_per_s": found.row.rate,
        "per_s": 1 / found.token,
        "forecast_prompt_s": found.row.prompt,
        "prompt_s": found.prompt,
        "off": found.off,
        "drift": abs(found.paces[0].token - found.paces[1].token) / found.token,
        "bytes": found.bytes,
    }


def shown(found: Row) -> str:
    """The tables of results/forecast.json."""
    head: dict[str, Any] = {
        "model": "model",
        "way": "way",
        "threads": "threads",
        "forecast, tokens/s": "forecast_per_s:.1f",
        "measured": "per_s:.1f",
        "off": lambda row: f"{row['off']:+.0%}",
        "drift": lambda row: f"{row['drift']:.0%} of {row['readings']:.0f}" if "drift" in row else "",
        "prompt of 128, ms": lambda row: f"{1e3 * row['forecast_prompt_s']:.0f}",
        "prompt, measured": lambda row: f"{1e3 * row['prompt_s']:.0f}",
    }
    aims = table(found["aims"], {"aim": "what", "measured": "measured:.2f", "at most": "aim"})
    return f"{table(found['rows'], head)}\n\n{aims}"


if __name__ == "__main__":
    sys.exit(main())
