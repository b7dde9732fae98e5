"""secateur train RECIPE.toml: train a network and cut it on the way."""

from __future__ import annotations

import argparse
from typing import Any

from secateur.cli import flags
from secateur.cli.parser import Parser
from secateur.cli.progress import progress
from secateur.cli.table import as_json, say


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("recipe", metavar="RECIPE.toml", help="tables: model, data, method, training, output")
    parser.add_argument("--resume", action="store_true", help="go on where an earlier run was stopped")
    parser.add_argument("--overwrite", action="store_true", help="replace what the recipe's output names")
    parser.add_argument("--json", action="store_true", help="print what came of it as JSON")
    return parser.parse(argv)


def run(args: argparse.Namespace) -> int:
    from secateur.training import load_training, train

    recipe = load_training(flags.existing(args.recipe))
    with progress(args.quiet or args.json) as listen:
        done = train(recipe, resume=args.resume, overwrite=args.overwrite, listen=listen)
    say(
        as_json(done.figures) if args.json else _shown(done.figures, done.folder),
        args.quiet and not args.json,
    )
    return 0


def _shown(figures: dict[str, Any], folder: Any) -> str:
    from secateur.report import words as how

    lines = {"test accuracy": how.percent(figures["accuracy"])}
    for name in ("density", "model_density", "peak_density", "explored_fraction"):
        if name in figures:
            lines[name.replace("_", " ")] = how.percent(figures[name])
    if "train_flops" in figures:
        share = figures["train_flops"] / figures["dense_train_flops"]
        lines["training FLOPs"] = f"{figures['train_flops']:.3g}, {how.percent(share)} of a dense training"
    if figures.get("skipped"):
        lines["skipped steps"] = f"{figures['skipped']} (a gradient was NaN or Inf)"
    small = figures.get("small_dense")
    if small:
        lines["small dense"] = (
            f"{how.percent(small['accuracy'])} ({small['model']}, {small['parameters']:,} parameters)"
        )
    width = max(map(len, lines)) + 2
    shown = [f"{name:<{width}}{value}" for name, value in lines.items()]
    notes = [f"note: {note}" for note in figures.get("notes", [])]
    return "\n".join([*shown, *notes, f"{folder}, {folder}.html"])
