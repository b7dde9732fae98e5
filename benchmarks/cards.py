"""cards: compressed classifiers and decks of them on corrupted digits, upscaled to 16 x 16.

    python benchmarks/cards.py [--seeds 3] [--epochs 24] [--show]

conv-16-32-32 on scikit-learn's digits, SGD .05 with steps, batches of 50, through `secateur train`'s own job. Learning
rate rewinding (LRR: three rounds) against one cut and fine-tuning (FT: half of the epochs before the cut, half after it
at the last learning rate) and against one cut with the learning rate rewound, all in equal epochs; then decks of six
5% cards found by LRR, two for each augmentation: plain average and gated. Corrupted accuracy is the mean over noise,
defocus blur and contrast at severities 1, 3, 5 of the CIFAR-C table. One process on one thread, about five minutes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import Row, read, table, write

from secateur.apply.training import Training
from secateur.engine.train import Fit
from secateur.io.images import Images, load_images
from secateur.methods.weights.cards import CARD
from secateur.methods.weights.lottery_ticket import LotteryTicket
from secateur.robustness.corrupt import corrupt
from secateur.robustness.deck import AUGMENTS, Deck, DeckLogits, memory_bits, reference_spectra
from secateur.robustness.evaluate import evaluate_corruptions
from secateur.training import TrainingRecipe, train

CORRUPTIONS, SEVERITIES = ("gaussian_noise", "defocus_blur", "contrast"), (1, 3, 5)
DECK_DENSITY, COPIES, ROUNDS = 0.05, 2, 3
TOLD = ("clean", "corrupted", *CORRUPTIONS)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=24, help="of every training; four parts for LRR")
    parser.add_argument(
        "--show", action="store_true", help="measure nothing: print the tables of the results"
    )
    args = parser.parse_args(argv)
    if not args.show:
        torch.set_num_threads(1)
        run(args)
    print(f"\n## cards\n\n{tables(read('cards'))}\n")
    return 0


def run(args: argparse.Namespace) -> None:
    """Measure and write results/cards.json."""
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        source = upscaled(Path(folder) / "digits16.npz")
        train_set, test = load_images(source, "train"), load_images(source, "test")
        runs: dict[str, list[Row]] = {}
        decks: list[Row] = []
        for seed in range(args.seeds):
            models: dict[str, nn.Module] = {}
            for name, method in systems(10 * seed).items():
                models[name] = model = trained(source, method, "none", 10 * seed, args.epochs)
                runs.setdefault(name, []).append(measured(model, test) | {"density": density(model)})
                tell(seed, name, runs[name][-1])
            found = deck_rows(models["LRR 5%"], source, seed, args.epochs, train_set, test)
            decks.append(found)
            tell(seed, "deck", found)
    rows = [summed(name, seeds) for name, seeds in runs.items()]
    for name in ("mean of its cards", "plain average", "gated"):
        rows.append(summed(f"deck, {name}", [deck[name] for deck in decks]))
    command = f"python benchmarks/cards.py {' '.join(sys.argv[1:])}".strip()
    facts = {"command": command, "epochs": args.epochs, "seconds": time.process_time() - start}
    write("cards", rows, args, **facts, decks=decks, met=met(rows))


def systems(seed: int) -> dict[str, Training | None]:
    """What is compared, trained on images as they are."""
    found: dict[str, Training | None] = {"dense": None}
    for kept in (0.2, 0.05):
        cut: dict[str, Any] = {"sparsity": 1 - kept, "seed": seed}
        found[f"LRR {kept:.0%}"] = CARD(**cut, kind="lrr", rounds=ROUNDS)
        found[f"FT {kept:.0%}"] = CARD(**cut, kind="fine_tune")
        found[f"one cut, rate rewound {kept:.0%}"] = LotteryTicket(
            **cut, oneshot=True, rewind="learning_rate"
        )
    return found


def trained(source: str, method: Training | None, augment: str, seed: int, epochs: int) -> nn.Module:
    """One network after its training."""
    how = Fit(epochs=epochs, batch=50, lr=0.05, schedule="step", seed=seed)
    recipe = TrainingRecipe(
        model="conv-16-32-32", data=source, method=method, how=how, seed=seed, augment=augment
    )
    return train(recipe).model.eval()


def deck_rows(first: nn.Module, source: str, seed: int, epochs: int, train_set: Images, test: Images) -> Row:
    """Six cards of one seed, the first of which is there: each by itself, their plain average, and behind the gate."""
    cards, names = [first], [AUGMENTS[0]]
    for augment in AUGMENTS:
        for copy in range(augment == AUGMENTS[0], COPIES):
            own = 10 * seed + copy
            method = CARD(sparsity=1 - DECK_DENSITY, kind="lrr", rounds=ROUNDS, seed=own)
            cards.append(trained(source, method, augment, own, epochs))
            names.append(augment)
    spectra = reference_spectra(train_set.images, AUGMENTS, seed)
    deck = Deck(cards, names, spectra=spectra)
    alone = [measured(card, test) for card in cards]
    found: Row = {"cards": [{"augment": name, **row} for name, row in zip(names, alone, strict=True)]}
    found["mean of its cards"] = {key: statistics.mean(row[key] for row in alone) for key in TOLD}
    found["gated"] = measured(DeckLogits(deck), test)
    found["chosen"] = chosen(deck, test)
    deck.gated = False
    found["plain average"] = measured(DeckLogits(deck), test)
    found["weight_bits"] = memory_bits(deck)
    return found


def chosen(deck: Deck, test: Images) -> dict[str, str]:
    """The gate's group for the whole test set, clean and corrupted."""
    sets = {"clean": test.images}
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            sets[f"{name} {severity}"] = corrupt(test.images, name, severity)
    return {name: deck.gate(torch.from_numpy(x).permute(0, 3, 1, 2) / 255) for name, x in sets.items()}


