"""secateur stability RECIPE.toml --at STEPS: from which step on a training ends in one place (late rewinding)."""

from __future__ import annotations

import argparse
import re
from typing import Any

from secateur.cli.parser import Parser, whole, words
from secateur.cli.progress import progress
from secateur.cli.table import as_json, say, table
from secateur.errors import BadInput


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument(
        "recipe",
        metavar="RECIPE.toml",
        help="of `secateur train`; its [method] gives the length of one training, and nothing is cut",
    )
    parser.add_argument(
        "--at",
        type=words,
        default=["0", "2%", "10%"],
        metavar="STEPS",
        help="to branch from, as 0,100,500 or in per cent of one training (default: 0,2%%,10%%)",
    )
    parser.add_argument("--pairs", type=whole(), default=1, help="of copies a step (default: 1)")
    parser.add_argument(
        "--points", type=whole(), default=1, help="on the line between two copies (default: 1, the middle)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser.parse(argv)


def run(args: argparse.Namespace) -> int:
    from secateur.evaluate.stability import STABLE
    from secateur.training import rewinding

    with progress(args.quiet or args.json) as listen:
        rows = rewinding(
            args.recipe,
            lambda total: [_step(text, total) for text in args.at],
            pairs=args.pairs,
            points=args.points,
            listen=listen,
        )
    say(as_json(rows) if args.json else _shown(rows, STABLE), args.quiet and not args.json)
    return 0


def _step(text: str, total: int) -> int:
    """A step, or a share of the training."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)%|(\d+)", text.strip())
    if match is None:
        raise BadInput(f"{text!r} is no step", where="--at", fix="as 0,100,500 or 0,2%,10%")
    return int(match[2]) if match[2] else round(float(match[1]) * total / 100)


def _shown(rows: list[dict[str, Any]], stable: float) -> str:
    from secateur.report.words import percent

    cells = [
        [str(row["step"]), *(percent(row[k]) for k in ("error", "between")), f"{100 * row['barrier']:+.1f}%"]
        for row in rows
    ]
    first = next((row["step"] for row in rows if row["stable"]), None)
    last = (
        f"no step below a barrier of {stable:.0%}: look later"
        if first is None
        else f"first step below a barrier of {stable:.0%}: {first} (lottery_ticket: rewind_step = {first})"
    )
    return f"{table(('step', 'error', 'between', 'barrier'), cells)}\n{last}"
