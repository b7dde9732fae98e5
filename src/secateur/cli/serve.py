"""secateur serve MODEL: answer OpenAI clients over HTTP."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from secateur.cli import flags
from secateur.cli.parser import Parser, whole
from secateur.cli.progress import progress
from secateur.cli.running import running, running_flags
from secateur.cli.table import say
from secateur.errors import BadInput, Unsupported


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("model", metavar="MODEL", help=flags.MODEL_HELP)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=whole(0), default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument("--name", help="what clients call the model (default: MODEL, without its folders)")
    parser.add_argument("--queue", type=whole(0), default=32, help="requests that may wait (default: 32)")
    parser.add_argument(
        "--max-tokens", type=whole(), help="of an answer (default: what the model has room for)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the step: minutes once, later seconds"
    )
    parser.add_argument("--log", action="store_true", help="a line for each request, on stderr")
    running_flags(parser)
    return parser.parse(argv)


def run(args: argparse.Namespace) -> int:
    from secateur.engine.memory import one_heap
    from secateur.runtime.decode import Decoder
    from secateur.runtime.serve import Limits, Server
    from secateur.runtime.web import bound

    if args.port > 65535:
        raise BadInput(f"{args.port} is no port", where="--port", fix="give 0 to 65535")
    one_heap()  # threads come and go here, and what each of them keeps would add up
    with bound(args.host, args.port) as address:  # a port that is taken is told before a model is loaded
        with progress(args.quiet) as listen:
            loaded = running(args, listen)
        if loaded.tokenizer is None:
            raise Unsupported("has no tokenizer, so no text can be read", where=args.model)
        decoder = Decoder(loaded.model, compile=args.compile)
        for notice in decoder.notices:
            print(f"note: {notice}", file=sys.stderr, flush=True)
        path = Path(args.model)
        server = Server(
            decoder,
            loaded.tokenizer,
            args.name or (path.resolve().name if path.exists() else args.model),
            Limits(queue=args.queue, max_tokens=args.max_tokens),
            **({"log": _logged} if args.log else {}),
        )
        host, port = address.getsockname()[:2]
        where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        stopped_by = server.run(
            address, lambda: say(f"serving {server.name} at {where} (Ctrl-C stops)", args.quiet)
        )
    return 130 if stopped_by == 2 else 0


def _logged(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)
