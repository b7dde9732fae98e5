"""secateur report RESULTS.json: the page, and the tables, of results that were measured before."""

from __future__ import annotations

import argparse
from pathlib import Path

from secateur.cli import flags
from secateur.cli.parser import Parser
from secateur.cli.table import say, table


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument(
        "results", metavar="RESULTS.json", help="what compare, sweep, demo or evaluate --out wrote"
    )
    parser.add_argument(
        "--out", metavar="FILE.html", help="the page (default: report.html beside the results)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the page if it is there")
    return parser.parse(argv)


def run(args: argparse.Namespace) -> int:
    from secateur.evaluate.results import PAGE, lines
    from secateur.report.page import write_page
    from secateur.report.table import load_results

    source = flags.existing(args.results)
    results = load_results(source)
    out = Path(args.out) if args.out is not None else source.parent / PAGE
    flags.check_file(out, args.overwrite)
    write_page(results, out)
    say(table(*lines(results)) + f"\n\n{out}", args.quiet)
    return 0
