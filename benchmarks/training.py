"""training: the ways to cut while training, in equal epochs on one network: clean and corrupted accuracy, 8x8 digits.

    make bench ARGS="training [--seeds 3] [--sparsities 0.8 0.9 0.95] [--systems GMP LRR] [--fresh] [--show]"

conv-16-32-32 on scikit-learn's digits (1,297 to train, 500 to test), 25 epochs of 20 steps, SGD .05 with momentum,
a tenth of the rate at 1/2 and at 3/4: the same for all, every event an epoch apart, every ramp over the first half.
LTH and LRR share the 25 epochs among 5 trainings, one-shot among 2; the second of these runs at the last rate (.0005),
as fine-tuning does in the papers. Corrupted accuracy: the 15 of CIFAR-C's table at severities 1, 3, 5, plain mean.
Small-dense is the same network made narrower, with as many parameters as the cut ones have left.
One process on one thread. Finished cells lie in .cache/training and are taken from there unless --fresh says no.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import CACHE, Row, read, table, write

from secateur.core.select import cut_count
from secateur.engine.train import Fit
from secateur.evaluate.classify import to_batch
from secateur.io.classifiers import load_classifier
from secateur.io.images import Images, load_images
from secateur.io.networks import narrower
from secateur.registry import make
from secateur.robustness.evaluate import evaluate_corruptions
from secateur.signals.flops import layer_flops
from secateur.sites.trainable import trainable_weights
from secateur.training import TrainingRecipe, train

NETWORK, DATA, SEVERITIES = "conv-16-32-32", "digits", (1, 3, 5)
FIT: Row = {"epochs": 25, "batch": 64, "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "schedule": "step"}
EVERY = 20  # steps: an epoch
SYSTEMS: dict[str, Row] = {
    "GMP": {"name": "gmp", "scope": "global", "end": 0.5, "every": EVERY},
    "GMP, layer by layer": {"name": "gmp", "scope": "layer", "end": 0.5, "every": EVERY},
    "GraNet": {"name": "granet", "end": 0.5, "every": EVERY},
    "GraNet, start 50%": {"name": "granet", "end": 0.5, "every": EVERY, "initial_sparsity": 0.5},
    "RigL": {"name": "rigl", "every": EVERY},
    "SET": {"name": "set", "every": EVERY},
    "random ERK": {"name": "random_pruning"},
    "SNIP": {"name": "snip"},
    "LTH": {"name": "lottery_ticket", "rounds": 4, "rewind": "weights"},
    "LRR": {"name": "lottery_ticket", "rounds": 4, "rewind": "learning_rate"},
    "one-shot, fine-tuned": {"name": "lottery_ticket", "oneshot": True, "rewind": "none"},
    "AdaSAP, single weights": {"name": "adasap", "unit": "weight"},
}
# higher, lower, figure: what the papers say, to be looked for here
ORDERS = (
    ("GraNet", "RigL", "clean", "GraNet 2021: dense to sparse above dynamic sparse"),
    ("RigL", "random ERK", "clean", "RigL 2020: dynamic above static"),
    ("SET", "random ERK", "clean", "SET 2018: dynamic above static"),
    ("GraNet", "GMP", "clean", "GraNet 2021: regrowth above pruning alone"),
    ("LRR", "one-shot, fine-tuned", "clean", "Renda 2020: learning-rate rewinding above fine-tuning"),
    ("LRR", "one-shot, fine-tuned", "corrupted", "CARDs 2021: LRR above fine-tuning on corrupted images"),
    ("LRR", "GMP", "corrupted", "CARDs 2021: LRR above GMP on corrupted images"),
    ("LTH", "GMP", "corrupted", "CARDs 2021: LTH above GMP on corrupted images"),
    ("LRR", "dense", "corrupted", "CARDs 2021: LRR keeps or raises what the dense network has"),
    ("GMP", "small-dense", "clean", "Zhu & Gupta 2017: large-sparse above small-dense"),
    ("GMP, layer by layer", "small-dense", "clean", "the same, layer by layer as in the paper"),
    ("LRR", "small-dense", "clean", "the same for LRR"),
    ("GMP", "small-dense", "corrupted", "nobody: the same question for corrupted images"),
)
NOTES = (
    "LTH and LRR spend the epochs of one training on five: LTH's last network trains for 5 epochs, not for 25.",
    "One-shot is fine-tuned at the last rate (.0005): LRR's lead over it is of its rounds and of its rate together.",
    "GMP layer by layer, as in its paper, cuts the first layer's 144 weights like the rest; 7 are left at 95%.",
    "AdaSAP has its own defaults (rho_max 2), not tuned for single weights; each of its steps counts as two.",
    "Peak density and explored fraction of small-dense would be of its own weights, and are left out.",
    "One setting each, from the sheets; 12 probe runs of seed 0 (six systems, two rate schedules, 30 epochs) were "
    "looked at first: the schedule that lets fine-tuning move was taken, and GMP over all layers was added.",
)
# two-sided 5% of Student's t by degrees of freedom: with three seeds a standard error is itself hardly known
T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
TOLD = ("clean", "corrupted", "density", "peak_density", "explored", "flops")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.8, 0.9, 0.95])
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), metavar="NAME")
    parser.add_argument("--fresh", action="store_true", help="measure again what .cache holds")
    parser.add_argument(
        "--show", action="store_true", help="measure nothing: print the tables of the results"
    )
    args = parser.parse_args(argv)
    if not args.show:
        torch.set_num_threads(1)
        run(args)
    print(f"\n## training\n\n{tables(read('training'))}\n")
    return 0


def run(args: argparse.Namespace) -> None:
    """Measure and write results/training.json."""
    wanted: list[tuple[str, float]] = [("dense", 0.0)]
    for sparsity in args.sparsities:
        wanted += [(system, sparsity) for system in (*args.systems, "small-dense")]
    rows = []
    for system, sparsity in wanted:
        seeds = [cell(system, sparsity, seed, args.fresh) for seed in range(args.seeds)]
        rows.append(summed({"system": system, "sparsity": sparsity}, seeds, TOLD))
        print(f"  {time.strftime('%H:%M:%S')}  {said(rows[-1])}", file=sys.stderr, flush=True)
    found = verdicts(rows, ORDERS)
    command = f"make bench ARGS='{' '.join(['training', *sys.argv[1:]])}'"
    facts = {"network": NETWORK, "data": DATA, "training": FIT, "settings": SYSTEMS, "notes": NOTES}
    write("training", rows, args, command=command, **facts, verdicts=found)


def cell(system: str, sparsity: float, seed: int, fresh: bool) -> Row:
    """One trained and measured network, from .cache where it is there."""
    settings = SYSTEMS.get(system, {})
    job = {"system": system, "sparsity": sparsity, "seed": seed, "settings": settings}
    job |= {"network": NETWORK, "data": DATA, "fit": FIT, "severities": SEVERITIES}
    return remembered("training", job, fresh, code(settings), lambda: measured(system, sparsity, seed))


def remembered(folder: str, job: Row, fresh: bool, code: str, measure: Callable[[], Row]) -> Row:
    """The row of an equal job in .cache/FOLDER, or a new one, which is then kept there.

    A row measured with another `code` than now is taken too, and says so: `older_code`.
    """
    name = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:16]
    path = CACHE / folder / f"{name}.json"
    if path.is_file() and not fresh:
        held = json.loads(path.read_text())
        return held if held["code"] == code else held | {"older_code": True}
    row = measure() | {"date": time.strftime("%Y-%m-%d %H:%M"), "code": code}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(row))
    return row


def code(settings: Row) -> str:
    """A digest of the method's own file."""
    if not settings:
        return ""
    module = inspect.getmodule(type(make(settings["name"])))
    assert module is not None
    return hashlib.sha256(inspect.getsource(module).encode()).hexdigest()[:16]


