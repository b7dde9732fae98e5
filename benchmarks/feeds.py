"""feeds: block, layer and none for the data-driven methods, over seeds and sparsities: which default do they ask for?

Each seed draws 32 windows of 512 tokens from WikiText-2 valid; quality is the perplexity of the first 12 windows of
evaluation_24x512.npy; products are `auto`. Rows of one seed differ in the feed alone.
"""

from __future__ import annotations

import argparse
from statistics import mean, stdev

from common import Row, cell, data, kept, table, write

FEEDS = ("none", "layer", "block")
WINDOWS = 12


def run(args: argparse.Namespace) -> None:
    """Measure and write results/feeds.json."""
    common: Row = {
        "evaluation": data("evaluation_24x512.npy"),
        "windows": WINDOWS,
        "calibration": data("wiki.valid.raw"),
    }
    cells: list[Row] = []
    for sparsity in args.sparsities:
        for seed in range(args.seeds):
            for method in args.methods:
                for feed in FEEDS:
                    job = {
                        "system": "secateur",
                        "method": method,
                        "sparsity": sparsity,
                        "feed": feed,
                        "seed": seed,
                    }
                    whole = {**common, **job, "products": "auto"}
                    if args.cached and not kept(whole).is_file():
                        continue
                    found = cell(whole, args)
                    cells.append(
                        {
                            **job,
                            **{k: found[k] for k in ("cut_cpu_s", "cut_peak_mb", "perplexity", "sparsity")},
                        }
                    )
                    cells[-1]["asked"] = sparsity
                    print(method, sparsity, feed, seed, f"{found['perplexity']:.2f}", flush=True)
    write("feeds", cells, args, summary=summaries(cells), windows=WINDOWS)


def summaries(cells: list[Row]) -> list[Row]:
    """One row a method and sparsity: mean and spread of each feed, and the paired difference from `block`."""
    out: list[Row] = []
    for key in dict.fromkeys((c["method"], c["asked"]) for c in cells):
        row: Row = {"method": key[0], "asked": key[1]}
        by_feed = {f: [c for c in cells if (c["method"], c["asked"], c["feed"]) == (*key, f)] for f in FEEDS}
        for feed, found in ((f, rows) for f, rows in by_feed.items() if rows):
            values = [c["perplexity"] for c in found]
            row[feed] = {
                "seeds": len(found),
                "mean": mean(values),
                "spread": stdev(values) if len(values) > 1 else None,
                "of_block": mean(paired) if (paired := against(found, by_feed["block"])) else None,
                "cpu_s": min(c["cut_cpu_s"] for c in found),
                "peak_mb": min(c["cut_peak_mb"] for c in found),
            }
        out.append(row)
    return out


def against(found: list[Row], block: list[Row]) -> list[float]:
    """Perplexity over that of `block`, seed by seed."""
    by_seed = {row["seed"]: row["perplexity"] for row in block}
    return [row["perplexity"] / by_seed[row["seed"]] for row in found if row["seed"] in by_seed]


def tables(found: Row) -> str:
    """The table of results/feeds.json."""
    return show(found["summary"])


def show(rows: list[Row]) -> str:
    """A row a method, sparsity and feed."""
    flat = [{**row, "feed": feed, **row[feed]} for row in rows for feed in FEEDS if feed in row]

    def perplexity(row: Row) -> str:
        spread = "" if row["spread"] is None else f" ± {row['spread']:.2f}"
        return f"{row['mean']:.2f}{spread}"

    def against_block(row: Row) -> str:
        return (
            ""
            if row["of_block"] is None or row["feed"] == "block"
            else f"{100 * (row['of_block'] - 1):+.1f}%"
        )

    columns: dict = {"method": "method", "sparsity": "asked:.0%", "feed": "feed", "seeds": "seeds"}
    columns |= {"perplexity": perplexity, "against block": against_block}
    return table(flat, columns | {"CPU-s": "cpu_s:.0f", "peak MB": "peak_mb"})
