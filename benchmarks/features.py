"""features: a sparse set of readable features against a linear probe, from few images, clean and corrupted: CIFAR-10.

    python benchmarks/features.py [--seeds 3] [--joins disjoint all] [--show]

Towers: the stand-in of standin.py (no trained pair of towers is to be had in a package), joined on ImageNet classes
that CIFAR-10's do not cover ("disjoint": it never met a dog with its name), and on all. Shots are drawn from 1,000
training images; accuracy is of 2,000 test images, and of the first 500 of them under each of the 15 corruptions at
severity 3 (made at 32 x 32, then enlarged). Descriptors: descriptors_cifar10.json, written by hand, 8 a class. One
prompt a class. lam and C are chosen on a quarter of the shots; 1 and 2 shots leave nothing to hold out, and take what
4 shots chose (same seed). One process on one thread; embeddings are kept in .cache/embeddings.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import HERE, RESULTS, Row, read, table, write
from standin import DATA, KEPT, Backbone, Standin, imagenet, load_standin

from secateur.apply.heads import Head, Shots, Texts, blend
from secateur.features import Data, accuracy, fit, texts_of
from secateur.io.descriptors import Descriptors, random_words, read_descriptors
from secateur.io.embeddings import embed_images
from secateur.io.images import load_images
from secateur.registry import make
from secateur.robustness.corrupt import NAMES, corrupt

SHOTS, FEWEST = (1, 2, 4, 8, 16), 4
SEVERITY, CORRUPTED = 3, 500
WORDS = HERE / "descriptors_cifar10.json"
HELD = RESULTS / "features.json"
JOINS = ("disjoint", "all")
HEADS = {
    "accuracy, clean, % (deviation over seeds)": "clean",
    "accuracy, 15 corruptions, %": "corrupted",
    "features used": "features",
}
# without labelled images: of class prompts, of descriptors, of both
FREE = {"ZS": "cp", "ZS-VD": "vd", "ZS-AVD": "avd"}


@dataclass(frozen=True)
class System:
    """A method with its settings.

    given: the setting that 1 and 2 shots cannot choose.   random: words instead of descriptors.
    blended: under this name it is measured once more, halfway to the zero-shot head.
    """

    method: str
    given: str
    settings: tuple[tuple[str, Any], ...] = ()
    random: bool = False
    blended: str = ""


PROBE, WISE = "linear probe, alpha 0.5", "WISE-SLR, alpha 0.5"
_TOL = ("tol", 1e-3)  # of the optimality conditions, over lam: accuracies do not change by less
SYSTEMS: dict[str, System] = {
    "linear probe": System("linear_probe", "C", blended=PROBE),
    "ridge": System("ridge_probe", "alpha"),
    "SLR-AVD": System("slr_avd", "lam", (_TOL,), blended=WISE),
    "L2 instead of L1": System("slr_avd", "lam", (_TOL, ("penalty", "l2"))),
    "class prompts only": System("slr_avd", "lam", (_TOL, ("features", "cp"))),
    "random words": System("slr_avd", "lam", (_TOL,), random=True),
}
SHOWN = (*FREE, "linear probe", PROBE, "ridge", "SLR-AVD", WISE, *list(SYSTEMS)[3:])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--joins", nargs="+", choices=JOINS, default=list(JOINS), help="the others' rows stay"
    )
    parser.add_argument("--show", action="store_true", help="measure nothing: print the table of the results")
    args = parser.parse_args(argv)
    if not args.show:
        torch.set_num_threads(1)
        run(args)
    print(f"\n## features\n\n{tables(read('features'))}\n")
    return 0


def run(args: argparse.Namespace) -> None:
    """Measure and write results/features.json."""
    start = time.perf_counter()
    backbone = Backbone()
    known = embedded(backbone)
    say(f"embedded: {time.perf_counter() - start:.0f} s")
    words = read_descriptors(WORDS)
    before = (
        read("features") if len(args.joins) < len(JOINS) and HELD.is_file() else {"rows": [], "joins": []}
    )
    rows: list[Row] = [row for row in before["rows"] if row["join"] not in args.joins]
    joins: list[Row] = [row for row in before["joins"] if row["join"] not in args.joins]
    for join in args.joins:
        towers = load_standin(backbone, every=join == "all")
        tests = {name: Shots(towers.project(images), labels) for name, (images, labels) in known.items()}
        train = tests.pop("train")
        zero = free(texts_of(towers, words), tests)
        some: list[Row] = [{"system": name, "shots": 0, **zero[name]} for name in FREE]
        for name, system in SYSTEMS.items():
            some += trained(name, system, towers, words, train, tests, args.seeds)
            say(f"{join}, {name}: {time.perf_counter() - start:.0f} s")
        rows += [{"join": join, **row} for row in some]
        facts = {"join": join, "towers": towers.name, "scale": towers.logit_scale, "met": met(some)}
        seconds = round(time.perf_counter() - start)
        joins.append({**facts, "retrieval": None if join == "all" else retrieval(towers), "seconds": seconds})
    for some_rows in (rows, joins):
        some_rows.sort(key=lambda row: JOINS.index(row["join"]))
    counts = {name: len(labels) for name, (_, labels) in known.items()}
    more = {"joins": joins, "images": counts, "words": len(words.words)}
    command = f"python benchmarks/features.py {' '.join(sys.argv[1:])}".strip()
    write("features", rows, args, **more, command=command)


# -- data -------------------------------------------------------------------------------------------------------------


def embedded(backbone: Backbone) -> dict[str, tuple[Tensor, Tensor]]:
    """(backbone rows, labels) of "train", "clean" and every corruption."""
    folder = DATA / "cifar10_small"
    if not folder.is_dir():
        sys.exit(f"{folder} is missing: this benchmark measures on the CIFAR-10 images that lie there")
    train, test = (load_images(folder, split) for split in ("train", "test"))
    some = replace(test, images=test.images[:CORRUPTED], labels=test.labels[:CORRUPTED])
    sets = {"train": train, "clean": test}
    for name in NAMES:
        spoiled = corrupt(some.images, name, SEVERITY, table="cifar-c")
        sets[name] = replace(some, images=spoiled, name=f"test, {name}")
    parts: Any = backbone  # it has no texts
    return {
        name: (embed_images(parts, images, cache=KEPT, tell=told(name)), torch.from_numpy(images.labels))
        for name, images in sets.items()
    }


def told(name: str) -> Callable[[int, int], None]:
    return lambda done, of: say(f"{name} {done}/{of}    ", end="\r")


# -- measuring --------------------------------------------------------------------------------------------------------


def free(texts: Texts, tests: dict[str, Shots]) -> dict[str, Row]:
    """The zero-shot heads: of class prompts, of descriptors, of both (sheet slr-avd, step 4)."""
    return {
        name: measured(make("zero_shot", features=kind).fit(texts, None), tests)
        for name, kind in FREE.items()
    }


def trained(
    name: str,
    system: System,
    towers: Standin,
    words: Descriptors,
    train: Shots,
    tests: dict[str, Shots],
    seeds: int,
) -> list[Row]:
    """One row for each number of shots, the mean over the seeds; of a blended system two."""
    found: dict[tuple[str, int], list[Row]] = {}
    for seed in range(seeds):
        texts = texts_of(towers, random_words(words, seed) if system.random else words)
        data, chosen = Data(texts, words, train), {}
        for shots in sorted(SHOTS, key=lambda k: (k < FEWEST, k)):  # 4 first: it chooses for 1 and 2
            given = {system.given: chosen[FEWEST]} if shots < FEWEST else {}
            method = make(system.method, **dict(system.settings), **given, seed=seed)
            fitted = fit(method, data, shots=shots, seed=seed)
            chosen[shots] = fitted.settings[system.given]
            heads = {name: fitted.head}
            if system.blended:
                heads[system.blended] = blend(fitted.head, fitted.zero, 0.5)
            for label, head in heads.items():
                row = measured(head, tests) | {"features": fitted.head.used, "setting": chosen[shots]}
                found.setdefault((label, shots), []).append(row)
    return [
        {"system": label, "shots": shots, **summary(rows), "seeds": rows}
        for (label, shots), rows in found.items()
    ]


def summary(rows: Sequence[Row]) -> Row:
    out: Row = {}
    for key in ("clean", "corrupted", "features"):
        values = [row[key] for row in rows]
        out |= {key: statistics.mean(values), f"{key}_sd": statistics.stdev(values) if len(rows) > 1 else 0.0}
    return out


def measured(head: Head, tests: dict[str, Shots]) -> Row:
    """Accuracy on clean images, on each corruption, and the mean of these."""
    found = {name: accuracy(head, shots, 10) for name, shots in tests.items()}
    clean = found.pop("clean")
    return {
        "clean": clean,
        "corrupted": statistics.mean(found.values()),
        "features": head.used,
        "each": found,
    }


def retrieval(towers: Standin) -> Row:
    """Image to text among the ImageNet classes that CIFAR-10's cover, one image a class: how good the stand-in is."""
    rows, names, covered = imagenet(towers.backbone)
    kept = sorted(covered)
    texts = towers.embed_texts([f"a photo of a {names[i]}" for i in kept])
    cosines = towers.project(rows[kept]) @ texts.t()
    place = (cosines > cosines.diagonal()[:, None]).sum(1)
    first, first5 = (float((place < n).float().mean()) for n in (1, 5))
    return {"classes": len(kept), "first": first, "first5": first5}


