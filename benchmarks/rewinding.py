"""rewinding: where a training becomes stable, and what a ticket rewound to that step is worth.

    make bench ARGS="rewinding [--seeds 3] [--sparsity 0.95] [--networks conv-16-32-32] [--show]"

The barrier between two copies trained on in other data orders (secateur stability), from several steps of one training:
500 steps of 64 digits, or 300 steps of 50 of the 1,000 CIFAR-10 images at hand. Then iterative magnitude pruning in 5
trainings, rewound to some of these steps (digits only); every training ends at the same step, so a ticket rewound
later has fewer steps. One process on one thread. Finished cells lie in .cache/rewinding and are taken from there.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import statistics
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import Row, read, table, write
from jackpots import IMAGES, SHARED
from training import code, remembered

from secateur.engine.train import Fit
from secateur.evaluate import stability
from secateur.registry import make
from secateur.training import TrainingRecipe, rewinding, train

DIGITS: Row = {
    "epochs": 25,
    "batch": 64,
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "step",
}
CIFAR: Row = {
    "epochs": 15,
    "batch": 50,
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "schedule": "cosine",
}
TRAININGS = 5
# network -> data, how one training goes, the steps to branch from, those of them to rewind tickets to
SYSTEMS: dict[str, tuple[str, Row, tuple[int, ...], tuple[int, ...]]] = {
    "conv-16-32-32": ("digits", DIGITS, (0, 5, 20, 60, 100, 250), (0, 20, 100, 250)),
    "lenet-300-100": ("digits", DIGITS, (0, 5, 20, 60, 100, 250), (0, 20, 100, 250)),
    "resnet20x0.5": ("cifar10", CIFAR, (0, 15, 60, 150), ()),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--networks", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--show", action="store_true", help="measure nothing: print the table of the results")
    args = parser.parse_args(argv)
    if not args.show:
        torch.set_num_threads(1)
        run(args)
    print(f"\n## rewinding\n\n{tables(read('rewinding'))}\n")
    return 0


def run(args: argparse.Namespace) -> None:
    """Measure and write results/rewinding.json."""
    seeds, rows = range(args.seeds), []
    for network in args.networks:
        source, how, at, tickets = SYSTEMS[network]
        images = str(SHARED / IMAGES) if source == "cifar10" else source
        recipes = [
            TrainingRecipe(network, images, None, Fit(**how, seed=1000 * seed), seed=seed) for seed in seeds
        ]
        found = [barriers(recipe, at) for recipe in recipes]
        for i, step in enumerate(at):
            row: Row = {"network": network, "data": source, "step": step}
            for key in ("error", "between", "barrier"):
                row |= spread(key, [of_seed[i][key] for of_seed in found])
            if step in tickets:
                row |= spread("ticket", [ticket(recipe, step, args.sparsity) for recipe in recipes])
            rows.append(row)
            print(f"  {row}", file=sys.stderr, flush=True)
    command = f"make bench ARGS='{' '.join(['rewinding', *sys.argv[1:]])}'"
    write("rewinding", rows, args, command=command, systems=SYSTEMS, sparsity=args.sparsity)


def barriers(recipe: TrainingRecipe, at: tuple[int, ...]) -> list[Row]:
    """What `secateur stability` measures on one network; three points on each line."""
    job: Row = {"network": recipe.model, "at": at, "how": asdict(recipe.how), "seed": recipe.seed}
    kept = hashlib.sha256(inspect.getsource(stability).encode()).hexdigest()[:16]
    found = remembered(
        "rewinding", job, False, kept, lambda: {"rows": rewinding(recipe, lambda total: at, points=3)}
    )
    return found["rows"]


def ticket(recipe: TrainingRecipe, step: int, sparsity: float) -> float:
    """Accuracy of the last network of iterative magnitude pruning rewound to `step`."""
    rounds, per_epoch = TRAININGS - 1, 20
    epochs = recipe.how.epochs + rounds * (recipe.how.epochs - step // per_epoch)
    method = make("lottery_ticket", sparsity=sparsity, rounds=rounds, rewind="weights", rewind_step=step)
    whole = replace(recipe, method=method, how=replace(recipe.how, epochs=epochs))
    job: Row = {"network": recipe.model, "ticket": step, "sparsity": sparsity, "how": asdict(whole.how)}
    job["seed"] = recipe.seed
    kept = code({"name": "lottery_ticket"})
    found = remembered(
        "rewinding", job, False, kept, lambda: {"accuracy": float(train(whole).figures["accuracy"])}
    )
    return found["accuracy"]


def spread(key: str, values: list[float]) -> Row:
    return {
        key: statistics.mean(values),
        f"{key}_sd": statistics.stdev(values) if len(values) > 1 else 0.0,
        f"{key}s": values,
    }


def tables(found: Row) -> str:
    def said(key: str) -> object:
        return lambda r: f"{100 * r[key]:.1f} ± {100 * r[f'{key}_sd']:.1f}" if key in r else ""

    columns = {"error of the ends": "error", "between": "between", "barrier": "barrier"}
    heads = {"network": "network", "step": "step"} | {head: said(key) for head, key in columns.items()}
    return table(found["rows"], heads | {f"ticket at {found['sparsity']:.0%}": said("ticket")})  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
