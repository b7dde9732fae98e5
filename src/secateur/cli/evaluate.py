"""secateur evaluate MODEL: quality, cost and, when asked for, speed of a model as it stands."""

from __future__ import annotations

import argparse
from typing import Any

from secateur.cli import flags
from secateur.cli.parser import Parser, whole, words
from secateur.cli.progress import progress
from secateur.cli.table import as_json, say
from secateur.errors import BadInput


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("model", metavar="MODEL", help=flags.MODEL_HELP)
    flags.evaluation_flags(parser, length=True)
    group = parser.add_argument_group("more measures")
    group.add_argument(
        "--choice", nargs="+", default=[], metavar="FILE", help="choice questions, JSONL (PIQA's too)"
    )
    group.add_argument("--limit", type=whole(), help="only the first N questions of each file or task")
    group.add_argument(
        "--harness", type=words, default=[], metavar="TASKS", help="lm-evaluation-harness: hellaswag,..."
    )
    group.add_argument("--include", metavar="FOLDER", help="a folder of the harness's task files")
    group.add_argument("--speed", action="store_true", help="tokens read and written a second")
    group.add_argument("--no-text", action="store_true", help="leave perplexity out")
    group = parser.add_argument_group("a classifier on corrupted images")
    group.add_argument(
        "--corruptions", metavar="TABLE", help="cifar-c or imagenet-c: 15 corruptions at 5 severities"
    )
    group.add_argument(
        "--images", metavar="SOURCE", help="digits, mnist, a folder or an .npz; its test split is used"
    )
    group.add_argument(
        "--beside", nargs="+", default=[], metavar="MODEL", help="measure these classifiers too"
    )
    group.add_argument(
        "--names", type=words, default=[], help="only these: fog,snow,... (the 4 extra ones too)"
    )
    group.add_argument("--severities", type=words, default=[], help="only these: 1,3,5")
    group.add_argument("--seed", type=whole(0), default=0, help="of the corruptions (default: 0)")
    group.add_argument(
        "--cache", metavar="FOLDER", help="keep or reuse the corrupted images here; a CIFAR-C folder"
    )
    group.add_argument("--frost-images", metavar="FOLDER", help="photos of frost, instead of drawn ones")
    flags.model_flags(parser)
    parser.add_argument(
        "--out",
        metavar="FILE.json",
        help="write results.json, which `secateur report` reads; FILE.html with --corruptions",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file that --out names")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser.parse(argv)


def run(args: argparse.Namespace) -> int:
    from secateur.api import evaluate
    from secateur.io.files import write_atomic

    if args.out is not None:
        flags.check_file(args.out, args.overwrite)
    if args.corruptions is not None:
        return _corruptions(args)
    for path in args.choice:
        flags.existing(path)
    if args.no_text and (args.text or args.tokens):
        raise BadInput("text was given, and none wanted", where="--no-text", fix="leave one of them out")
    text = None if args.no_text else flags.text_of(args)
    with progress(args.quiet or args.json) as listen:
        row = evaluate(
            flags.model_of(args, listen),
            text,
            length=args.length,
            windows=args.windows,
            field=args.field,
            choice=args.choice,
            limit=args.limit,
            harness=args.harness,
            include=args.include,
            speed=args.speed,
            listen=listen,
        )
    if args.out is not None:
        from secateur.evaluate.results import new_results
        from secateur.report.table import to_json

        results = new_results(
            [row],
            title=f"{row['name']}, measured",
            command=flags.command_of(args),
            model=row["name"],
            evaluation="; ".join(row["notes"]),
        )
        write_atomic(args.out, to_json(results))
    say(as_json(row) if args.json else _shown(row), args.quiet and not args.json)
    return 0


def _corruptions(args: argparse.Namespace) -> int:
    """Classifiers on corrupted images: a table, and with --out FILE.html the page beside .json, .csv and .md."""
    from secateur.cli.table import table
    from secateur.report.radar import corruption_rows, source_words
    from secateur.robustness.job import evaluate_models, outputs, write_results
    from secateur.robustness.severities import NAMES, SEVERITIES

    if args.images is None:
        raise BadInput("no images", where="--images", fix="name a set: digits, mnist, a folder or an .npz")
    for path in outputs(args.out) if args.out is not None else ():
        flags.check_file(path, args.overwrite)
    if not all(word.isdigit() for word in args.severities):
        raise BadInput(f"{','.join(args.severities)!r} are no severities", where="--severities", fix="1,3,5")
    with progress(args.quiet or args.json) as listen:
        results = evaluate_models(
            [args.model, *args.beside],
            args.images,
            table=args.corruptions,
            names=args.names or NAMES,
            severities=[int(word) for word in args.severities] or SEVERITIES,
            limit=args.limit,
            seed=args.seed,
            cache=args.cache,
            frost_images=args.frost_images,
            listen=listen,
        )
    written = write_results(results, args.out, flags.command_of(args)) if args.out is not None else []
    if args.json:
        say(as_json([{"model": name, **result} for name, result in results]))
        return 0
    say(table(*corruption_rows(results)), args.quiet)
    say("\n".join([source_words(results), *map(str, written)]), args.quiet)
    return 0


def _shown(row: dict[str, Any]) -> str:
    from secateur.report import words as how

    lines = {
        name: how.metric(name.split()[-1], value)
        for name, value in row["metrics"].items()
        if name != "tokens"
    }
    lines["sparsity"] = f"{how.percent(row['sparsity'])} of the weights that may be cut"
    lines["model density"] = how.percent(row["model_density"])
    lines["on disk"] = how.size(row["bytes"])
    lines["FLOPs per token"] = how.quantity(row["flops"])
    lines["peak memory"] = how.megabytes(row["peak_mb"])
    if row["tokens_per_second"] is not None:
        lines["tokens read a second"] = how.speed(row["prefill_per_second"])
        lines["tokens written a second"] = how.speed(row["tokens_per_second"])
    width = max(map(len, lines)) + 2
    return "\n".join([*(f"{name:<{width}}{value}" for name, value in lines.items()), *row["notes"]])
