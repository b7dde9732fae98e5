"""secateur verify FOLDER: every byte of a checkpoint against its manifest."""

from __future__ import annotations

import argparse

from secateur.cli.parser import Parser
from secateur.cli.table import as_json, say


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("folder", metavar="FOLDER", help="a checkpoint folder")
    parser.add_argument("--json", action="store_true", help="the findings as JSON")
    return parser.parse(argv)


def run(args: argparse.Namespace) -> int:
    from secateur.io.checkpoint import verify
    from secateur.report.words import duration, size

    found = verify(args.folder)
    if args.json:
        say(as_json(found))
        return 0
    what = f"{found['tensors']} tensors in {found['files']} files, {size(found['bytes'])}"
    proof = "every byte is what the manifest says" if found["manifest"] else "read without error"
    lines = [f"{found['folder']}: {what}: {proof} ({duration(found['seconds'])})"]
    say("\n".join([*lines, *(f"note: {warning}" for warning in found["warnings"])]), args.quiet)
    return 0