def measured(system: str, sparsity: float, seed: int) -> Row:
    """Train, then look at clean and corrupted images."""
    settings = SYSTEMS.get(system)
    name = narrow(sparsity) if system == "small-dense" else NETWORK
    method = make(**settings, sparsity=sparsity, seed=seed) if settings else None
    how = Fit(**FIT, seed=seed)
    start = time.process_time()
    trained = train(TrainingRecipe(model=name, data=DATA, method=method, how=how, seed=seed))
    seconds = time.process_time() - start
    test = images("test")
    corrupted = evaluate_corruptions(
        trained.model, test.images, test.labels, severities=SEVERITIES, cache=CACHE / "digits-c"
    )
    figures = trained.figures
    whole = sum(layer_flops(network(NETWORK), some()).values())
    flops = sum(layer_flops(network(name), some()).values()) / whole
    if method is not None:  # two passes a step cost twice
        flops = figures["train_flops"] / figures["dense_train_flops"] * (2 if hasattr(method, "wrap") else 1)
    return {
        "clean": corrupted["clean"]["accuracy"],
        "corrupted": corrupted["robust_accuracy"],
        "density": figures.get("density", 1.0),
        "peak_density": figures.get("peak_density", 1.0),
        "explored": figures.get("explored_fraction", 1.0),
        "flops": flops,
        "parameters": sum(int(p.count_nonzero()) for p in trained.model.parameters()),
        "network": name,
        "cpu_s": seconds,
    }


