"""secateur plan MODEL METHOD: find out what would be cut, and write that as a file that `apply` takes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.cli import flags
from secateur.cli.compress import default_out, summary, tell
from secateur.cli.parser import Parser
from secateur.cli.progress import progress
from secateur.cli.table import as_json, say

if TYPE_CHECKING:
    from secateur.core.method import OneShot


def arguments(parser: Parser, words: list[str]) -> argparse.Namespace:
    def declare(parser: Parser, cls: type[OneShot] | None) -> None:
        parser.add_argument("model", metavar="MODEL", help=flags.MODEL_HELP)
        parser.add_argument("method", metavar="METHOD", help="see `secateur list`")
        flags.amount_flags(parser)
        if cls is not None:
            flags.method_flags(parser, cls)
        flags.calibration_flags(parser)
        flags.walk_flags(parser)
        flags.model_flags(parser)
        group = parser.add_argument_group("output")
        group.add_argument("--out", metavar="FILE", help="default: MODEL-METHOD-SPARSITY.plan here")
        group.add_argument("--overwrite", action="store_true", help="replace a plan that lies there")
        group.add_argument("--json", action="store_true", help="print what would be cut as JSON")

    return flags.parse_with_method(parser, declare, words)


def run(args: argparse.Namespace) -> int:
    from secateur.api import Result, plan
    from secateur.engine import workers
    from secateur.io.plans import save_plan
    from secateur.registry import find, make

    method = make(args.method, **flags.settings_of(args, find(args.method)))
    out = Path(args.out) if args.out is not None else default_out(args.model, method, ".plan")
    flags.check_file(out, args.overwrite)
    with workers.group(args.device), progress(args.quiet or args.json) as listen:
        model = flags.model_of(args, listen)
        source = flags.source_of(args.calibration)
        made = plan(model, method, source, listen=listen, **flags.walk_of(args))
        first = workers.rank() == 0
    if first:
        save_plan(made, out)
        if args.json:
            say(as_json({**summary(Result(made), out.stat().st_size), "file": str(out)}))
        else:
            tell(Result(made), args)
            say(str(out), args.quiet)
    return 0
