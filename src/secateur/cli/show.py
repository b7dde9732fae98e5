"""secateur show FOLDER: what a checkpoint holds, measured from its weights."""

from __future__ import annotations

import argparse
from math import prod
from typing import Any

from secateur.cli.parser import Parser
from secateur.cli.table import as_json, say, table


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("folder", metavar="FOLDER", help="a checkpoint folder, or one .safetensors file")
    parser.add_argument("--all", action="store_true", help="every tensor, not only the ones that were cut")
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    return parser.parse(argv)


def run(args: argparse.Namespace) -> int:
    from secateur.io.checkpoint import describe

    found = describe(args.folder)
    say(as_json(found) if args.json else _shown(found, args.all))
    return 0


def _shown(found: dict[str, Any], everything: bool) -> str:
    from secateur.report.words import percent, size

    head = ["tensor", "shape", "dtype", "zeros", "pattern", "stored", "bytes"]
    rows = [
        [
            tensor["name"],
            "x".join(map(str, tensor["shape"])),
            tensor["dtype"],
            percent(1 - tensor["density"], 2),
            tensor["pattern"],
            tensor["stored"],
            size(tensor["bytes"]),
        ]
        for tensor in found["tensors"]
        if everything
        or (len(tensor["shape"]) >= 2 and tensor["zeros"] * 1000 >= max(1, prod(tensor["shape"])))
    ]
    cut, model = found["cut"], found["model"]
    kind = ", ".join(model["architectures"]) or model["type"] or "weights"
    patterns = ", ".join(f"{name} at {count}" for name, count in cut["patterns"].items())
    lines = [
        f"{kind}: {found['parameters']:,} parameters, {percent(1 - found['density'], 2)} of them zero",
        f"cut: {cut['tensors']} tensors, {percent(1 - cut['density'], 2)} zero"
        + (f" ({patterns})" if patterns else ""),
        f"on disk: {size(found['bytes'])} in {len(found['files'])} files, {found['layout']}",
        f"manifest: {'yes' if found['manifest'] else 'no'}",
        *(f"note: {warning}" for warning in found["warnings"]),
    ]
    return "\n".join(([table(head, rows, left=(0, 1, 2, 4, 5)), ""] if rows else []) + lines)
