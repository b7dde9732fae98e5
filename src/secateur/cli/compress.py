"""secateur compress MODEL METHOD: cut a model and write the smaller checkpoint."""

from __future__ import annotations

import argparse
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.cli import flags
from secateur.cli.parser import Parser
from secateur.cli.progress import progress
from secateur.cli.table import as_json, say

if TYPE_CHECKING:
    from torch import nn

    from secateur.api import Result
    from secateur.core.method import OneShot


def arguments(parser: Parser, words: list[str]) -> argparse.Namespace:
    def declare(parser: Parser, cls: type[OneShot] | None) -> None:
        parser.add_argument("model", metavar="MODEL", help=flags.MODEL_HELP)
        parser.add_argument("method", metavar="METHOD", help="see `secateur list`")
        flags.amount_flags(parser)
        if cls is not None:
            flags.method_flags(parser, cls)
        flags.calibration_flags(parser)
        flags.walk_flags(parser)
        flags.model_flags(parser)
        flags.output_flags(parser)
        group = parser.add_argument_group("speed")
        group.add_argument(
            "--measure",
            action="store_true",
            help="forecast the cut model's speed here, measure it packed, and write OUT.html with both",
        )
        group = parser.add_argument_group("streaming")
        group.add_argument(
            "--stream", action="store_true", help="folder to folder, one block in memory at a time"
        )
        group.add_argument(
            "--resume", action="store_true", help="go on after a kill, in the same words (implies --stream)"
        )

    return flags.parse_with_method(parser, declare, words)


def run(args: argparse.Namespace) -> int:
    from secateur.api import compress
    from secateur.engine import workers
    from secateur.engine.memory import one_heap
    from secateur.evaluate.results import check_page
    from secateur.io import hub
    from secateur.registry import find, make

    method = make(args.method, **flags.settings_of(args, find(args.method)))
    out = Path(args.out) if args.out is not None else default_out(args.model, method)
    if args.measure:
        check_page()
        flags.check_file(page_of(out), args.overwrite)
    streaming = args.stream or args.resume
    one_heap()
    with workers.group(args.device), progress(args.quiet or args.json) as listen:
        result = compress(
            flags.model_of(args, listen, named=streaming, out=out),
            method,
            flags.source_of(args.calibration),
            out=out,
            listen=listen,
            undo=False,  # the weights are on disk: nothing is gained by holding them twice
            format=args.format,
            max_shard=args.max_shard,
            overwrite=args.overwrite,
            stream=args.stream,
            resume=args.resume,
            **flags.walk_of(args),
        )
        first = workers.rank() == 0
        found = None
        if first and args.measure:
            assert result.folder is not None
            model = result.model or hub.load_folder(result.folder)
            found = measured(model, listen)
            if not isinstance(found, str):
                page(model, result, method, found, args)
    if first:
        tell(result, args, found)
    return 0


def measured(model: nn.Module, listen: Any) -> Any:
    """The cut model's speed, forecast and measured (runtime/beside.py); or in words why there is none."""
    from secateur.engine.events import Event
    from secateur.errors import BadInput, Unsupported
    from secateur.runtime.beside import beside

    try:
        return beside(model.eval(), report=lambda done, of, what: listen(Event("measure", done, of, what)))
    except (Unsupported, BadInput) as error:  # the cut is done, and stays
        return str(error)


def page(model: nn.Module, result: Result, method: OneShot, found: Any, args: argparse.Namespace) -> None:
    """FOLDER.html: what was cut, what it costs, and its speed forecast and measured."""
    from secateur.evaluate.bench import Bench, label
    from secateur.evaluate.results import new_results
    from secateur.report.page import write_page

    assert result.folder is not None
    name, dense = label(method), Path(args.model).name
    row = Bench(model).measure(name, result.plan.method, result.plan, folder=result.folder)
    row |= {"seconds": result.seconds, "folder": str(result.folder), "packed": found.as_dict()}
    row["peak_mb"] = None  # the memory of the cut was not watched
    results = new_results(
        [row],
        title=f"{dense}: {name}",
        command=flags.command_of(args),
        model=dense,
        calibration=str((result.plan.made or {}).get("calibration", "")),
    )
    write_page(results, page_of(result.folder))


def page_of(folder: Path) -> Path:
    """Where the page of a measured cut lies."""
    return folder.with_name(folder.name + ".html")


def tell(result: Result, args: argparse.Namespace, found: Any = None) -> None:
    """What was cut, in a few lines or as JSON; `found` is what `measured` gave."""
    from secateur.evaluate.size import folder_bytes
    from secateur.report.words import duration, size

    plan, folder = result.plan, result.folder
    held = folder_bytes(folder) if folder else 0
    if args.json:
        told = {"speed": found if isinstance(found, str) else found.as_dict()} if found else {}
        say(as_json({**summary(result, held), **told}))
        return
    units = sum(prod(kept.shape) for kept in plan.sites.values())
    changed = result.model is not None or folder is not None  # a plan alone has changed nothing
    did, took = ("cut", f" in {duration(result.seconds)}") if changed else ("would cut", "")
    lines = [
        f"{plan.method} {did} {100 * plan.sparsity:.2f}% of {units:,} weights at {len(plan.sites)} sites{took}",
        *(f"note: {note}" for note in plan.notes),
    ]
    if folder:
        lines.append(f"{folder}  {size(held)}")
    if found:
        lines.append(f"note: not measured: {found}" if isinstance(found, str) else found.line)
        if folder and not isinstance(found, str):
            lines.append(str(page_of(folder)))
    say("\n".join(lines), args.quiet)


def summary(result: Result, held: int) -> dict[str, Any]:
    """The JSON of `--json`."""
    plan = result.plan
    return {
        "method": plan.method,
        "config": plan.config,
        "sparsity": plan.sparsity,
        "sites": len(plan.sites),
        "digest": plan.digest(),
        "score_digest": plan.score_digest,
        "seconds": result.seconds,
        "folder": str(result.folder) if result.folder else None,
        "bytes": held,
        "made": plan.made,
        "notes": plan.notes,
    }


def default_out(model: str, method: OneShot, suffix: str = "") -> Path:
    """./MODEL-METHOD-SPARSITY, as smollm2-135m-wanda-50 or smollm2-135m-sparsegpt-2-4."""
    from secateur.evaluate.bench import label

    words = label(method).replace("%", "").replace(":", "-").replace(" ", "-")
    return Path(f"{Path(model).name.removesuffix('.gguf') or 'model'}-{words}{suffix}")
