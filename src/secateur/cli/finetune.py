"""secateur finetune MODEL --out FOLDER: train a cut language model on, with its zeros kept."""

from __future__ import annotations

import argparse

from secateur.cli import flags
from secateur.cli.parser import Parser, number, whole
from secateur.cli.progress import progress
from secateur.cli.table import as_json, say


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("model", metavar="MODEL", help=flags.MODEL_HELP)
    group = parser.add_argument_group("training")
    group.add_argument("--text", metavar="SOURCE", default="embedded", help=f"{flags.TEXT_HELP} (default)")
    group.add_argument("--field", default="text", help="the field of a .jsonl that holds the text")
    group.add_argument("--steps", type=whole(), default=100, help="optimiser steps (default: 100)")
    group.add_argument("--length", type=whole(2), default=256, help="tokens a window (default: 256)")
    group.add_argument("--batch", type=whole(), default=2, help="windows a step (default: 2)")
    group.add_argument(
        "--lr", type=number, help="of the first step, falling to 0 (default: 1e-5; 1e-4 with --lora)"
    )
    group.add_argument(
        "--lora", action="store_true", help="train adapters that keep the zeros, and merge them"
    )
    group.add_argument("--rank", type=whole(), default=8, help="of the adapters (default: 8)")
    group.add_argument("--seed", type=whole(0), default=0, help="of windows and adapters (default: 0)")
    flags.model_flags(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--out", metavar="FOLDER", required=True, help="where the trained model goes")
    group.add_argument(
        "--format", default="dense", help="dense (default) or sparse (bitmask and kept values)"
    )
    group.add_argument("--overwrite", action="store_true", help="replace a checkpoint that secateur wrote")
    group.add_argument("--json", action="store_true", help="print what was done as JSON")
    return parser.parse(argv)


def run(args: argparse.Namespace) -> int:
    from secateur.recovery import finetune_model
    from secateur.report.words import duration

    with progress(args.quiet or args.json) as listen:
        done = finetune_model(
            flags.model_of(args, listen, out=args.out),
            args.out,
            text=flags.source_of(args.text),
            steps=args.steps,
            length=args.length,
            batch=args.batch,
            lr=args.lr,
            adapters=args.lora,
            rank=args.rank,
            seed=args.seed,
            field=args.field,
            format=args.format,
            overwrite=args.overwrite,
            listen=listen,
        )
    if args.json:
        say(as_json({**done.figures, "folder": str(done.folder), "seconds": done.seconds}))
        return 0
    tenth = max(1, len(done.losses) // 10)
    first, last = (sum(part) / tenth for part in (done.losses[:tenth], done.losses[-tenth:]))
    what = f"adapters of rank {args.rank}" if args.lora else "all weights"
    lines = [
        f"trained {what} for {args.steps} steps in {duration(done.seconds)}: training loss {first:.3f} to {last:.3f}",
        f"{100 * done.figures['sparsity']:.2f}% of the weights of linear layers are zero, as before",
        str(done.folder),
    ]
    say("\n".join(lines), args.quiet)
    return 0
