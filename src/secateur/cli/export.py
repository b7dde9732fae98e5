"""secateur export MODEL --to FORMAT --out PATH: a model as other runtimes read it, or packed for ours."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.cli import flags
from secateur.cli.parser import Parser
from secateur.cli.progress import progress
from secateur.cli.table import as_json, say
from secateur.errors import BadInput, one_of

if TYPE_CHECKING:
    from secateur.io.packing import Packing
    from secateur.io.tensors import TensorFolder

FORMATS = ("safetensors", "sparse", "gguf", "onnx")


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument(
        "model", metavar="MODEL", help=f"{flags.MODEL_HELP}; dense or sparse, or a classifier"
    )
    parser.add_argument("--to", metavar="FORMAT", required=True, help=f"{', '.join(FORMATS)}")
    parser.add_argument(
        "--out", metavar="PATH", required=True, help="the new folder; for gguf the file, as model.gguf"
    )
    parser.add_argument(
        "--type", metavar="TYPE", help="gguf: f32, f16 (default), bf16, q8_0, q5_0 or q4_0 for the matrices"
    )
    parser.add_argument(
        "--kind",
        metavar="KIND",
        help="sparse: auto, bitmask, nm (or 1:4, 2:4, 3:4), 1x4 or 16x1 for the cut matrices; without --kind and"
        " --values bitmask, every bit as it is",
    )
    parser.add_argument(
        "--values",
        metavar="TYPE",
        help="sparse: float32, bfloat16 or int8 for every matrix (default: as they are)",
    )
    parser.add_argument(
        "--group",
        metavar="N",
        type=int,
        help="sparse, int8: columns that share a scale, 32, 64 or 128 (default: the row)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    parser.add_argument("--json", action="store_true", help="what was written as JSON")
    return parser.parse(argv)


def run(args: argparse.Namespace) -> int:
    from secateur.engine.events import Event
    from secateur.io.hub import resolve_folder
    from secateur.io.store import check_out

    one_of(args.to, FORMATS, "--to")
    packing = _packing(args)
    if args.type is not None and args.to != "gguf":
        what = (
            f"{args.to} keeps the types that are stored"
            if args.to != "onnx"
            else "onnx is written in float32"
        )
        raise BadInput(what, where="--type", fix="leave it out, or use --to gguf")
    if args.to != "gguf":
        check_out(args.out, args.overwrite)
    with progress(args.quiet or args.json) as listen:
        listen(Event("load", 0, 1, args.model))
        plain = (
            args.to in ("safetensors", "sparse") and Path(args.model).is_dir()
        )  # any module's folder, not models only
        folder = Path(args.model) if plain else resolve_folder(args.model)
        listen(Event("load", 1, 1, args.model))
        found = _export(
            args, folder, packing, lambda done, total: listen(Event("export", done, total, args.to))
        )
    say(as_json(found) if args.json else _shown(found, args), args.quiet and not args.json)
    return 0


def _packing(args: argparse.Namespace) -> Packing | None:
    """How matrices are to be packed; None: as bitmask, every bit as it is."""
    from secateur.io.packing import Packing

    given = {
        name: getattr(args, name) for name in ("kind", "values", "group") if getattr(args, name) is not None
    }
    if given and args.to != "sparse":
        raise BadInput(f"{args.to} is not packed", where=f"--{next(iter(given))}", fix="use --to sparse")
    return Packing(**given) if given else None


def _export(args: argparse.Namespace, folder: Path, packing: Packing | None, tell: Any) -> dict[str, Any]:
    from secateur.io.compressed import decompress_folder, is_compressed, plain_folder
    from secateur.io.convert import to_dense, to_sparse
    from secateur.io.export_gguf import export_gguf
    from secateur.io.export_onnx import export_onnx
    from secateur.io.hub import cache_folder
    from secateur.io.tensors import TensorFolder

    if args.to in ("safetensors", "sparse"):
        tell(0, 1)
        if args.to == "sparse":
            out = to_sparse(plain_folder(folder, cache_folder() / "compressed"), args.out, packing)
        else:
            out = (decompress_folder if is_compressed(folder) else to_dense)(folder, args.out)
        with TensorFolder(out) as tensors:
            held = sum(tensors.stored_bytes(name) for name in tensors.names())
            packed = {} if args.to != "sparse" else {"stored": _kinds(tensors)}
            found = {"file": str(out), "bytes": held, "tensors": len(tensors.names()), **packed}
        tell(1, 1)
        return found
    folder = plain_folder(folder, cache_folder() / "compressed")
    if args.to == "onnx":
        return export_onnx(folder, args.out, tell=tell)
    name = Path(args.model).resolve().name if Path(args.model).exists() else args.model
    kind = args.type or "f16"
    return export_gguf(folder, args.out, kind, name=name, overwrite=args.overwrite, tell=tell)


def _kinds(tensors: TensorFolder) -> dict[str, int]:
    """How many tensors of each layout there are, such as {"2:4 int8": 210, "plain": 62}."""
    counts: Counter[str] = Counter()
    for name in tensors.names():
        packed = tensors.packed(name)
        counts[packed.words if packed is not None else "bitmask" if tensors.is_sparse(name) else "plain"] += 1
    return dict(counts.most_common())


def _shown(found: dict[str, Any], args: argparse.Namespace) -> str:
    from secateur.report.words import size

    line = f"{found['file']}: {size(found['bytes'])}"
    if args.to == "safetensors":
        return f"{line}, {found['tensors']} tensors, stored dense"
    if args.to == "sparse":
        return f"{line}, tensors {', '.join(f'{count} {kind}' for kind, count in found['stored'].items())}"
    line += f", {found['parameters']:,} parameters"
    if args.to == "onnx":
        return f"{line} in float32; onnxruntime's logits differ by {found['difference']:.1e} at most"
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["tensors"].items())
    words = f"tokenizer {found['vocabulary']}" if found["vocabulary"] else "no tokenizer"
    lines = [f"{line}, {found['architecture']}, tensors {kinds}, {words}"]
    return "\n".join([*lines, *(f"note: {note}" for note in found["notes"])])
