"""Flags that several verbs share, and those of a method, which are the fields of its dataclass."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import shlex
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.cli.parser import Parser, number, shard_size, whole
from secateur.errors import BadInput, NoMatch, nearest

if TYPE_CHECKING:
    from secateur.core.method import OneShot
    from secateur.evaluate.terms import Terms

MODEL_HELP = "a local folder, a .gguf file, a hub name, or smollm2-135m (embedded)"
TEXT_HELP = "text file, folder, .jsonl, hub:NAME, .npy of token ids, or embedded"
_COMMON = ("sparsity", "pattern", "allocate", "seed")
_DRAW = ("samples", "length", "field")
_WALK = ("feed", "only", "skip", "batch", "products")
_BUDGETS = {
    "params": "parameters left",
    "bytes": "bytes left, in the sparse format",
    "flops": "FLOPs a token left",
}


def model_flags(parser: Parser) -> None:
    """Where and how the model is loaded."""
    group = parser.add_argument_group("model")
    group.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    group.add_argument("--dtype", default="auto", help="auto (as stored), float32, bfloat16, float16")
    group.add_argument("--trust-remote-code", action="store_true", help="run code that lies beside the model")


def calibration_flags(parser: Parser, samples: int = 128) -> None:
    """What data-driven methods measure on."""
    group = parser.add_argument_group("calibration")
    group.add_argument("--calibration", metavar="SOURCE", help=f"{TEXT_HELP} (default)")
    group.add_argument(
        "--field", default="text", help="the field of a .jsonl that holds the text (default: text)"
    )
    group.add_argument(
        "--samples", type=whole(), default=samples, help=f"windows to draw (default: {samples})"
    )
    group.add_argument("--length", type=whole(), default=512, help="tokens a window (default: 512)")


def walk_flags(parser: Parser) -> None:
    """How the model is walked."""
    group = parser.add_argument_group("walk")
    group.add_argument(
        "--feed", default="auto", help="block, layer, none, or auto (default): the method's own"
    )
    group.add_argument("--batch", type=whole(), default=1, help="samples a forward pass (default: 1)")
    group.add_argument("--products", default="auto", help="on a CPU: float32, bfloat16 or auto (default)")
    group.add_argument(
        "--only", action="append", default=[], metavar="GLOB", help="cut these sites only; repeatable"
    )
    group.add_argument(
        "--skip", action="append", default=[], metavar="GLOB", help="leave these sites; repeatable"
    )


def output_flags(parser: Parser) -> None:
    """Where and how a checkpoint is written."""
    group = parser.add_argument_group("output")
    group.add_argument("--out", metavar="FOLDER", help="default: MODEL-METHOD-SPARSITY here")
    group.add_argument(
        "--format", default="dense", help="dense (default) or sparse (bitmask and kept values)"
    )
    group.add_argument("--max-shard", type=shard_size, metavar="SIZE", help="as 5GB; default: as the source")
    group.add_argument("--overwrite", action="store_true", help="replace a checkpoint that secateur wrote")
    group.add_argument("--json", action="store_true", help="print what was done as JSON")


def evaluation_flags(parser: Parser, length: bool = False) -> None:
    """What quality is measured on; with `length` also the length of its windows and the field of its JSONL."""
    group = parser.add_argument_group("evaluation")
    group.add_argument("--text", metavar="SOURCE", help=f"{TEXT_HELP} (default)")
    group.add_argument("--tokens", metavar="FILE.npy", help="token ids [windows, length], used as given")
    group.add_argument("--windows", type=whole(), help="only the first N windows")
    if length:
        group.add_argument("--length", type=whole(2), default=512, help="tokens a window (default: 512)")
        group.add_argument("--field", default="text", help="the field of a .jsonl that holds the text")
    else:
        group.add_argument(
            "--eval-length", type=whole(2), metavar="N", help="tokens a window (default: --length)"
        )


def comparison_flags(parser: Parser) -> None:
    """What `sweep` and `compare` share."""
    calibration_flags(parser)
    walk_flags(parser)
    evaluation_flags(parser)
    group = parser.add_argument_group("more measures")
    group.add_argument("--prompt", default="", help="continued by every model")
    group.add_argument("--speed", action="store_true", help="tokens written a second")
    group.add_argument(
        "--measure", action="store_true", help="each cut packed: its speed forecast, and measured beside it"
    )
    model_flags(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--out", metavar="FOLDER", help="results.json, .csv, .md and report.html go there")
    group.add_argument("--overwrite", action="store_true", help="replace the results that lie there")
    group.add_argument("--json", action="store_true", help="print the results as JSON")


def amount_flags(parser: Parser) -> None:
    """How much to cut, in one currency."""
    group = parser.add_argument_group("how much")
    group.add_argument("--sparsity", help="fraction to cut: 0.5 or 50%% (default)")
    for name, words in _BUDGETS.items():
        group.add_argument(f"--{name}", type=number, metavar="N", help=f"instead: {words}, as 80e6")


def method_flags(parser: Parser, cls: type[OneShot]) -> None:
    """`--pattern`, `--allocate`, `--seed`, and one flag for each further field of the method."""
    from secateur.core.method import OneShot

    texts = field_help(cls)
    group = parser.add_argument_group("what competes")
    for name in ("pattern", "allocate"):
        group.add_argument(f"--{name}", help=_escape(texts[name]))
    parser.add_argument(
        "--seed", type=whole(0), default=0, help="of the calibration windows and of random draws"
    )
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(OneShot)}
    own = parser.add_argument_group(f"{cls.__name__}'s own")
    for field in sorted(dataclasses.fields(cls), key=lambda f: f.name in known):
        if field.name in _COMMON:
            continue
        flag = "--" + field.name.replace("_", "-")
        words = f"{_escape(texts.get(field.name, ''))} (default: {field.default})"
        target = group if field.name in known else own
        if hints[field.name] is bool:
            target.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=words)
        else:
            target.add_argument(flag, type=_converter(hints[field.name]), default=None, help=words)


def settings_of(args: argparse.Namespace, cls: type[OneShot]) -> dict[str, Any]:
    """The settings given on the command line, as keywords for the method."""
    given = {f.name: getattr(args, f.name, None) for f in dataclasses.fields(cls)}
    given["sparsity"] = amount(args)
    return {name: value for name, value in given.items() if value is not None}


def amount(args: argparse.Namespace) -> Any:
    """--sparsity, or a Budget from --params, --bytes or --flops; None when nothing was given."""
    amounts = {
        name: getattr(args, name) for name in ("sparsity", *_BUDGETS) if getattr(args, name, None) is not None
    }
    if set(amounts) <= {"sparsity"}:
        return amounts.get("sparsity")
    from secateur.core.budget import Budget, parse_fraction

    if "sparsity" in amounts:
        amounts["sparsity"] = parse_fraction(amounts["sparsity"])
    return Budget(**amounts)


def parse_with_method(
    parser: Parser, declare: Callable[[Parser, type[OneShot] | None], None], argv: Sequence[str]
) -> argparse.Namespace:
    """Parse a command line one of whose words names a method, whose fields are flags.

    Args:
        parser: what all commands share is declared on it already.
        declare: adds the rest, for a method's class, or for None without a method's flags.

    Raises:
        NoMatch: no such method or flag.
    """
    from secateur.registry import elsewhere, find, names

    def ready(cls: type[OneShot] | None) -> Parser:
        made = Parser(prog=parser.prog, description=parser.description, parents=[parser], add_help=False)
        declare(made, cls)
        return made

    words = list(argv)
    for name in (word for word in words if word in names("once")):
        made = ready(find(name))
        if (found := _try(made, words)) is not None and found.method == name:
            return made.parse(words)
    plain = ready(None)
    found = plain.parse_known_args(words)[0]  # help without a method ends here
    if found.method in names("training", "features"):
        raise elsewhere(found.method)
    if found.method not in names("once"):
        raise NoMatch(f"no method {found.method!r}", where="method", fix=nearest(found.method, names("once")))
    return ready(find(found.method)).parse(words)


def _try(parser: Parser, words: list[str]) -> argparse.Namespace | None:
    """What is known of `words` with this parser, or None; what is wrong is said later, by the right parser."""
    try:
        return parser.parse_known_args([word for word in words if word not in ("-h", "--help")])[0]
    except BadInput:
        return None


def model_of(args: argparse.Namespace, listen: Any, *, named: bool = False, out: Any = None) -> Any:
    """The model of the command line, loaded; or its name, where it is streamed.

    Raises:
        BadInput: flags of loading with a streamed model; `out` (which is checked before a model is loaded).
    """
    if named:
        if args.device != "cpu" or args.dtype != "auto" or args.trust_remote_code:
            what = "streaming runs on the cpu, in the dtype that is stored, without foreign code"
            raise BadInput(what, where="--stream", fix="leave --device, --dtype and --trust-remote-code out")
        return args.model
    from secateur.engine.events import Event
    from secateur.io.store import check_out, load

    if out is not None:
        check_out(out, getattr(args, "overwrite", False), getattr(args, "format", "dense"))
    listen(Event("load", 0, 1, args.model))
    loaded = load(args.model, dtype=args.dtype, device=args.device, trust_remote_code=args.trust_remote_code)
    listen(Event("load", 1, 1, args.model))
    return loaded


def walk_of(args: argparse.Namespace) -> dict[str, Any]:
    """The keywords of `compress` and `plan` that calibration and walk flags give."""
    return {name: getattr(args, name) for name in (*_DRAW, "seed", *_WALK)}


def terms_of(args: argparse.Namespace, listen: Any) -> Terms:
    """The terms of a comparison from its flags."""
    from secateur.evaluate.terms import Terms

    return Terms(
        calibration=source_of(args.calibration),
        text=text_of(args),
        eval_length=args.eval_length,
        windows=args.windows,
        prompt=args.prompt,
        speed=args.speed,
        packed=args.measure,
        listen=listen,
        **{name: getattr(args, name) for name in (*_DRAW, *_WALK)},
    )


def text_of(args: argparse.Namespace) -> str:
    """The evaluation source that --text or --tokens names; an array of token ids must be there."""
    if args.text is not None and args.tokens is not None:
        raise BadInput("text and tokens", where="evaluation", fix="give one of --text and --tokens")
    if args.tokens is not None and not args.tokens.endswith(".npy"):
        raise BadInput(f"{args.tokens!r} is no .npy file", where="--tokens", fix="text goes to --text")
    return source_of(args.tokens or args.text) or "embedded"


def source_of(name: str | None) -> str | None:
    """A source of text or ids as it was named; an array that is not there is told before any model is loaded."""
    if name is not None and name.endswith(".npy"):
        existing(name)
    return name


def results_folder(args: argparse.Namespace, default: str) -> Path:
    """Where results go; refused if results lie there and may not be replaced."""
    out = Path(args.out) if args.out is not None else Path(default)
    check_file(out / "results.json", args.overwrite)
    if out.exists() and not out.is_dir():
        raise BadInput("exists and is not a folder", where=str(out), fix="choose another --out")
    return out


def check_file(path: str | Path, overwrite: bool) -> None:
    """Refuse to write over what is there, unless told to; never over a folder."""
    path = Path(path)
    if path.is_dir():
        raise BadInput("is a folder", where=str(path), fix="name a file")
    if path.exists() and not overwrite:
        raise BadInput("exists already", where=str(path), fix="choose another --out, or pass --overwrite")


def existing(path: str) -> Path:
    """A file the user named; the nearest names where there is none."""
    found = Path(path)
    if found.is_dir():
        raise BadInput("is a folder", where=path, fix="name a file in it")
    if not found.exists():
        beside = [str(found.parent / p.name) for p in found.parent.iterdir()] if found.parent.is_dir() else []
        raise NoMatch("no such file", where=path, fix=nearest(path, beside))
    return found


def command_of(args: argparse.Namespace) -> str:
    """The command line as it was typed, for results and pages."""
    return shlex.join(["secateur", *args.typed])


def setting(cls: type[OneShot], name: str, text: str) -> Any:
    """A setting of a method from its words, as its flag would read it."""
    kind = typing.get_type_hints(cls)[name]
    if kind is bool:
        if text not in ("true", "false"):
            raise BadInput(f"{text!r} is not true or false", where=name)
        return text == "true"
    try:
        return _converter(kind)(text)
    except argparse.ArgumentTypeError as error:
        raise BadInput(str(error), where=name) from None


def field_help(cls: type) -> dict[str, str]:
    """Field name -> its words in the Args of the docstrings, base class first."""
    out: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__doc__ or "") if base is not object else ""
        _, _, arguments = text.partition("Args:\n")
        entries = re.split(r"^    (?=[a-z])", arguments, flags=re.M)[1:]
        for entry in entries:
            names, _, words = entry.partition(":")
            for name in names.split(","):
                out[name.strip()] = " ".join(words.split()).rstrip(".")
    return out


def _converter(hint: Any) -> Callable[[str], Any]:
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if kind is not type(None)]
    if kinds == [int]:
        return whole(-(2**63))
    return number if kinds == [float] else str


def _escape(text: str) -> str:
    return text.replace("%", "%%")
