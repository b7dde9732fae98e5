"""secateur generate MODEL "PROMPT": continue a prompt, shown while it is written."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

from secateur.cli import flags
from secateur.cli.parser import Parser, whole
from secateur.cli.progress import progress
from secateur.cli.running import running, running_flags
from secateur.cli.table import as_json, say


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("model", metavar="MODEL", help=flags.MODEL_HELP)
    parser.add_argument("prompt", metavar="PROMPT", help="the text to go on from")
    parser.add_argument("--tokens", type=whole(), default=40, help="new tokens at most (default: 40)")
    parser.add_argument("--sample", action="store_true", help="draw tokens instead of taking the likeliest")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the draw (default: 0)")
    parser.add_argument("--chat", action="store_true", help="put the prompt as a user's message")
    running_flags(parser)
    parser.add_argument("--json", action="store_true", help="prompt and text as JSON")
    return parser.parse(argv)


def run(args: argparse.Namespace) -> int:
    from secateur.evaluate.generate import continuation
    from secateur.report.words import clean

    with progress(args.quiet or args.json) as listen:
        loaded = running(args, listen)
    text = continuation(
        loaded.model,
        loaded.tokenizer,
        args.prompt,
        tokens=args.tokens,
        seed=args.seed,
        greedy=not args.sample,
        chat=args.chat,
    )
    if args.json:
        say(as_json({"model": args.model, "prompt": args.prompt, "text": "".join(text)}))
        return 0
    begun = False
    try:
        for piece in whole_lines(text):
            before = "" if begun or args.chat else args.prompt
            begun = True
            print(clean(before + piece), end="", flush=True)
    finally:
        if begun:
            print(flush=True)
    return 0


def whole_lines(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces, with a line's end of two characters never between two of them.

    >>> list(whole_lines(["a\\r", "\\nb", "\\r"]))
    ['a', '\\r\\nb', '', '\\r']
    """
    held = ""
    for piece in pieces:
        text = held + piece
        held = "\r" if text.endswith("\r") else ""
        yield text.removesuffix("\r")
    if held:
        yield held
