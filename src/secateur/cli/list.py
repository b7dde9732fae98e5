"""secateur list: the registered methods."""

from __future__ import annotations

import argparse

from secateur.cli.parser import Parser
from secateur.cli.table import as_json, say, table


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("--unit", help="only methods that cut this: weight, channel, layer, token, ...")
    parser.add_argument("--when", help="only methods that work before, during or after training")
    parser.add_argument("--needs", help="only methods that need this: nothing, InputNorms, InputHessian, ...")
    parser.add_argument(
        "--for", dest="purpose", help="only methods made for inference, training or robustness"
    )
    parser.add_argument("--json", action="store_true", help="everything that is known of each, as JSON")
    return parser.parse(argv)


def run(args: argparse.Namespace) -> int:
    from secateur.api import list_methods

    rows = list_methods(args.unit, args.when, args.needs, args.purpose)
    if args.json:
        say(as_json(rows))
        return 0
    heads = ["name", "unit", "when", "needs", "paper"]
    say(table(heads, [[row[head] for head in heads] for row in rows], left=range(5)))
    say(
        "\nsecateur compress MODEL NAME --help: what a method can be told; when it is not after: secateur train"
    )
    return 0
