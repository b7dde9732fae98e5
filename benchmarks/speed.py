"""speed: CPU-seconds, memory and perplexity of secateur, llmcompressor and the plain two-pass loop, on one thread."""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from common import CACHE, Row, best, cell, data, kept, table, write

from secateur.registry import find

FEEDS = ("none", "layer", "block")
FAST = {
    "no propagation, batch 1": {"propagate_error": False},
    "no propagation, batch 8": {"propagate_error": False, "batch_size": 8},
    "basic pipeline, batch 8": {"pipeline": "basic", "batch_size": 8},
}
# method -> (ratio, at most)
TARGETS = {
    "wanda": (("of_plain", 0.48), ("of_peer", 0.70), ("of_floor", 1.10)),
    "sparsegpt": (("of_plain", 0.55), ("of_default", 0.55)),
}
OTHERS = {
    "of_plain": "the two-pass loop",
    "of_peer": "the peer's fastest setting",
    "of_default": "the peer's default",
    "of_floor": "the floor (with load and save)",
}


def jobs(methods: list[str], peer: str | None) -> list[tuple[str, Row, str | None]]:
    """(name, job, python) of every cell; the cells of one method stand together, so that they see the same machine."""
    common = {
        "calibration": data("calibration_32x512.npy"),
        "evaluation": data("evaluation_24x512.npy"),
        "windows": 24,
    }
    out: list[tuple[str, Row, str | None]] = [("floor", {**common, "system": "floor", "windows": 0}, None)]
    for method in methods:
        job = {**common, "method": method, "sparsity": 0.5}
        out.append((f"{method}: plain", {**job, "system": "plain"}, None))
        for products in ("float32", "bfloat16"):
            for feed in FEEDS:
                ours = {**job, "system": "secateur", "products": products, "feed": feed}
                out.append((f"{method}: secateur {feed} {products}", ours, None))
            streamed = {**job, "system": "streamed", "products": products, "feed": find(method).feed}
            out.append((f"{method}: secateur --stream {products}", streamed, None))
        for name, settings in {"default": {}, **FAST}.items() if peer else ():
            theirs = {**job, "system": "peer", "settings": settings}
            if not settings:  # the two-pass loop again: its time is wanted, its quality is the loop's
                theirs["windows"] = 0
            out.append((f"{method}: peer {name}", theirs, peer))
    return out


def run(args: argparse.Namespace) -> None:
    """Measure and write results/speed.json. Repeats skip the perplexity, which does not change."""
    peer = peer_python(args.peer_python)
    runs: dict[str, list[Row]] = {}
    (CACHE / "masks").mkdir(parents=True, exist_ok=True)
    for repeat in range(args.repeats):
        for name, job, python in jobs(args.methods, peer):
            if args.match and not any(part in name for part in args.match):
                continue
            extra: Row = {"windows": 0, "repeat": repeat} if repeat else {"masks": str(mask_file(name))}
            if args.cached and not kept({**job, **extra}).is_file():
                continue
            done = cell({**job, **extra}, args, *([python] if python else []))
            runs.setdefault(name, []).append(done)
            print(f"{name}: {done['cut_cpu_s']} CPU-s, {done['cut_peak_mb']} MB", flush=True)
    rows = [row for name in runs for row in [summary(name, runs[name])]]
    add_ratios(rows)
    note = "" if peer else f"no llmcompressor: {args.peer_python or 'no --peer-python given'}"
    write("speed", rows, args, targets=verdicts(rows), repeats=args.repeats, note=note)


def mask_file(name: str) -> Path:
    """Where a cell leaves which weights it kept, for `quality`."""
    return CACHE / "masks" / f"{name.replace(': ', '-').replace(' ', '-')}.npz"


def summary(name: str, runs: list[Row]) -> Row:
    found = best(runs)
    total = found["load_cpu_s"] + found["cut_cpu_s"] + found["save_cpu_s"]
    first = {"name": name, "perplexity": runs[0].get("perplexity"), "total_cpu_s": round(total, 2)}
    keep = (
        "cut_cpu_s",
        "load_cpu_s",
        "save_cpu_s",
        "cut_wall_s",
        "load_peak_mb",
        "cut_peak_mb",
        "sparsity",
        "runs",
        "date",
    )
    return first | {key: found[key] for key in keep}


def add_ratios(rows: list[Row]) -> None:
    """Add of_plain, of_peer (its fastest), of_default (the peer's) and of_floor to every row.

    They are ratios of CPU-seconds: of the cut, and of load + cut + save against the floor and for `--stream`, which
    does all three at once.
    """
    by_name = {row["name"]: row for row in rows}
    for row in rows:
        method = row["name"].partition(":")[0]
        peers = [r for r in rows if r["name"].startswith(f"{method}: peer") and "default" not in r["name"]]
        fastest = min(peers, key=lambda r: r["cut_cpu_s"], default=None)
        others = (
            ("of_plain", by_name.get(f"{method}: plain")),
            ("of_peer", fastest),
            ("of_default", by_name.get(f"{method}: peer default")),
        )
        what = "total_cpu_s" if "--stream" in row["name"] else "cut_cpu_s"
        for key, other in others:
            row[key] = round(row[what] / other[what], 3) if other else None
        floor = by_name.get("floor")
        row["of_floor"] = round(row["total_cpu_s"] / floor["total_cpu_s"], 3) if floor else None


def verdicts(rows: list[Row]) -> list[Row]:
    """Each target with the figure of the method's default feed, in memory and streamed, float32 and bfloat16."""
    out = []
    for method, targets in TARGETS.items():
        others = [r for r in rows if r["name"].startswith((f"{method}: plain", f"{method}: peer"))]
        least = min((r["cut_peak_mb"] for r in others), default=None)
        ways = [way for p in ("float32", "bfloat16") for way in (f"{find(method).feed} {p}", f"--stream {p}")]
        for way in ways:
            row = next((r for r in rows if r["name"] == f"{method}: secateur {way}"), None)
            if row is None:
                continue
            found = [(f"CPU-seconds of {OTHERS[key]}", row[key], limit) for key, limit in targets]
            found += [("peak memory of the leanest other", row["cut_peak_mb"] / least, 1.0)] if least else []
            for what, measured, limit in found:
                if measured is not None:
                    what = f"{method}, {way}: {what}"
                    out.append(
                        {"what": what, "measured": measured, "limit": limit, "met": str(measured <= limit)}
                    )
    return out


def tables(found: Row) -> str:
    """The tables of results/speed.json."""
    heads = {"target": "what", "measured": "measured:.2f", "at most": "limit:.2f", "met": "met"}
    return "\n\n".join([show(found["rows"]), table(found["targets"], heads), found["note"]]).strip()


def show(rows: list[Row]) -> str:
    return table(
        rows,
        {
            "run": "name",
            "cut, CPU-s": "cut_cpu_s:.1f",
            "load + cut + save": "total_cpu_s:.1f",
            "of two-pass": "of_plain:.2f",
            "of peer's fastest": "of_peer:.2f",
            "of floor": "of_floor:.2f",
            "peak MB": "cut_peak_mb:.0f",
            "perplexity": "perplexity:.2f",
        },
    )


def peer_python(path: str | None) -> str | None:
    """The peer's Python if it imports llmcompressor."""
    if not path or not Path(path).is_file():
        return None
    done = subprocess.run([path, "-c", "import llmcompressor"], capture_output=True)
    return path if done.returncode == 0 else None
