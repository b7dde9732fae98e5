"""secateur apply PLAN MODEL: cut a model as a plan file says, and write it."""

from __future__ import annotations

import argparse
from pathlib import Path

from secateur.cli import flags
from secateur.cli.compress import tell
from secateur.cli.parser import Parser
from secateur.cli.progress import progress


def arguments(parser: Parser, words: list[str]) -> argparse.Namespace:
    parser.add_argument("plan", metavar="PLAN", help="a file that `secateur plan` wrote")
    parser.add_argument("model", metavar="MODEL", help=flags.MODEL_HELP)
    parser.add_argument(
        "--masks-only",
        action="store_true",
        help="take the mask of a plan whose method also updates the weights that stay (and leave those out)",
    )
    flags.model_flags(parser)
    flags.output_flags(parser)
    return parser.parse(words)


def run(args: argparse.Namespace) -> int:
    from secateur.api import apply
    from secateur.io.plans import load_plan

    plan = load_plan(flags.existing(args.plan))
    model = Path(args.model).name.removesuffix(".gguf") or "model"
    out = Path(args.out) if args.out is not None else Path(f"{model}-{Path(args.plan).stem}-applied")
    with progress(args.quiet or args.json) as listen:
        result = apply(
            plan,
            flags.model_of(args, listen, out=out),
            out=out,
            masks_only=args.masks_only,
            format=args.format,
            max_shard=args.max_shard,
            overwrite=args.overwrite,
        )
    tell(result, args)
    return 0