def met(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """The paper's statements, each as differences in points at every number of shots (above 0: seen)."""
    by = {(row["system"], row["shots"]): row for row in rows}

    def over(mine: str, other: str, key: str) -> dict[str, float]:
        pairs = {k: (by[mine, k], by.get((other, k)) or by[other, 0]) for k in SHOTS}
        return {str(k): round(100 * (a[key] - b[key]), 2) for k, (a, b) in pairs.items()}

    out = {}
    for key in ("clean", "corrupted"):
        zs, vd, avd = (by[name, 0][key] for name in FREE)
        out[f"ZS-VD below ZS, {key}"] = {"0": round(100 * (zs - vd), 2)}
        out[f"ZS-AVD above ZS, {key}"] = {"0": round(100 * (avd - zs), 2)}
        for other in ("linear probe", "ZS", "L2 instead of L1", "class prompts only", "random words"):
            out[f"SLR-AVD above {other}, {key}"] = over("SLR-AVD", other, key)
        out[f"WISE-SLR above SLR-AVD, {key}"] = over(WISE, "SLR-AVD", key)
        pair = (WISE, PROBE)
        out[f"WISE-SLR above the probe blended, {key}"] = over(*pair, key)
    return out


def say(line: str, end: str = "\n") -> None:
    print(f"  {line}", file=sys.stderr, end=end, flush=True)


# -- tables -----------------------------------------------------------------------------------------------------------


def tables(found: Row) -> str:
    """The tables of results/features.json, one set for each join."""
    parts = []
    for join in found["joins"]:
        by = {(row["system"], row["shots"]): row for row in found["rows"] if row["join"] == join["join"]}
        seen = join["retrieval"]
        parts.append(f"### {join['towers']}, logit scale {join['scale']:g}")
        if seen:
            parts.append(
                f"Image to text among the {seen['classes']} ImageNet classes left out of the join: the right name "
                f"comes first for {100 * seen['first']:.0f}%, among the first five for {100 * seen['first5']:.0f}%."
            )
        for title, key in HEADS.items():
            lines: list[Row] = [
                {"system": name, **{str(k): cell(by, name, k, key) for k in SHOTS}} for name in SHOWN
            ]
            parts.append(table(lines, {title: "system", **{f"{k} shots": str(k) for k in SHOTS}}))
        parts.append("Differences in points, without shots, or with 1, 2, 4, 8 and 16:")
        said = [
            f"- {words}: " + ", ".join(f"{value:+.1f}" for value in values.values())
            for words, values in join["met"].items()
        ]
        parts.append("\n".join(said))
    return "\n\n".join(parts)


def cell(by: dict[Any, Row], name: str, shots: int, key: str) -> str:
    row = by.get((name, shots)) or by[name, 0]
    if key == "features":
        return f"{row[key]:.0f}"
    spread = row.get(f"{key}_sd")
    return f"{100 * row[key]:.1f}" + ("" if spread is None else f" ({100 * spread:.1f})")


if __name__ == "__main__":
    sys.exit(main())