def measured(model: nn.Module, test: Images) -> Row:
    """Accuracy on clean and on corrupted test images."""
    found = evaluate_corruptions(model, test.images, test.labels, names=CORRUPTIONS, severities=SEVERITIES)
    clean, corrupted = found["clean"]["accuracy"], found["robust_accuracy"]
    return {"clean": clean, "corrupted": corrupted, **found["by_corruption"]}


def density(model: nn.Module) -> float:
    weights = [p for p in model.parameters() if p.ndim > 1]
    return sum(int(p.count_nonzero()) for p in weights) / sum(p.numel() for p in weights)


def upscaled(path: Path) -> str:
    """Digits with every pixel four times, as a file that `load_images` reads."""
    arrays = {}
    for split in ("train", "test"):
        data = load_images("digits", split)
        arrays[f"{split}_images"] = np.kron(data.images, np.ones((1, 2, 2, 1), np.uint8))
        arrays[f"{split}_labels"] = data.labels
    np.savez(path, **arrays)
    return str(path)


def summed(name: str, seeds: list[Row]) -> Row:
    """One row of the table: means over the seeds, and the deviation of what counts."""
    mean = {key: statistics.mean(row[key] for row in seeds) for key in seeds[0] if key in (*TOLD, "density")}
    spread = statistics.stdev([row["corrupted"] for row in seeds]) if len(seeds) > 1 else 0.0
    return {"system": name, **mean, "corrupted_sd": spread, "seeds": seeds}


def met(rows: list[Row]) -> dict[str, bool]:
    """Signs of the means over the seeds. The first three are the sheet's; gaps of a point or two are noise here."""
    by = {row["system"]: row["corrupted"] for row in rows}
    gated = by["deck, gated"]
    return {
        "LRR >= FT at 20%, corrupted": by["LRR 20%"] >= by["FT 20%"],
        "LRR >= FT at 5%, corrupted": by["LRR 5%"] >= by["FT 5%"],
        "gated deck >= mean of its cards, corrupted": gated >= by["deck, mean of its cards"],
        "gated deck >= plain deck, corrupted (not in the sheet)": gated >= by["deck, plain average"],
        "LRR >= one cut with the rate rewound at 20%, corrupted (not in the sheet)": by["LRR 20%"]
        >= by["one cut, rate rewound 20%"],
        "LRR >= one cut with the rate rewound at 5%, corrupted (not in the sheet)": by["LRR 5%"]
        >= by["one cut, rate rewound 5%"],
        "LRR >= dense at 5%, corrupted (the paper's finding)": by["LRR 5%"] >= by["dense"],
    }


def tell(seed: int, name: str, row: Row) -> None:
    shown = {key: round(value, 4) for key, value in row.items() if isinstance(value, float)}
    print(f"  {time.strftime('%H:%M:%S')}  seed {seed}  {name} {shown}", file=sys.stderr, flush=True)


def tables(found: Row) -> str:
    """The tables of results/cards.json."""
    heads: dict[str, Any] = {
        "system": "system",
        "density": "density:.3f",
        "clean": "clean:.4f",
        "corrupted": "corrupted:.4f",
        "deviation over seeds": "corrupted_sd:.4f",
        **{name.replace("_", " "): f"{name}:.4f" for name in CORRUPTIONS},
    }
    gates = [{"seed": seed, **deck["chosen"]} for seed, deck in enumerate(found["decks"])]
    said = [f"- {words}: {'met' if held else 'NOT met'}" for words, held in found["met"].items()]
    asked = table(gates, {"seed": "seed", **{name: name for name in gates[0] if name != "seed"}})
    return "\n\n".join(
        [
            table(found["rows"], heads),
            "What the gate chose:",
            asked,
            "\n".join(said),
            f"{found['seconds']:.0f} s",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
