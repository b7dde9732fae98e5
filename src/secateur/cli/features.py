"""secateur features describe | fit | explain | evaluate: choose features instead of weights."""

from __future__ import annotations

import argparse
import dataclasses

from secateur.cli import features_steps, flags
from secateur.cli.parser import Parser, number, whole, words
from secateur.errors import NoMatch, nearest

STEPS = {
    "describe": "ask a language model what each class looks like, and write that as a file to edit",
    "fit": "choose the features that tell the classes apart, and write the head",
    "explain": "the texts behind each class, with their weights; a page with the images they fire on",
    "evaluate": "accuracy of a head, in distribution and shifted",
    "tune": "train the image tower on from a head, and blend it with where it came from (WiSE-FT)",
}


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    step = next((word for word in argv if not word.startswith("-")), "")
    if not step:
        parser.add_argument(
            "step", metavar="STEP", help=f"one of {', '.join(STEPS)}; each has its own --help"
        )
        parser.epilog = "; ".join(f"{name}: {what}" for name, what in STEPS.items())
        return parser.parse(argv)
    if step not in STEPS:
        raise NoMatch(f"no step {step!r}", where="features", fix=nearest(step, STEPS))
    rest = list(argv)
    rest.remove(step)
    parser.prog, parser.description = f"{parser.prog} {step}", STEPS[step].capitalize() + "."
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    found = {
        "describe": _describe_flags,
        "fit": _fit_flags,
        "explain": _explain_flags,
        "evaluate": _evaluate_flags,
        "tune": _tune_flags,
    }
    args = found[step](parser, rest)
    args.step = step
    return args


def run(args: argparse.Namespace) -> int:
    return getattr(features_steps, args.step)(args)


# -- flags ------------------------------------------------------------------------------------------------------------


