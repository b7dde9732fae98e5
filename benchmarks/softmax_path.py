"""softmax_path: a path of L1-penalised softmax regressions, against scikit-learn's saga and liblinear, and a large one.

    python benchmarks/softmax_path.py [--parts race two large] [--seconds 100] [--values 5] [--show]

race   100 classes, 1,500 descriptors, 1,600 images, width 512, logit scale 100: 30 values of lam, each 0.8 of the
       one before. saga runs at three of them, with the solution at the value before as its warm start, in rounds that
       double until its objective is within 1e-4 of the optimum or --seconds are over. Its whole path is taken to be 30
       times the mean of the three; where it did not arrive, that is a lower bound. The features are formed for it.
two    the same images, one class against the rest, as liblinear has no multinomial loss. Softmax over two classes with
       the penalty on both rows has the same optimum as logistic regression with the penalty on its one row.
large  100,000 images, 1,000 classes, 5,000 descriptors; embeddings in a float16 file that is mapped.

Made-up embeddings: a direction that all have in common (cosines lie in a narrow band, as CLIP's do), and an image has
a random share of each of its class's attributes, which are its descriptors. Seconds are of the processor, one thread.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import Row, others, process, read, table, write

from secateur.recover.l1_softmax import Point, walk_path

PARTS = ("race", "two", "large")
SCALE, GAP, PLACES = 100.0, 1e-4, (5, 15, 25)
TITLES = {
    "race": "100 classes, 1,500 descriptors, 1,600 images",
    "two": "one of these classes against the rest",
    "large": "1,000 classes, 5,000 descriptors, 100,000 images in a file",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="the others' rows stay"
    )
    parser.add_argument("--seconds", type=float, default=100, help="race: saga's at one value, about")
    parser.add_argument("--values", type=int, default=5, help="large: values of lam")
    parser.add_argument("--show", action="store_true", help="measure nothing: print the table of the results")
    parser.add_argument("--part", nargs=2, metavar=("JOB", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part:
        torch.set_num_threads(1)
        job = json.loads(args.part[0])
        found = {"race": race, "two": two, "large": large}[job["part"]](job)
        Path(args.part[1]).write_text(json.dumps(found))
        return 0
    if not args.show:
        run(args)
    print(f"\n## softmax_path\n\n{tables(read('softmax_path'))}\n")
    return 0


def run(args: argparse.Namespace) -> None:
    """Measure and write results/softmax_path.json, each part in a process of its own."""
    found = []
    for part in args.parts:
        job = {"part": part, "seconds": args.seconds, "values": args.values}
        print(f"  {time.strftime('%H:%M:%S')}  {part}", file=sys.stderr, flush=True)
        found.append({"part": part, **process([sys.executable, __file__, "--part", json.dumps(job)])})
    rows = others("softmax_path", found, ("part",)) + found
    rows.sort(key=lambda row: PARTS.index(row["part"]))
    command = f"python benchmarks/softmax_path.py {' '.join(sys.argv[1:])}".strip()
    write("softmax_path", rows, args, command=command)


# -- data -------------------------------------------------------------------------------------------------------------


def few_shot(
    classes: int = 100, each: int = 15, width: int = 512, shots: int = 16
) -> tuple[Tensor, Tensor, Tensor]:
    """(embeddings, labels, texts), unit rows in float64."""
    generator = torch.Generator().manual_seed(0)
    base, own, texts = attributes(classes, each, width, generator)
    labels = torch.arange(classes).repeat_interleave(shots)
    return images(base, own, labels, generator).double(), labels, texts.double()


def attributes(
    classes: int, each: int, width: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    base = F.normalize(torch.randn(width, generator=generator), dim=0)
    own = F.normalize(torch.randn(classes, each, width, generator=generator), dim=2)
    return base, own, F.normalize(0.6 * base + 0.8 * own.flatten(0, 1), dim=1)


def images(base: Tensor, own: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    width = len(base)
    shares = torch.rand(len(labels), own.shape[1], 1, generator=generator)
    noise = 0.6 * torch.randn(len(labels), width, generator=generator) / width**0.5
    return F.normalize(0.9 * base + 2 * (shares * own[labels]).mean(1) + noise, dim=1)


def stored(path: Path, classes: int, each: int, width: int, shots: int) -> tuple[Tensor, Tensor]:
    """Write float16 rows, some thousand at a time; (labels, texts)."""
    generator = torch.Generator().manual_seed(0)
    base, own, texts = attributes(classes, each, width, generator)
    labels = torch.randperm(classes * shots, generator=generator) % classes
    out = np.lib.format.open_memmap(path, "w+", np.float16, (len(labels), width))
    for start in range(0, len(labels), 2000):
        part = labels[start : start + 2000]
        out[start : start + len(part)] = images(base, own, part, generator).numpy()
    out.flush()
    return labels, texts


# -- measuring --------------------------------------------------------------------------------------------------------


def race(job: Row) -> Row:
    h, y, u = few_shot()
    path, seconds = ours(h, y, u, 30, 1e-4)
    z = SCALE * h @ u.t()
    saga = [saga_at(z, y, path[i - 1], path[i], job["seconds"]) | {"place": i + 1} for i in PLACES]
    mean = statistics.mean(row["saga_s"] for row in saga)
    theirs = {"arrived": all(row["gap"] <= GAP for row in saga), "saga_path_s": 30 * mean}
    return {"values": 30, **seconds, **theirs, "times": 30 * mean / seconds["path_s"], "saga": saga}


def saga_at(z: Tensor, y: Tensor, before: Point, point: Point, limit: float) -> Row:
    """How long saga takes from the solution at the value before."""
    model = logistic("saga", point.lam, len(y), tol=1e-12, warm_start=True)
    model.coef_, model.intercept_ = before.weight.numpy().copy(), np.zeros(len(before.weight))
    model.classes_ = np.arange(len(before.weight))
    gap, total, epochs, more = cost(z, y, before.weight, point.lam) - point.objective, 0.0, 0, 4
    while gap > GAP and total < limit:
        model.max_iter = more
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged is what is looked at
            model.fit(z.numpy(), y.numpy())
        total, epochs, more = total + time.process_time() - start, epochs + more, 2 * more
        gap = cost(z, y, torch.from_numpy(model.coef_), point.lam) - point.objective
        if total * (1 + more / epochs) > 1.5 * limit:
            break
    return {"lam": point.lam, "saga_s": total, "epochs": epochs, "gap": gap, "objective": point.objective}


def two(job: Row) -> Row:
    h, y, u = few_shot()
    y = (y == 0).long()
    path, seconds = ours(h, y, u, 30, 1e-4)
    z, worst, start, spent = SCALE * h @ u.t(), 0.0, 0.0, 0.0
    for point in path:
        model = logistic("liblinear", point.lam, len(y), tol=1e-6, max_iter=10_000)
        start = time.process_time()
        model.fit(z.numpy(), y.numpy())
        spent += time.process_time() - start
        row = torch.from_numpy(model.coef_)
        worst = max(worst, abs(cost(z, y, torch.cat([0 * row, row]), point.lam) - point.objective))
    return {
        "values": 30,
        **seconds,
        "liblinear_path_s": spent,
        "apart": worst,
        "times": spent / seconds["path_s"],
    }


def large(job: Row) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        labels, texts = stored(Path(folder) / "rows.npy", 1000, 5, 512, 100)
        before = peak()
        rows = np.load(Path(folder) / "rows.npy", mmap_mode="r")
        path, seconds = ours(rows, labels, texts, job["values"], 1e-3)
    each = [{"lam": p.lam, "steps": p.steps, "used": p.used, "residual": p.residual} for p in path]
    return {"values": len(path), **seconds, "before_mb": before, "peak_mb": peak(), "each": each}


def ours(h: Any, y: Tensor, u: Tensor, count: int, tol: float) -> tuple[list[Point], Row]:
    start = last = time.process_time()
    path, seconds = [], []
    for point in walk_path(h, y, u, scale=SCALE, count=count, tol=tol):
        path.append(point)
        now = time.process_time()
        seconds.append(round(now - last, 2))
        last = now
        print(f"    {len(path)}: {seconds[-1]} s, {point.steps} steps", file=sys.stderr, flush=True)
    used, steps = [p.used for p in path], sum(p.steps for p in path)
    facts = {"path_s": last - start, "value_s": seconds, "steps": steps, "used": [used[0], used[-1]]}
    return path, facts | {"residual": max(p.residual for p in path), "tol": tol}


def logistic(solver: str, lam: float, count: int, **more: Any) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(l1_ratio=1.0, C=1 / (lam * count), fit_intercept=False, solver=solver, **more)


def cost(z: Tensor, y: Tensor, weight: Tensor, lam: float) -> float:
    return float(F.cross_entropy(z @ weight.t(), y)) + lam * float(weight.abs().sum())


def peak() -> int:
    """The most memory this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


# -- tables -----------------------------------------------------------------------------------------------------------


def tables(found: Row) -> str:
    """The table of results/softmax_path.json."""
    lines = []
    for row in found["rows"]:
        bound = "" if row.get("arrived", True) else "more than "
        other = {"race": ("saga", "saga_path_s"), "two": ("liblinear", "liblinear_path_s")}.get(row["part"])
        lines.append(
            {
                "problem": TITLES[row["part"]],
                "values": row["values"],
                "ours": f"{row['path_s']:.1f} s",
                "other": f"{other[0]}: {bound}{row[other[1]]:,.0f} s" if other else "",
                "times": f"{bound}{row['times']:.1f}" if other else "",
                "residual": f"{row['residual']:.0e}",
                "memory": f"{row['peak_mb']:,} MiB" if "peak_mb" in row else "",
            }
        )
    heads = {"times as fast": "times", "residual / lam": "residual", "peak memory": "memory"}
    return table(
        lines, {"problem": "problem", "values": "values", "ours": "ours", "others": "other", **heads}
    )


if __name__ == "__main__":
    sys.exit(main())
