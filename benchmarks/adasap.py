"""adasap: what sharpness-aware training before and during pruning saves at the moment of removal, on 8x8 digits.

    python benchmarks/adasap.py [--seeds 3] [--epochs 40] [--cost] [--show]

conv-16-32-32 on 1,000 digits, SGD .05 with cosine, batches of 50; half of the weights go as output channels in five
removals from a quarter of the training on, four epochs apart (of 40), the same way for all: only the step differs.
One process on one thread. Told: accuracy lost at the removals (before less after, mean), clean and noise accuracy at
the end, and what a step costs against plain SGD's: processor time, median of 150 turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import Row, read, table, write

from secateur.evaluate.classify import accuracy, to_batch
from secateur.io.classifiers import load_classifier
from secateur.io.images import load_images
from secateur.methods.weights.adasap import AdaptiveStep, AdaSAP
from secateur.recover.sharpness import ASAM, SAM, Moves

TRAIN, BATCH, RATE, LIMIT = 1000, 50, 0.05, 2.1
SIGMAS = (0.1, 0.2, 0.3)
PLAN: dict[str, Any] = {"sparsity": 0.5, "begin": 0.25, "end": 0.65, "removals": 5}
TOLD = ("drop", "worst_drop", "clean", "noise", *(f"noise_{sigma}" for sigma in SIGMAS))


@dataclass(frozen=True, kw_only=True)
class Uniform(AdaSAP):
    """AdaSAP's removals under ASAM, or SAM, of one radius from first step to last; radius 0 is the plain optimiser."""

    rho: float = 0.0
    sam: bool = False

    def wrap(self, pruner: Any) -> AdaptiveStep:
        return UniformStep(self, pruner.net, pruner.optimizer)


class UniformStep(AdaptiveStep):
    def moves(self) -> Moves:
        kind = SAM if self.method.sam else ASAM
        return kind(self.inner, self.method.rho, model=self.model).moves()