def _describe_flags(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("classes", metavar="CLASSES", help="class names: .txt, one a line, or a .json list")
    parser.add_argument("--out", metavar="FILE", help=".json (keeps where each came from) or .txt, to edit")
    parser.add_argument(
        "--endpoint", metavar="URL", help="an OpenAI-compatible server, as http://localhost:8000/v1"
    )
    parser.add_argument("--ask", metavar="MODEL", help="the endpoint's model; without one a local model")
    parser.add_argument(
        "--random",
        action="store_true",
        help="ask nobody: CLASSES is a file of descriptors, each replaced by as many words drawn from all (a control)",
    )
    parser.add_argument(
        "--key-variable", default="OPENAI_API_KEY", metavar="NAME", help="environment variable"
    )
    parser.add_argument("--cache", metavar="FOLDER", help="keeps answers (default: beside --out)")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument(
        "--show-prompt", action="store_true", help="print what would be asked, and ask nothing"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file that --out names")
    return parser.parse(argv)


def _image_flags(parser: Parser) -> None:
    group = parser.add_argument_group("images and a model with an image and a text tower")
    group.add_argument("--model", metavar="MODEL", help="a CLIP, SigLIP or open_clip folder, or a hub name")
    group.add_argument(
        "--images", metavar="SOURCE", help="digits, a folder, an .npz; its test split is in distribution"
    )
    group.add_argument(
        "--shifted", action="append", default=[], metavar="SOURCE", help="another test set; repeatable"
    )
    group.add_argument("--size", type=whole(), help="side to which a folder of images is resized")
    group.add_argument("--limit", type=whole(), help="only so many images of each split")
    group.add_argument("--cache", metavar="FOLDER", help="keeps embeddings, by content")
    group.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    group = parser.add_argument_group("or stored embeddings (.npy, .parquet)")
    pair = {"nargs": 2, "metavar": ("EMBEDDINGS", "LABELS")}
    group.add_argument(
        "--test", action="append", default=[], **pair, help="the first is in distribution; repeatable"
    )


def _fit_flags(parser: Parser, argv: list[str]) -> argparse.Namespace:
    from secateur.registry import find, names

    parser.add_argument(
        "--method", default="slr_avd", help=f"{', '.join(names('features'))} (default: slr_avd)"
    )
    chosen = parser.parse_known_args([word for word in argv if word not in ("-h", "--help")])[0].method
    if chosen not in names("features"):
        raise NoMatch(f"no method {chosen!r}", where="--method", fix=nearest(chosen, names("features")))
    parser.add_argument(
        "--descriptors", metavar="FILE", required=True, help="what `describe` writes, or your own"
    )
    parser.add_argument(
        "--templates", default="light", help="light (one prompt, default), seven, or a file of them"
    )
    _image_flags(parser)
    group = parser.add_argument_group("with --test")
    group.add_argument("--rows", metavar="FILE", help="embeddings of the descriptors, in their order")
    group.add_argument("--prompts", metavar="FILE", help="embeddings of the class prompts")
    group.add_argument("--train", nargs=2, metavar=("EMBEDDINGS", "LABELS"), help="to draw the shots from")
    group.add_argument("--scale", type=number, default=100.0, help="the model's logit scale (default: 100)")
    group = parser.add_argument_group("fit")
    group.add_argument("--shots", type=whole(), help="images a class (default: all)")
    group.add_argument(
        "--held", type=number, default=0.25, help="share held out to choose a setting (default: 0.25)"
    )
    group.add_argument(
        "--out", metavar="FOLDER", required=True, help="where the head goes; FOLDER.html is its page"
    )
    group.add_argument("--overwrite", action="store_true", help="replace the head that --out names")
    group.add_argument(
        "--path", action=argparse.BooleanOptionalAction, default=True,
        help="accuracy against the number of features, for the page (slr_avd)",
    )  # fmt: skip
    group = parser.add_argument_group(f"{chosen}'s own")
    cls = find(chosen)
    texts = flags.field_help(cls)
    for f in dataclasses.fields(cls):
        text = f"{texts.get(f.name, '')} (default: {f.default})".replace("%", "%%")
        group.add_argument("--" + f.name.replace("_", "-"), help=text)
    return parser.parse(argv)


def _explain_flags(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("head", metavar="HEAD", help="a folder that `fit` wrote")
    parser.add_argument("--top", type=whole(), default=3, help="texts a class (default: 3)")
    parser.add_argument("--class", dest="only", type=words, default=[], help="only these classes: a,b")
    _image_flags(parser)
    parser.add_argument("--out", metavar="PAGE.html", help="a page with the images that each text fires on")
    parser.add_argument("--overwrite", action="store_true", help="replace the page")
    return parser.parse(argv)


def _evaluate_flags(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument("head", metavar="HEAD", help="a folder that `fit` wrote")
    parser.add_argument(
        "--alpha", type=words, default=["0", "0.5", "1"], help="WiSE: 0 is zero-shot, 1 the head"
    )
    _image_flags(parser)
    group = parser.add_argument_group("corruptions")
    group.add_argument(
        "--corruptions", metavar="TABLE", help="cifar-c or imagenet-c, on the test split of --images"
    )
    group.add_argument("--names", type=words, default=[], help="only these corruptions: fog,snow")
    group.add_argument("--severity", type=words, default=[], help="only these severities: 1,3,5")
    return parser.parse(argv)


def _tune_flags(parser: Parser, argv: list[str]) -> argparse.Namespace:
    from secateur.features.tune import RECIPE

    parser.add_argument("head", metavar="HEAD", help="a folder that `fit` wrote")
    _image_flags(parser)
    group = parser.add_argument_group("training")
    kinds = {"epochs": whole(), "batch": whole(), "lr": number, "weight_decay": number, "clip": number}
    for name, kind in kinds.items():
        default = getattr(RECIPE, name)
        group.add_argument(
            f"--{name.replace('_', '-')}", type=kind, default=default, help=f"default: {default:g}"
        )
    group.add_argument("--seed", type=whole(0), default=0, help="of the batches (default: 0)")
    group.add_argument(
        "--alpha", type=number, default=0.5, help="of the blend that is written (default: 0.5)"
    )
    parser.add_argument(
        "--out", metavar="FOLDER", required=True, help="FOLDER/model and FOLDER/head go there"
    )
    return parser.parse(argv)
