"""secateur compare MODEL METHOD[:key=value,...] METHOD ...: several methods on equal terms."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.cli import flags
from secateur.cli.parser import Parser, words
from secateur.cli.progress import progress
from secateur.cli.sweep import show_results
from secateur.errors import BadInput, NoMatch, nearest

if TYPE_CHECKING:
    from secateur.core.method import OneShot


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("model", metavar="MODEL", help=flags.MODEL_HELP)
    parser.add_argument(
        "methods",
        metavar="METHOD",
        nargs="+",
        help="wanda, or with settings: sparsegpt:damping=0.1,pattern=2:4",
    )
    group = parser.add_argument_group("for all methods")
    group.add_argument("--sparsity", help="fraction to cut: 0.5 or 50%% (default)")
    group.add_argument("--pattern", help="row, column, layer, N:M (N kept) or RxC")
    group.add_argument("--allocate", help="uniform, er, erk, global or owl")
    group.add_argument(
        "--seeds", type=words, default=["0"], metavar="0,1,2", help="of the calibration (default: 0)"
    )
    group.add_argument(
        "--save", action="store_true", help="also write every cut model as a checkpoint folder"
    )
    flags.comparison_flags(parser)
    return parser.parse(argv)


def run(args: argparse.Namespace) -> int:
    from secateur.api import compare

    shared = {name: getattr(args, name) for name in ("sparsity", "pattern", "allocate")}
    shared = {name: value for name, value in shared.items() if value is not None}
    methods = [parse_method(text, shared) for text in args.methods]
    if not all(seed.isdecimal() for seed in args.seeds):
        raise BadInput(f"{','.join(args.seeds)!r} is no list of seeds", where="--seeds", fix="write 0,1,2")
    out = flags.results_folder(args, f"{Path(args.model).name}-compare")
    with progress(args.quiet or args.json) as listen:
        results = compare(
            flags.model_of(args, listen),
            methods,
            seeds=[int(seed) for seed in args.seeds],
            terms=flags.terms_of(args, listen),
            out=out,
            save_models=args.save,
            command=flags.command_of(args),
        )
    show_results(results, out, args)
    return 0


def parse_method(text: str, shared: dict[str, Any]) -> OneShot:
    """'wanda' or 'sparsegpt:damping=0.1,pattern=2:4' to a method; its own settings win over the shared ones.

    Raises:
        NoMatch: no such method or setting.   BadInput: not key=value, or a value of the wrong kind.
    """
    from secateur.registry import find, make

    name, _, rest = text.partition(":")
    cls = find(name)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    own: dict[str, Any] = {}
    for part in words(rest):
        key, equals, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if key not in fields:
            raise NoMatch(f"{name} has no setting {key!r}", where=text, fix=nearest(key, fields))
        if not equals:
            raise BadInput(f"{part!r} is not key=value", where=text)
        own[key] = flags.setting(cls, key, value.strip())
    if "pattern" in own and "sparsity" not in own and ":" in own["pattern"]:
        shared = {key: value for key, value in shared.items() if key != "sparsity"}
    return make(name, **{**shared, **own})
