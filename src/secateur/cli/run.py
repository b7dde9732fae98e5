"""secateur run RECIPE.toml: a whole job written down."""

from __future__ import annotations

import argparse

from secateur.cli import flags
from secateur.cli.compress import tell
from secateur.cli.parser import Parser
from secateur.cli.progress import progress
from secateur.cli.table import as_json, say, table


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument(
        "recipe", metavar="RECIPE.toml", help="tables: model, method, calibration, walk, output, evaluate"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what the recipe's output names")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")
    return parser.parse(argv)


def run(args: argparse.Namespace) -> int:
    from secateur.engine import workers
    from secateur.evaluate.results import lines
    from secateur.recipe import load_recipe, run_recipe

    recipe = load_recipe(flags.existing(args.recipe))
    with workers.group(recipe.model["device"]), progress(args.quiet or args.json) as listen:
        result, results = run_recipe(
            recipe, overwrite=args.overwrite, listen=listen, command=flags.command_of(args)
        )
        first = workers.rank() == 0
    if not first:
        return 0
    if results is not None and args.json:
        say(as_json(results))
        return 0
    tell(result, args)
    if results is not None:
        say(table(*lines(results)), args.quiet)
    return 0