def narrow(sparsity: float) -> str:
    """The narrower network with as many parameters as are left at this sparsity."""
    model = network(NETWORK)
    cut = cut_count(sum(weight.numel() for weight in trainable_weights(model).values()), sparsity)
    return narrower(model.settings, sum(p.numel() for p in model.parameters()) - cut)


def network(name: str) -> Any:
    data = images("train")
    return load_classifier(name, channels=data.channels, size=data.size, classes=len(data.classes))


@cache
def images(split: str) -> Images:
    return load_images(DATA, split)


def some() -> torch.Tensor:
    return to_batch(images("train").images[:1])


def summed(row: Row, seeds: Sequence[Row], told: Sequence[str]) -> Row:
    """Means of `told` over the seeds, the deviation of the accuracies, and the seeds themselves."""
    for key in told:
        row[key] = statistics.mean(seed[key] for seed in seeds)
    for key in ("clean", "corrupted"):
        if key in told:
            values = [seed[key] for seed in seeds]
            row[f"{key}_sd"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return row | {"seeds": list(seeds)}


def verdicts(rows: Sequence[Row], orders: Sequence[tuple[str, str, str, str]]) -> list[Row]:
    """Which orders are seen, at each sparsity: the mean difference and its standard error, seed by seed.

    seen: above 0, and 0 is outside Student's 95% interval; reversed: below 0, the same; else within the noise.
    Of so many orders, one in twenty would be called seen or reversed by chance.
    """
    by = {(row["system"], row["sparsity"]): row for row in rows}
    found: list[Row] = []
    for higher, lower, key, source in orders:
        for sparsity in sorted({row["sparsity"] for row in rows}):
            pair = by.get((higher, sparsity)), by.get((lower, 0.0 if lower == "dense" else sparsity))
            if pair[0] is None or pair[1] is None:
                continue
            apart = [a[key] - b[key] for a, b in zip(pair[0]["seeds"], pair[1]["seeds"], strict=True)]
            mean = statistics.mean(apart)
            error = statistics.stdev(apart) / len(apart) ** 0.5 if len(apart) > 1 else 0.0
            reach = T95.get(len(apart) - 1, 2.2) * error
            verdict = "within the noise" if abs(mean) <= reach else "seen" if mean > 0 else "reversed"
            verdict = verdict if len(apart) > 1 else "one seed: no verdict"
            facts = {"source": source, "order": f"{higher} > {lower}", "figure": key, "sparsity": sparsity}
            found.append({**facts, "points": 100 * mean, "error": 100 * error, "verdict": verdict})
    return found


def said(row: Row) -> str:
    corrupted = f", corrupted {row['corrupted']:.4f}" if "corrupted" in row else ""
    return f"{row['system']} {row['sparsity']:g}: clean {row['clean']:.4f}{corrupted}"


def spread(key: str) -> Callable[[Row], str]:
    """Mean and deviation, in percent."""
    return lambda row: f"{100 * row[key]:.1f} ± {100 * row[f'{key}_sd']:.1f}"


def of_mask(key: str) -> Callable[[Row], str]:
    return lambda row: "" if row["system"] == "small-dense" else f"{row[key]:.3f}"


def verdict_table(found: Sequence[Row]) -> str:
    heads: dict[str, Any] = {
        "order": "order",
        "in": "figure",
        "sparsity": "sparsity:.0%",
        "points apart": lambda row: f"{row['points']:+.1f} ± {row['error']:.1f}",
        "verdict": "verdict",
        "who says so": "source",
    }
    return table(found, heads)


def tables(found: Row) -> str:
    """The tables of results/training.json."""
    heads: dict[str, Any] = {
        "method": "system",
        "sparsity": "sparsity:.0%",
        "clean, %": spread("clean"),
        "corrupted, %": spread("corrupted"),
        "peak density": of_mask("peak_density"),
        "explored": of_mask("explored"),
        "training FLOPs of dense": "flops:.2f",
    }
    notes = "\n".join(f"- {note}" for note in found["notes"])
    return "\n\n".join([table(found["rows"], heads), verdict_table(found["verdicts"]), notes])


if __name__ == "__main__":
    sys.exit(main())
