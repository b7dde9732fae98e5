"""secateur demo: a real language model, cut in half before your eyes."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

from secateur.cli.parser import Parser
from secateur.cli.progress import progress
from secateur.cli.table import as_json, say, table


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("--quick", action="store_true", help="fewer and shorter windows: under 90 seconds")
    parser.add_argument(
        "--out", default="secateur-demo", metavar="FOLDER", help="default: secateur-demo here"
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser.parse(argv)


def run(args: argparse.Namespace) -> int:
    from secateur.demo import demo

    with progress(args.quiet or args.json) as listen:
        results = demo(args.out, quick=args.quick, listen=listen)
    if args.json:
        say(as_json(results))
    else:
        say(shown(results, Path(args.out)), args.quiet)
    return 0


def shown(results: dict[str, Any], out: Path) -> str:
    """The table, the prompt as each model continues it, and where everything lies."""
    from secateur.evaluate.results import PAGE
    from secateur.report import words

    head = ["", "density", "perplexity", "on disk", "sparse format", "time to cut", "peak memory"]
    body = []
    for row in results["rows"]:
        dense = row["method"] == "dense"
        cells = [
            words.percent(row["density"]),
            words.plain(row["metrics"]["perplexity"]),
            words.size(row["bytes"] if dense else row["plain_bytes"]),
            "-" if dense else words.size(row["bytes"]),
            "-" if dense else words.duration(row["seconds"]),
            words.megabytes(row["peak_mb"]),
        ]
        body.append([row["name"], *cells])
    lines = [table(head, body), f"perplexity on {results['evaluation']}", ""]
    for row in results["rows"]:
        text = " ".join(words.clean(row["sample"]).split())
        lines.append(textwrap.fill(f"{row['name']:<15}{text}", 110, subsequent_indent=" " * 15))
    if results["reused"]:
        lines += [
            "",
            f"reused from an earlier run, after checking every byte: {', '.join(results['reused'])}",
        ]
    lines += [
        "",
        *(f"{row['folder']}, and {row['folder']}-sparse" for row in results["rows"] if row["folder"]),
    ]
    return "\n".join([*lines, str(out / PAGE)])
