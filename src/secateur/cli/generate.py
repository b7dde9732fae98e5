"""secateur generate MODEL "PROMPT": continue a prompt."""

from __future__ import annotations

import argparse

from secateur.cli import flags
from secateur.cli.parser import Parser, whole
from secateur.cli.progress import progress
from secateur.cli.table import as_json, say


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("model", metavar="MODEL", help=flags.MODEL_HELP)
    parser.add_argument("prompt", metavar="PROMPT", help="the text to go on from")
    parser.add_argument("--tokens", type=whole(), default=40, help="new tokens at most (default: 40)")
    parser.add_argument("--sample", action="store_true", help="draw tokens instead of taking the likeliest")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the draw (default: 0)")
    parser.add_argument("--chat", action="store_true", help="put the prompt as a user's message")
    flags.model_flags(parser)
    parser.add_argument("--json", action="store_true", help="prompt and text as JSON")
    return parser.parse(argv)


def run(args: argparse.Namespace) -> int:
    from secateur.evaluate.generate import generate
    from secateur.report.words import clean

    with progress(args.quiet or args.json) as listen:
        loaded = flags.model_of(args, listen)
        text = generate(
            loaded.model,
            loaded.tokenizer,
            args.prompt,
            tokens=args.tokens,
            seed=args.seed,
            greedy=not args.sample,
            chat=args.chat,
        )
    if args.json:
        say(as_json({"model": args.model, "prompt": args.prompt, "text": text}))
    else:
        say(clean(text if args.chat else args.prompt + text))
    return 0