SYSTEMS = {
    "SGD": lambda seed: Uniform(**PLAN, seed=seed),
    "SAM, rho 0.05": lambda seed: Uniform(**PLAN, seed=seed, rho=0.05, sam=True),
    "ASAM, rho 2": lambda seed: Uniform(**PLAN, seed=seed, rho=2.0),
    "ASAM, rho 0.5": lambda seed: Uniform(**PLAN, seed=seed, rho=0.5),
    "AdaSAP": lambda seed: AdaSAP(**PLAN, seed=seed),
    "AdaSAP, map inverted": lambda seed: AdaSAP(**PLAN, seed=seed, invert=True),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument(
        "--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="the others' rows stay"
    )
    parser.add_argument("--show", action="store_true", help="measure nothing: print the table of the results")
    parser.add_argument(
        "--cost", action="store_true", help="measure the cost again and keep the trained rows"
    )
    args = parser.parse_args(argv)
    if not args.show:
        torch.set_num_threads(1)
        run(args)
    found = read("adasap")
    print(f"\n## adasap\n\n{tables(found)}\n")
    return 0


def run(args: argparse.Namespace) -> None:
    """Measure and write results/adasap.json."""
    train, test = load_images("digits", "train", limit=TRAIN, seed=0), load_images("digits", "test")
    images, labels = to_batch(train.images), torch.from_numpy(train.labels)
    some = args.cost or len(args.systems) < len(SYSTEMS)
    rows: list[Row] = read("adasap")["rows"] if some else []
    for system in args.systems if not args.cost else ():
        seeds = [training(system, seed, args.epochs, images, labels, test) for seed in range(args.seeds)]
        mean = {key: statistics.mean(row[key] for row in seeds) for key in TOLD}
        spread = statistics.stdev([row["drop"] for row in seeds]) if args.seeds > 1 else 0.0
        rows = [row for row in rows if row["system"] != system]
        rows.append({"system": system, **mean, "drop_sd": spread, "seeds": seeds})
        print(f"  {system}: {mean}", file=sys.stderr, flush=True)
    rows.sort(key=lambda row: list(SYSTEMS).index(row["system"]))
    costs = {name: cost(name, images, labels) for name in ("conv-16-32-32", "conv-64-128-128")}
    command = read("adasap")["command"] if some else f"python benchmarks/adasap.py {' '.join(sys.argv[1:])}"
    facts = {"command": command.strip(), "epochs": args.epochs, "cost": costs, "met": met(rows, costs)}
    write("adasap", rows, args, **facts)


def met(rows: list[Row], costs: dict[str, Row]) -> dict[str, bool]:
    """The sheet's three statements, the map's direction on its own, and the limit on the cost."""
    by = {row["system"]: row for row in rows}
    plain, ours, inverted = by["SGD"], by["AdaSAP"], by["AdaSAP, map inverted"]
    return {
        "drop(AdaSAP) < drop(SGD) / 2": ours["drop"] < plain["drop"] / 2,
        "drop(inverted) >= drop(SGD)": inverted["drop"] >= plain["drop"],
        "drop(AdaSAP) < drop(inverted) / 2": ours["drop"] < inverted["drop"] / 2,
        "noise(AdaSAP) >= noise(SGD)": ours["noise"] >= plain["noise"],
        f"step(AdaSAP) <= {LIMIT} step(SGD)": all(row["of_sgd"] <= LIMIT for row in costs.values()),
    }


def training(system: str, seed: int, epochs: int, images: Tensor, labels: Tensor, test: Any) -> Row:
    """Train and prune one network; its row."""
    model = network(seed=seed)
    plain = sgd(model)
    steps = epochs * (len(images) // BATCH)
    pruner = SYSTEMS[system](seed).attach(model, plain, steps=steps)
    events = set(pruner.method.events(pruner.net))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(plain, steps)
    random = torch.Generator().manual_seed(seed)
    drops: list[float] = []
    for _ in range(epochs):
        for places in torch.randperm(len(images), generator=random).split(BATCH):
            closure = passes(model, pruner.optimizer, images[places], labels[places])
            closure()
            pruner.optimizer.step(closure)
            due = pruner.net.step + 1 in events
            before = accuracy(model, test.images, test.labels) if due else 0.0
            pruner.step()
            if due:
                drops.append(before - accuracy(model, test.images, test.labels))
            schedule.step()
    row: Row = {"drop": statistics.mean(drops), "worst_drop": max(drops), "density": pruner.density}
    row["clean"] = accuracy(model, test.images, test.labels)
    for sigma in SIGMAS:
        row[f"noise_{sigma}"] = statistics.mean(noisy(model, test, sigma, draw) for draw in range(3))
    return row | {"noise": statistics.mean(row[f"noise_{sigma}"] for sigma in SIGMAS)}


def noisy(model: nn.Module, test: Any, sigma: float, draw: int) -> float:
    """Accuracy on images in [0, 1] with Gaussian noise of this deviation, clipped to [0, 1]."""
    noise = np.random.default_rng(draw).standard_normal(test.images.shape, dtype=np.float32)
    images = (to_batch(test.images) + sigma * torch.from_numpy(noise).permute(0, 3, 1, 2)).clamp(0, 1)
    return accuracy(model, images, test.labels)


def cost(name: str, images: Tensor, labels: Tensor, turns: int = 150) -> Row:
    """Median processor time of a step, in ms: plain SGD, AdaSAP's warm-up and its robustness phase, in turns.

    Clock time on a busy machine favours the shorter step, which slips in between two interruptions.
    """
    loops: dict[str, Callable[[], None]] = {}
    for system, spot in (("SGD", 0), ("AdaSAP", 0), ("AdaSAP, robustness", 900)):
        model = network(name)
        pruner = (
            SYSTEMS["AdaSAP"](0).attach(model, sgd(model), steps=1000) if spot or "Ada" in system else None
        )
        if pruner is not None:
            pruner.net.step = spot
        optimizer = sgd(model) if pruner is None else pruner.optimizer
        closure = passes(model, optimizer, images[:BATCH], labels[:BATCH])

        def loop(optimizer: Any = optimizer, closure: Any = closure, two: bool = pruner is not None) -> None:
            closure()
            optimizer.step(closure) if two else optimizer.step()

        loops[system] = loop
    times: dict[str, list[float]] = {system: [] for system in loops}
    for _ in range(turns + 1):
        for system, loop in loops.items():
            start = time.process_time()
            loop()
            times[system].append((time.process_time() - start) * 1000)
    found = {system: statistics.median(values[1:]) for system, values in times.items()}
    shares = [
        statistics.median(mine / plain for mine, plain in zip(times[system], times["SGD"], strict=True))
        for system in ("AdaSAP", "AdaSAP, robustness")
    ]
    return {"ms": found, "of_sgd": max(shares)}


def passes(model: nn.Module, optimizer: Any, images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    """Forward and backward on this batch."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        return loss

    return closure


def network(name: str = "conv-16-32-32", seed: int = 0) -> nn.Module:
    return load_classifier(name, channels=1, size=8, classes=10, seed=seed)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)


def tables(found: Row) -> str:
    """The tables of results/adasap.json."""
    heads: dict[str, Any] = {
        "step": "system",
        "drop at removal": "drop:.3f",
        "deviation over seeds": "drop_sd:.3f",
        "worst": "worst_drop:.3f",
        "clean": "clean:.4f",
        "noise": "noise:.3f",
        **{f"sigma {sigma}": f"noise_{sigma}:.3f" for sigma in SIGMAS},
    }
    costs = [{"network": name, **row["ms"], "of": row["of_sgd"]} for name, row in found["cost"].items()]
    times = {
        "network": "network",
        "SGD, ms a step": "SGD:.2f",
        "AdaSAP": "AdaSAP:.2f",
        "robustness phase": "AdaSAP, robustness:.2f",
        "of SGD, the slower": "of:.2f",
    }
    said = [f"- {words}: {'met' if held else 'NOT met'}" for words, held in found["met"].items()]
    return "\n\n".join([table(found["rows"], heads), table(costs, times), "\n".join(said)])


if __name__ == "__main__":
    sys.exit(main())
