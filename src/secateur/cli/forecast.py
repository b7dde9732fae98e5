"""secateur forecast MODEL: what a cut or rounding would gain on this machine, before any cutting."""

from __future__ import annotations

import argparse
from typing import Any

from secateur.cli import flags
from secateur.cli.parser import Parser, whole
from secateur.cli.progress import progress
from secateur.cli.table import as_json, say, table

HEAD = ("way", "bytes", "of now", "tokens/s", "x now", "prompt, ms", "x now", "±")


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("model", metavar="MODEL", help=flags.MODEL_HELP)
    parser.add_argument("--prompt", type=whole(), default=128, help="tokens of a prompt (default: 128)")
    parser.add_argument("--threads", type=whole(), help="of a matrix product (default: one a core)")
    parser.add_argument(
        "--check", metavar="FOLDER", help="what was made of MODEL: its forecast beside what is measured"
    )
    flags.model_flags(parser)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser.parse(argv)


def run(args: argparse.Namespace) -> int:
    import torch

    from secateur.engine.events import Event
    from secateur.runtime.beside import beside
    from secateur.runtime.forecast import forecast
    from secateur.runtime.loading import load_packed

    if args.threads:
        torch.set_num_threads(args.threads)
    with progress(args.quiet or args.json) as listen:
        told: dict[str, Any] = {
            "prompt": args.prompt,
            "report": lambda done, of, what: listen(Event("forecast", done, of, what)),
        }
        if args.check is not None:
            packed = load_packed(args.check)
            beside_it = beside(flags.model_of(args, listen).model, packed, **told)
            say(as_json(beside_it.as_dict()) if args.json else beside_it.line, args.quiet and not args.json)
            return 0
        found = forecast(flags.model_of(args, listen).model, **told)
    say(as_json(_json(args, found)) if args.json else _shown(found), args.quiet and not args.json)
    return 0


def _shown(found: Any) -> str:
    from secateur.report.words import percent, size, speed

    now = found.rows[0]
    cells = [
        [
            row.name,
            size(row.bytes),
            percent(row.bytes / now.bytes, 0),
            speed(row.rate),
            f"{now.token / row.token:.2f}",
            f"{1e3 * row.prompt:.0f}",
            f"{now.prompt / row.prompt:.2f}",
            percent(row.spread, 0),
        ]
        for row in found.rows
    ]
    lines = [
        table(HEAD, cells),
        "",
        f"forecast for one answer at a time, {found.threads} threads, {found.length} tokens of prompt; memory delivers "
        f"{found.bandwidth / 1e9:.0f} GB/s; not weights: {1e6 * found.other[0]:.0f} µs a token"
        f"{'' if found.packed is None else f' ({1e6 * found.packed:.0f} where all layers are packed)'}; "
        f"{found.seconds:.0f} s of probes",
        "±: by how much the probes of one kernel differed; quality is not forecast",
        "",
        *found.verdicts,
    ]
    return "\n".join(lines + [f"note: {note}" for note in found.notes])


def _json(args: argparse.Namespace, found: Any) -> dict[str, Any]:
    return {
        "model": args.model,
        "threads": found.threads,
        "prompt": found.length,
        "bandwidth": found.bandwidth,
        "other": {"token": found.other[0], "prompt": found.other[1], "packed_token": found.packed},
        "seconds": found.seconds,
        "rows": [
            {
                "way": row.name,
                "plain": row.plain,
                "bytes": row.bytes,
                "tokens_per_second": row.rate,
                "prompt_seconds": row.prompt,
                "spread": row.spread,
            }
            for row in found.rows
        ],
        "verdicts": found.verdicts,
        "notes": found.notes,
    }
