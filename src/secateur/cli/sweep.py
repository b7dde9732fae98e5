"""secateur sweep MODEL METHOD: quality at every sparsity of a grid, and where it breaks down."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.cli import flags
from secateur.cli.parser import Parser, words
from secateur.cli.progress import progress
from secateur.cli.table import as_json, say, table

if TYPE_CHECKING:
    from secateur.core.method import OneShot


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    def declare(parser: Parser, cls: type[OneShot] | None) -> None:
        parser.add_argument("model", metavar="MODEL", help=flags.MODEL_HELP)
        parser.add_argument("method", metavar="METHOD", help="see `secateur list`")
        group = parser.add_argument_group("the points")
        group.add_argument("--grid", help="start:stop:step or a list, as 0.1,0.5,70%% (default: 0.1:0.9:0.1)")
        group.add_argument("--patterns", type=words, default=[], help="instead: patterns, as 3:4,2:4,1:4")
        if cls is not None:
            flags.method_flags(parser, cls)
        flags.comparison_flags(parser)

    return flags.parse_with_method(parser, declare, argv)


def run(args: argparse.Namespace) -> int:
    from secateur.api import sweep
    from secateur.errors import BadInput
    from secateur.evaluate.sweep import GRID, sweep_points
    from secateur.registry import find, make

    if args.grid is not None and args.patterns:
        raise BadInput("a grid and patterns", where="sweep", fix="give one of the two")
    method = make(args.method, **flags.settings_of(args, find(args.method)))
    grid = args.grid if args.grid is not None else GRID
    sweep_points(method, grid, args.patterns)
    out = flags.results_folder(args, f"{Path(args.model).name}-{args.method}-sweep")
    with progress(args.quiet or args.json) as listen:
        results = sweep(
            flags.model_of(args, listen),
            method,
            grid,
            patterns=args.patterns,
            seed=args.seed,
            terms=flags.terms_of(args, listen),
            out=out,
            command=flags.command_of(args),
        )
    show_results(results, out, args)
    return 0


def show_results(results: dict[str, Any], out: Path, args: argparse.Namespace) -> None:
    """The table of results, the knees, and where the page lies."""
    from secateur.evaluate.results import PAGE, lines

    if args.json:
        say(as_json(results))
        return
    text = [table(*lines(results))]
    for method, rules in (results.get("knee") or {}).items():
        found = ", ".join(
            f"{rule} {100 * at:.4g}%" if at is not None else f"{rule} none" for rule, at in rules.items()
        )
        text.append(f"knee of {method}, by rule: {found}")
    text.append(f"\n{out / PAGE}")
    say("\n".join(text), args.quiet)
