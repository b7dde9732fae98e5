"""secateur accelerate MODEL: what each layer gains from packed weights on this machine, measured."""

from __future__ import annotations

import argparse
from typing import Any

from secateur.cli import flags
from secateur.cli.parser import Parser, number, whole
from secateur.cli.progress import progress
from secateur.cli.table import as_json, say


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("model", metavar="MODEL", help=flags.MODEL_HELP)
    acceleration_flags(parser)
    group = parser.add_argument_group("what is measured")
    group.add_argument("--batch", type=whole(), default=1, help="sequences written at once (default: 1)")
    group.add_argument("--prompt", type=whole(), default=128, help="tokens of a prompt (default: 128)")
    group.add_argument(
        "--tokens", type=whole(0), default=32, help="written before and after; 0: none (default: 32)"
    )
    group.add_argument("--threads", type=whole(), help="of a matrix product (default: one a core)")
    flags.model_flags(parser)
    parser.add_argument(
        "--explain", action="store_true", help="every way that was measured, not only the chosen"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser.parse(argv)


def acceleration_flags(parser: Parser) -> None:
    """Which ways may be taken; for `generate` and `serve` too."""
    group = parser.add_argument_group("ways")
    group.add_argument(
        "--values",
        default="same",
        help="same (default), or rounded to bfloat16, int8 or int4 where that is faster",
    )
    group.add_argument("--group", type=whole(0), help="columns that share a scale: 32, 64, 128; 0: a row")
    group.add_argument("--tolerance", type=number, help="relative error of a layer's product, at most")
    group.add_argument(
        "--aim",
        default="speed",
        help="speed (default): never slower than dense, if need be with dense weights beside; memory: one form a layer",
    )
    group.add_argument("--again", action="store_true", help="measure again what was measured here before")


def accelerated(args: argparse.Namespace, model: Any, listen: Any, **how: Any) -> Any:
    """`accelerate` with the flags above; progress goes to `listen`."""
    from secateur.engine.events import Event
    from secateur.runtime.accelerate import accelerate

    return accelerate(
        model,
        values=args.values,
        group=args.group,
        tolerance=args.tolerance,
        aim=args.aim,
        again=args.again,
        report=lambda stage, done, of, what: listen(Event(stage, done, of, what)),
        **how,
    )


def run(args: argparse.Namespace) -> int:
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    with progress(args.quiet or args.json) as listen:
        loaded = flags.model_of(args, listen)
        before, why = _pace(loaded.model, args)
        done = accelerated(args, loaded.model, listen, batch=args.batch, prompt=args.prompt)
        after = _pace(loaded.model, args)[0] if before else None
    if args.json:
        say(as_json(_json(args, done, before, after)))
        return 0
    say(done.explain(full=args.explain), args.quiet)
    if before and after:
        say(_shown(before, after), args.quiet)
    elif why:
        say(f"note: not written with: {why}", args.quiet)
    return 0


def _pace(model: Any, args: argparse.Namespace) -> tuple[Any, str]:
    """How fast it writes, or why that was not measured."""
    from secateur.errors import Unsupported
    from secateur.runtime.pace import pace

    if not args.tokens:
        return None, ""
    try:
        return pace(model, prompt=args.prompt, count=args.tokens), ""
    except Unsupported as error:
        return None, str(error)


def _shown(before: Any, after: Any) -> str:
    return (
        f"measured, {after.way} step: {before.rate:.1f} -> {after.rate:.1f} tokens a second "
        f"({after.rate / before.rate:.2f}x, spread {max(before.spread, after.spread):.0%}); "
        f"prompt of {after.length}: {1e3 * before.prompt:.0f} -> {1e3 * after.prompt:.0f} ms"
    )


def _json(args: argparse.Namespace, done: Any, before: Any, after: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "model": args.model,
        "threads": done.threads,
        "bytes_before": done.before,
        "bytes_after": done.after,
        "products": {"token": done.share[0], "prompt": done.share[1]},
        "measured": {"before": asdict(before), "after": asdict(after)} if before and after else None,
        "groups": done.rows(),
        "notes": done.notes,
    }
