"""stragglers: averages of a broad and a fine-tuned network on rotated digits, the layers that spoil them, a repair.

    python benchmarks/stragglers.py [--seeds 5] [--show]

"Zero-shot" is mlp-48-48-48-48 trained on 200 of scikit-learn's digits, turned by up to 45 degrees; "fine-tuned" is the
same network trained on with all 1,297 upright digits, at five rates and two lengths. Of the 500 test digits one half
chooses (alpha, layers); the other half is reported on, upright and turned. One process on one thread. Told: accuracies
along the path, barrier and sharpness of each layer, rank correlations of sharpness with rotated accuracy over the
fine-tunings, and the path with layers cut: the straggler, as a control each other layer, and all of them.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import Row, read, table, write

from secateur.engine.train import Fit, fit
from secateur.evaluate.classify import to_batch
from secateur.evaluate.stragglers import (
    CHOOSE,
    HELD,
    Labelled,
    Line,
    Settings,
    accuracy_and_loss,
    analyse,
    barrier,
    repaired,
)
from secateur.io.classifiers import load_classifier
from secateur.io.images import Images, load_images, stratified

NETWORK, DEGREES, FEW = "mlp-48-48-48-48", 45.0, 200
TUNINGS = [(lr, epochs) for lr in (0.01, 0.02, 0.04, 0.08, 0.12) for epochs in (10, 30)]
REPAIRED = [(0.04, 30), (0.12, 30)]
SPARSITIES = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
SHOWN = (0.5, 0.9, 1.0)
RHOS, KINDS = (1e-3, 0.05), ("average", "worst")
ROTATED = "rotated"
HOW = Settings(rho=RHOS[0])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--show", action="store_true", help="measure nothing: print the table of the results")
    args = parser.parse_args(argv)
    if not args.show:
        torch.set_num_threads(1)
        run(args)
    print(f"\n## stragglers\n\n{tables(read('stragglers'))}\n")
    return 0


def run(args: argparse.Namespace) -> None:
    """Measure and write results/stragglers.json."""
    learn, test = load_images("digits", "train"), load_images("digits", "test")
    choose, held, turned = test_sets(test)
    rows: list[Row] = []
    repairs: list[Row] = []
    for seed in range(args.seeds):
        zero = broad(learn, seed)
        for lr, epochs in TUNINGS:
            tuned = narrow(zero, learn, lr, epochs, seed)
            found = analyse(zero, tuned, choose, held, {ROTATED: turned}, HOW)
            rows.append({"seed": seed, "lr": lr, "epochs": epochs, **model_row(found, zero, tuned, choose)})
            if (lr, epochs) in REPAIRED:
                line = Line(zero, tuned, choose, HOW)
                sets = {CHOOSE: choose, HELD: held, ROTATED: turned}
                repairs += [
                    {"seed": seed, "lr": lr, "epochs": epochs, **row}
                    for row in repair_rows(line, found["stragglers"], sets)
                ]
            print(
                f"  seed {seed}, lr {lr}, {epochs} epochs: {rows[-1]['verdict']}", file=sys.stderr, flush=True
            )
    command = f"python benchmarks/stragglers.py {' '.join(sys.argv[1:])}".strip()
    facts = {"definition": HOW.definition, "repairs": repairs, "correlations": correlations(rows)}
    write("stragglers", rows, args, **facts, command=command)


def test_sets(test: Images) -> tuple[Labelled, Labelled, Labelled]:
    """The half that chooses, the other half, and that one turned."""
    images, labels = to_batch(test.images), torch.from_numpy(test.labels)
    first = torch.zeros(len(labels), dtype=torch.bool)
    first[torch.from_numpy(stratified(test.labels, len(labels) // 2, seed=0))] = True
    rest = images[~first]
    turned = rotate(rest, angles(len(rest), 1 << 20))
    return (
        Labelled(images[first], labels[first]),
        Labelled(rest, labels[~first]),
        Labelled(turned, labels[~first]),
    )


def broad(learn: Images, seed: int) -> nn.Module:
    """The stand-in for a zero-shot network: few images, turned in every batch anew."""
    mean, std = learn.statistics()
    model = load_classifier(NETWORK, channels=1, size=8, classes=10, seed=seed, mean=mean, std=std)
    few = torch.from_numpy(stratified(learn.labels, FEW, seed))
    images, labels = to_batch(learn.images)[few], torch.from_numpy(learn.labels)[few]
    fit(
        model, images, labels, Fit(epochs=100, batch=50, lr=0.05, seed=seed),
        augment=lambda x, step: rotate(x, angles(len(x), seed * 100_003 + step)),
    )  # fmt: skip
    return model


def narrow(zero: nn.Module, learn: Images, lr: float, epochs: int, seed: int) -> nn.Module:
    """Trained on with upright digits."""
    model = deepcopy(zero)
    how = Fit(epochs=epochs, batch=64, lr=lr, seed=seed + 100)
    fit(model, to_batch(learn.images), torch.from_numpy(learn.labels), how)
    return model


def model_row(found: Row, zero: nn.Module, tuned: nn.Module, choose: Labelled) -> Row:
    """The figures of one fine-tuning; sharpness at theta(1/2) for each radius."""
    parts = {"total": found["sharpness"]["0.5"], "stragglers": found["sharpness"]["stragglers"]}
    sharp = {f"{name} {kind} {RHOS[0]:g}": part[kind] for name, part in parts.items() for kind in KINDS}
    line = Line(zero, tuned, choose, replace(HOW, rho=RHOS[1], others="path"))
    line.at(0.5)
    for name, layers in (("total", list(line.layers)), ("stragglers", found["stragglers"])):
        part = line.sharpness(layers)
        sharp |= {f"{name} {kind} {RHOS[1]:g}": part[kind] for kind in KINDS}
    behind = {layer: barrier(HOW.alphas, losses(line, layer)) for layer in line.layers}
    rotated = found["picks"]["sets"][ROTATED]
    return {
        "alpha": found["picks"]["alpha"], "held": found["picks"]["sets"][HELD], "rotated": rotated,
        "verdict": rotated["verdict"], "sharpness": sharp, "stragglers": found["stragglers"],
        "layers": [row | {"behind": behind[row["name"]]} for row in found["layers"]],
        "path": {name: row["accuracy"] for name, row in found["path"]["sets"].items()},
    }  # fmt: skip


def losses(line: Line, layer: str) -> list[float]:
    """Along the path, with this layer as `others` says."""
    models = (line.with_layer(layer, alpha) for alpha in HOW.alphas)
    return [accuracy_and_loss(model, line.few, HOW.batch)[1] for model in models]


def repair_rows(line: Line, stragglers: Sequence[str], sets: dict[str, Labelled]) -> list[Row]:
    """The path after a cut: straggler, the other layers (a control, their mean), all; difference and tuned weights."""
    others = [[name] for name in line.layers if name not in stragglers]
    groups = {"straggler": [list(stragglers)], "another layer": others, "all layers": [list(line.layers)]}
    rows = []
    for of in ("difference", "tuned"):
        for method in ("magnitude", "wanda"):
            line.how = replace(line.how, repair=of, method=method)
            for what, choices in groups.items():
                for sparsity in SPARSITIES if of == "difference" else SPARSITIES[:-1]:
                    if method == "wanda" and sparsity not in (0.5, 0.9):
                        continue
                    found = [repaired(line, layers, sparsity, sets)["picks"] for layers in choices]
                    rows.append(
                        {"of": of, "method": method, "what": what, "sparsity": sparsity, **figures(found)}
                    )
    return rows


def figures(found: Sequence[Row]) -> Row:
    """Means over several picks."""

    def mean(name: str, key: str) -> float:
        return statistics.fmean(one["sets"][name][key] for one in found)

    keys = [(name, key) for name in (HELD, ROTATED) for key in ("half", "chosen", "dip", "gain")]
    alpha = statistics.fmean(one["alpha"] for one in found)
    return {
        "alpha": alpha,
        **{f"{'held' if name == HELD else name}_{key}": mean(name, key) for name, key in keys},
    }


def correlations(rows: Sequence[Row]) -> list[Row]:
    """Rank correlation of sharpness at theta(1/2) with its rotated accuracy: pooled, and within each seed."""
    seeds = sorted({row["seed"] for row in rows})
    out = []
    for key in rows[0]["sharpness"]:
        within = []
        for seed in seeds:
            own = [row for row in rows if row["seed"] == seed]
            within.append(
                rank_correlation([r["sharpness"][key] for r in own], [r["rotated"]["half"] for r in own])
            )
        pooled = rank_correlation([r["sharpness"][key] for r in rows], [r["rotated"]["half"] for r in rows])
        taus = [w["kendall"] for w in within if w["kendall"] is not None]
        figures = {"within": statistics.fmean(taus), "least": min(taus), "most": max(taus)}
        out.append({"sharpness": key, **pooled, **figures})
    return out


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> dict[str, float | None]:
    """Spearman's rho and Kendall's tau-b; None where one of the two does not vary."""
    found = {"spearman": stats.spearmanr(x, y).statistic, "kendall": stats.kendalltau(x, y).statistic}
    return {name: None if math.isnan(value) else float(value) for name, value in found.items()}


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """[N, C, H, W] turned about the middle, each by its own angle; bilinear, black outside."""
    angle = torch.deg2rad(degrees)
    cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turn = torch.stack([torch.stack([cos, -sin, none], 1), torch.stack([sin, cos, none], 1)], 1)
    grid = F.affine_grid(turn, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def angles(count: int, seed: int) -> Tensor:
    """Uniform in -45 to 45 degrees."""
    return (2 * torch.rand(count, generator=torch.Generator().manual_seed(seed)) - 1) * DEGREES


# -- tables -----------------------------------------------------------------------------------------------------------


def tables(found: Row) -> str:
    """The tables of results/stragglers.json."""
    rows = found["rows"]
    parts = [path_table(rows), layer_table(rows), correlation_table(found["correlations"])]
    parts += repair_tables(found["repairs"], rows)
    seeds = len({row["seed"] for row in rows})
    return "\n\n".join(
        [f"{seeds} seeds; mean ± standard deviation. Stragglers: {found['definition']}.", *parts]
    )


def spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.fmean(values):.1f} ± {100 * deviation:.1f}"


def path_table(rows: Sequence[Row]) -> str:
    lines, kinds = [], ("zero", "tuned", "half", "chosen", "oracle")
    for lr, epochs in TUNINGS:
        own = [r for r in rows if (r["lr"], r["epochs"]) == (lr, epochs)]
        line: Row = {
            "tuning": f"{lr:g}, {epochs}",
            "alpha": f"{statistics.fmean(r['alpha'] for r in own):.2f}",
        }
        for name in ("held", "rotated"):
            line |= {f"{name} {k}": spread([r[name][k] for r in own]) for k in kinds}
        inner = [max(r["path"][ROTATED][1:-1]) for r in own]
        ahead = [i > r["rotated"]["tuned"] for i, r in zip(inner, own, strict=True)]
        line["beats tuned"] = f"{sum(ahead)} of {len(own)}"
        line["beats both"] = f"{sum(r['rotated']['gain'] > 0 for r in own)} of {len(own)}"
        line["dips"] = f"{max(r['rotated']['dip'] for r in own):.3f}"
        lines.append(line)
    keys = ["tuning", "held zero", "held tuned", "held half", "held chosen", "alpha", "rotated zero", "rotated tuned",
            "rotated half", "rotated chosen", "rotated oracle", "beats tuned", "beats both", "dips"]  # fmt: skip
    return table(lines, {("lr, epochs" if key == "tuning" else key): key for key in keys})


def layer_table(rows: Sequence[Row]) -> str:
    lines = []
    for at, layer in enumerate(rows[0]["layers"]):
        own = [row["layers"][at] for row in rows]
        line: Row = {"layer": layer["name"], "largest": max(o["barrier"] for o in own)}
        line |= {key: statistics.fmean(o[key] for o in own) for key in ("moved", "average", "worst")}
        line["largest behind"] = max(o["behind"] for o in own)
        line["positive"] = f"{sum(o['barrier'] > 0 for o in own)} of {len(own)}"
        line["positive behind"] = f"{sum(o['behind'] > 0 for o in own)} of {len(own)}"
        lines.append(line | {"straggler": f"{sum(o['straggler'] for o in own)} of {len(own)}"})
    heads: dict[str, Any] = {
        "layer": "layer", "moved": "moved:.2f", "barrier above 0": "positive", "largest": "largest:.2g",
        "all but it: above 0": "positive behind", "largest of those": "largest behind:.2g",
        "average sharpness": "average:.2g", "worst case": "worst:.2g", "straggler": "straggler",
    }  # fmt: skip
    return table(lines, heads)


def correlation_table(rows: Sequence[Row]) -> str:
    heads: dict[str, Any] = {
        "sharpness at alpha 0.5": "sharpness", "Kendall, pooled": "kendall:.2f", "Spearman, pooled": "spearman:.2f",
        "Kendall within a seed": "within:.2f", "least": "least:.2f", "most": "most:.2f",
    }  # fmt: skip
    return table(rows, heads)


def repair_tables(rows: Sequence[Row], models: Sequence[Row]) -> list[str]:
    out, shares = [], ("rotated_half", "held_half", "rotated_chosen", "held_chosen")
    for lr, epochs in REPAIRED:
        lines = []
        here = [r for r in rows if (r["lr"], r["epochs"]) == (lr, epochs) and r["sparsity"] in SHOWN]
        plain = [m for m in models if (m["lr"], m["epochs"]) == (lr, epochs)]
        for at in (5, 3):
            line = {
                "cut": "nothing",
                "layers": "",
                "sparsity": "" if at == 5 else f"at alpha {at / 10} instead",
            }
            line["rotated_half"] = spread([m["path"][ROTATED][at] for m in plain])
            line["held_half"] = spread([m["path"][HELD][at] for m in plain])
            if at == 5:
                line |= {f"{k}_chosen": spread([m[k]["chosen"] for m in plain]) for k in ("rotated", "held")}
                line["alpha"] = f"{statistics.fmean(m['alpha'] for m in plain):.2f}"
            lines.append(line)
        for kind in dict.fromkeys(kind_of(r) for r in here):
            own = [r for r in here if kind_of(r) == kind]
            line = {"cut": f"{kind[0]}, {kind[1]}", "layers": kind[2], "sparsity": f"{kind[3]:g}"}
            line |= {k: spread([r[k] for r in own]) for k in shares}
            lines.append(line | {"alpha": f"{statistics.fmean(r['alpha'] for r in own):.2f}"})
        heads: dict[str, Any] = {
            "cut": "cut", "layers": "layers", "sparsity": "sparsity", "rotated at 0.5": "rotated_half",
            "upright at 0.5": "held_half", "chosen alpha": "alpha", "rotated, chosen": "rotated_chosen",
            "upright, chosen": "held_chosen",
        }  # fmt: skip
        out.append(f"Repair, lr {lr:g}, {epochs} epochs:\n\n" + table(lines, heads))
    return out


def kind_of(row: Row) -> tuple[str, str, str, float]:
    return row["of"], row["method"], row["what"], row["sparsity"]


if __name__ == "__main__":
    sys.exit(main())
