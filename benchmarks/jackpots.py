"""jackpots: a mask searched on frozen pretrained weights against rewinding and one-shot magnitude, ResNet-20, CIFAR-10.

    make bench ARGS="jackpots [--seeds 3] [--sparsities 0.8 0.9 0.95] [--fresh] [--show]"

The published ResNet-20 (91.73% on all 10,000 test images) and what CIFAR-10 lies in ../shared/data/cifar10_small: the
first 1,000 training images, of which it has seen all 50,000, and the first 1,000 test images. All leave the classifier
dense and rank the convolutions together. Searches and LRR take the same number of epochs, with random crops and mirror
images, batches of 100, SGD with momentum; a deviation of one row at 90% is 0.9 points by the number of test images.

    one-shot magnitude    cut, nothing else                 its statistics    batch norm re-estimated on the images
    lottery jackpots      lr .1, cosine, weight decay 5e-4, both on the scores (the paper's, 8 epochs instead of 30)
    LRR                   4 trainings of 2 epochs, a cut after each of the first three, lr from .02 by cosine each time

One process on one thread. Finished cells lie in .cache/jackpots and are taken from there unless --fresh says no.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import CACHE, HERE, Row, read, table, write
from training import code, remembered, said, spread, summed, verdict_table, verdicts

from secateur.apply.training import Training
from secateur.engine.train import Fit, batch_of, fit
from secateur.evaluate.classify import accuracy, to_batch
from secateur.io.classifiers import load_classifier
from secateur.io.images import load_images
from secateur.registry import make
from secateur.training import augmenter

SHARED = HERE.parent.parent / "shared" / "data"
WEIGHTS, IMAGES = "resnet20-12fca82f.th", "cifar10_small"
TEST, CLASSIFIER, AUGMENT = 1000, "linear", "crop-flip"
FIT: Row = {"epochs": 8, "batch": 100, "schedule": "cosine", "momentum": 0.9, "weight_decay": 5e-4}
# method, learning rate; None: nothing is trained
SYSTEMS: dict[str, tuple[Row, float | None]] = {
    "one-shot magnitude": ({"name": "lottery_jackpots"}, None),
    "one-shot magnitude, its statistics": ({"name": "lottery_jackpots"}, None),
    "lottery jackpots": ({"name": "lottery_jackpots"}, 0.1),
    "LRR": ({"name": "lottery_ticket", "rounds": 3, "rewind": "learning_rate", "skip": [CLASSIFIER]}, 0.02),
}
ORDERS = (
    ("lottery jackpots", "one-shot magnitude", "clean", "Zhang 2021: the search improves on its start"),
    ("lottery jackpots", "one-shot magnitude, its statistics", "clean", "the same, less batch norm's part"),
    ("lottery jackpots", "LRR", "clean", "Zhang 2021: no training of weights is needed"),
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.8, 0.9, 0.95])
    parser.add_argument("--fresh", action="store_true", help="measure again what .cache holds")
    parser.add_argument(
        "--show", action="store_true", help="measure nothing: print the tables of the results"
    )
    args = parser.parse_args(argv)
    if not args.show:
        torch.set_num_threads(1)
        run(args)
    print(f"\n## jackpots\n\n{tables(read('jackpots'))}\n")
    return 0


def run(args: argparse.Namespace) -> None:
    """Measure and write results/jackpots.json."""
    if not (SHARED / IMAGES).is_dir():
        sys.exit(f"{SHARED / IMAGES} is missing: the images lie there")
    rows = []
    for system in SYSTEMS:
        for sparsity in args.sparsities:
            seeds = [cell(system, sparsity, seed, args.fresh) for seed in range(args.seeds)]
            rows.append(summed({"system": system, "sparsity": sparsity}, seeds, ("clean", "density")))
            print(f"  {time.strftime('%H:%M:%S')}  {said(rows[-1])}", file=sys.stderr, flush=True)
    command = f"make bench ARGS='{' '.join(['jackpots', *sys.argv[1:]])}'"
    facts = {"training": FIT, "augment": AUGMENT, "settings": SYSTEMS, "dense": dense()}
    write("jackpots", rows, args, command=command, **facts, verdicts=verdicts(rows, ORDERS))


def cell(system: str, sparsity: float, seed: int, fresh: bool) -> Row:
    """One cut network, from .cache where it is there."""
    settings, lr = SYSTEMS[system]
    job = {"system": system, "settings": settings, "lr": lr, "sparsity": sparsity, "seed": seed}
    job |= {"fit": FIT, "augment": AUGMENT, "test": TEST}
    return remembered("jackpots", job, fresh, code(settings), lambda: measured(system, sparsity, seed))


def measured(system: str, sparsity: float, seed: int) -> Row:
    """Cut, train or search where the system does, and look at the test images."""
    settings, lr = SYSTEMS[system]
    model, (x, y) = load_classifier(pretrained()), images("train")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    how = Fit(**FIT, lr=lr or 0.1, seed=seed)
    method = make(**settings, sparsity=sparsity, seed=seed)
    start = time.process_time()
    if lr is not None:
        masks = trained(model, method, how, x, y)
    else:
        pruner = method.attach(model, how.make(model), steps=1)  # a search begins with the magnitude mask
        pruner.detach()
        masks = pruner.net.masks
        if "statistics" in system:
            estimate(model, x, how)
    seconds = time.process_time() - start
    frozen = all(
        torch.equal(p, before[name] * masks[name] if name in masks else before[name])
        for name, p in model.named_parameters()
    )
    wide = [mask for name, mask in masks.items() if not name.startswith(CLASSIFIER)]
    kept = sum(int(mask.sum()) for mask in wide) / sum(mask.numel() for mask in wide)
    clean = accuracy(model, *images("test"))
    return {"clean": clean, "density": kept, "weights_unchanged": frozen, "cpu_s": seconds}


def trained(model: nn.Module, method: Training, how: Fit, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Run the method's training; its masks."""
    per_epoch = how.per_epoch(len(x))
    length: Any = getattr(method, "length", None)
    if length is not None:
        how = replace(how, cycle=length(how.epochs * per_epoch) / per_epoch)
    optimizer = how.make(model)
    pruner = method.attach(model, optimizer, steps=how.epochs * per_epoch)
    fit(model, x, y, how, optimizer=optimizer, pruner=pruner, augment=augmenter(AUGMENT, how))
    pruner.detach()
    return pruner.net.masks


