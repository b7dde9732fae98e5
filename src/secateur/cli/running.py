"""What `generate` and `serve` share: how many threads, and the ways a model is run: as it lies, dense, or raced."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from secateur.cli import flags
from secateur.cli.accelerate import accelerated, acceleration_flags
from secateur.cli.parser import Parser, whole


def running_flags(parser: Parser) -> None:
    """How fast it runs, and where the model is loaded."""
    group = parser.add_argument_group("speed")
    group.add_argument("--threads", type=whole(), help="of a matrix product (default: one a core)")
    group.add_argument(
        "--accelerate",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="run each layer its fastest way (default: with --values); without either a sparse folder runs as it"
        " lies, and --no-accelerate expands it",
    )
    acceleration_flags(parser)
    flags.model_flags(parser)


def running(args: argparse.Namespace, listen: Any) -> Any:
    """The model of the command line, loaded: as it lies, or with its layers packed where that is wanted."""
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    if args.accelerate is None and args.values == "same":
        loaded = as_it_lies(args, listen)
        return flags.model_of(args, listen) if loaded is None else loaded
    loaded = flags.model_of(args, listen)
    if args.accelerate is not False:
        for note in accelerated(args, loaded.model, listen).notes:
            _tell(note)
    return loaded


def as_it_lies(args: argparse.Namespace, listen: Any) -> Any:
    """The model of a sparse folder on the memory of its files; None where there is none, or it cannot run so."""
    import torch

    from secateur.engine.events import Event
    from secateur.errors import Unsupported
    from secateur.io import hub
    from secateur.runtime import library
    from secateur.runtime.loading import load_packed

    folder = Path(args.model)
    dtypes = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    plain = args.device == "cpu" and args.dtype in dtypes and not args.trust_remote_code
    if not plain or not (folder / "config.json").is_file() or not is_sparse(folder):
        return None
    if library.load() is None:
        return _tell(f"{folder} is expanded: there are no compiled kernels here")
    listen(Event("load", 0, 1, args.model))
    try:
        model = load_packed(folder, dtype=dtypes[args.dtype])
    except Unsupported as error:
        return _tell(f"{folder} is expanded: {error.what}")
    loaded = hub.Loaded(model, hub.load_tokenizer(folder), args.model, folder)
    listen(Event("load", 1, 1, args.model))
    return loaded


def is_sparse(folder: Path | None) -> bool:
    """Whether weights that lie in this folder are held in parts: bits and kept values, or packed."""
    from secateur.io.tensors import TensorFolder

    if folder is None:
        return False
    with TensorFolder(folder) as tensors:
        return any(shard.sparse for shard in tensors.shards.values())


def _tell(note: str) -> None:
    print(f"note: {note}", file=sys.stderr, flush=True)