@torch.no_grad()
def estimate(model: nn.Module, x: Tensor, how: Fit, passes: int = 3) -> None:
    """Let batch norm see the augmented training images a few times; nothing else changes."""
    model.train()
    augment = augmenter(AUGMENT, how)
    assert augment is not None
    for step in range(passes * how.per_epoch(len(x))):
        model(augment(x[batch_of(len(x), how.batch, step, how.seed)], step))
    model.eval()


def dense() -> float:
    """Accuracy of the network as it was published, on the same test images."""
    return remembered("jackpots", {"dense": WEIGHTS, "test": TEST}, False, "", _dense)["clean"]


def _dense() -> Row:
    return {"clean": accuracy(load_classifier(pretrained()), *images("test"))}


@cache
def pretrained() -> str:
    """The published weights as a folder, converted once."""
    folder = CACHE / "resnet20-cifar10"
    if not folder.is_dir():
        tool, file = HERE.parent / "tools" / "convert_resnet.py", SHARED / "resnet_cifar10_weights" / WEIGHTS
        CACHE.mkdir(exist_ok=True)
        subprocess.run([sys.executable, str(tool), str(file), str(folder)], check=True)
    return str(folder)


@cache
def images(split: str) -> tuple[Tensor, Tensor]:
    """Float images in [0, 1] and labels: all that lie there to train, the first ones to test."""
    data = load_images(SHARED / IMAGES, split)
    count = TEST if split == "test" else len(data)
    return to_batch(data.images[:count]), torch.as_tensor(data.labels[:count])


def tables(found: Row) -> str:
    """The tables of results/jackpots.json."""
    heads: dict[str, Any] = {"method": "system", "sparsity": "sparsity:.0%", "clean, %": spread("clean")}
    heads |= {"density of the convolutions": "density:.4f"}
    parts = [table(found["rows"], heads), verdict_table(found["verdicts"])]
    return f"Dense: {100 * found['dense']:.1f}%.\n\n" + "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
