"""secateur stragglers ZERO TUNED --images SOURCE: which layers spoil the average of two classifiers, and a repair."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.cli import flags
from secateur.cli.parser import Parser, number, whole, words
from secateur.cli.progress import progress
from secateur.cli.table import as_json, say, table
from secateur.errors import BadInput

if TYPE_CHECKING:
    from secateur.evaluate.stragglers import Labelled, Settings
    from secateur.io.images import Images
    from secateur.io.networks import Classifier

LAYERS = ("layer", "weights", "moved", "barrier", "sharpness", "±", "worst case", "")
SETS = ("accuracy on", "zero-shot", "fine-tuned", "alpha 0.5", "chosen", "oracle", "its alpha", "path")


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument(
        "zero", metavar="ZERO", help="folder of the zero-shot classifier (or any starting point)"
    )
    parser.add_argument("tuned", metavar="TUNED", help="folder of the same network, fine-tuned")
    parser.add_argument(
        "--images", metavar="SOURCE", required=True,
        help="digits, mnist, a folder or an .npz; one half of its test split chooses, the other one is reported on",
    )  # fmt: skip
    group = parser.add_argument_group("shifted images (nothing is chosen on them)")
    group.add_argument(
        "--shifted", nargs="+", default=[], metavar="SOURCE", help="test splits of these sources"
    )
    group.add_argument(
        "--corruptions", type=words, default=[], metavar="NAMES", help="fog,snow,.. of --images"
    )
    group.add_argument("--severity", type=whole(), default=3, help="of the corruptions, 1 to 5 (default: 3)")
    group.add_argument("--table", default="cifar-c", help="their parameters: cifar-c (default) or imagenet-c")
    group = parser.add_argument_group("what a straggler is")
    group.add_argument("--measure", default="matrix", help="a layer is a matrix (default) or a block")
    group.add_argument(
        "--others", default="middle", help="a layer moves alone, middle (default), or all but it: path"
    )
    group.add_argument(
        "--rule", default="barrier", help="largest barrier (default), or outliers of sharpness"
    )
    group.add_argument("--share", type=number, default=0.1, help="of the layers, by barrier (default: 0.1)")
    group.add_argument("--rho", type=number, default=1e-3, help="of relative perturbations (default: 0.001)")
    group.add_argument("--draws", type=whole(), default=20, help="of average sharpness, even (default: 20)")
    group.add_argument(
        "--steps", type=whole(), default=20, help="of the ascent to the worst case (default: 20)"
    )
    group.add_argument(
        "--raw-logits", action="store_true", help="sharpness of logits as they are, not scaled"
    )
    group.add_argument(
        "--limit", type=whole(), default=1024, help="images that layers are measured on (default: 1024)"
    )
    group = parser.add_argument_group("the path")
    group.add_argument("--points", type=whole(), default=11, help="values of alpha, odd (default: 11)")
    group.add_argument("--fisher", action="store_true", help="weight both ends by their Fisher values")
    group.add_argument("--restate", action="store_true", help="measure batch norm anew between the ends")
    group = parser.add_argument_group("repair")
    group.add_argument(
        "--repair",
        default="",
        metavar="WHAT",
        help="cut of the stragglers: difference or tuned (default: none)",
    )
    group.add_argument("--sparsity", type=words, default=["0.5"], help="one or more: 0.5,0.9 (default: 0.5)")
    group.add_argument("--method", default="magnitude", help="magnitude (default), wanda, sparsegpt, ...")
    group = parser.add_argument_group("job")
    group.add_argument("--size", type=whole(), help="resize and crop a folder of class folders to this")
    group.add_argument("--batch", type=whole(), default=256, help="images at a time (default: 256)")
    group.add_argument("--seed", type=whole(0), default=0, help="of draws and corruptions (default: 0)")
    group.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    group.add_argument("--json", action="store_true", help="print the figures as JSON")
    group.add_argument("--out", metavar="FILE.html", help="write a page")
    group.add_argument("--overwrite", action="store_true", help="replace it")
    return parser.parse(argv)


def run(args: argparse.Namespace) -> int:
    from secateur.evaluate.stragglers import analyse
    from secateur.io.files import write_atomic
    from secateur.io.hub import device_of
    from secateur.io.images import load_images

    if args.out is not None:
        flags.check_file(args.out, args.overwrite)
    how, device = settings(args), device_of(args.device)
    data = load_images(args.images, "test", size=args.size)
    zero, tuned = classifiers(args.zero, args.tuned, data)
    choose, held = halves(data)
    shifted = {source: alike(source, data, args.size) for source in args.shifted}
    shifted |= corrupted(held, args)
    with progress(args.quiet or args.json) as listen:
        found = analyse(zero.to(device), tuned.to(device), choose, held, shifted, how, listen)
    found = {"zero": args.zero, "tuned": args.tuned, "images": data.name, **found}
    if args.out is not None:
        write_atomic(Path(args.out), page(found, flags.command_of(args)))
    say(as_json(found) if args.json else shown(found), args.quiet and not args.json)
    return 0


def settings(args: argparse.Namespace) -> Settings:
    """The flags as settings."""
    from secateur.core.budget import parse_fraction
    from secateur.evaluate.stragglers import Settings

    same = ("points", "measure", "others", "rule", "share", "rho", "draws", "limit", "batch")
    same += ("restate", "fisher", "repair", "method", "seed")
    if not args.sparsity:
        raise BadInput("none", where="--sparsity", fix="0.5 cuts half of a layer")
    sparsities = tuple(
        1.0 if text in ("1", "1.0", "100%") else parse_fraction(text) for text in args.sparsity
    )
    return Settings(
        **{name: getattr(args, name) for name in same},
        ascent=args.steps,
        normalise=not args.raw_logits,
        sparsities=sparsities,
    )


def classifiers(zero: str, tuned: str, data: Images) -> tuple[Classifier, Classifier]:
    """Both ends, refused where they are not one network that takes these images."""
    from secateur.io.classifiers import load_classifier
    from secateur.io.networks import is_network

    height, width = data.images.shape[1:3]
    ends = []
    for name in (zero, tuned):
        if is_network(name):
            raise BadInput("is the name of a new network", where=name, fix="give the folder of a trained one")
        size = height if height == width else None
        ends.append(load_classifier(name, channels=data.channels, size=size))
    facts = [{**vars(end.settings), "steps": getattr(end, "steps", None)} for end in ends]
    for word in ("architecture", "classes", "mean", "std", "steps"):
        if facts[0][word] != facts[1][word]:
            what = f"{word} {facts[1][word]}, that of {zero} {facts[0][word]}"
            raise BadInput(what, where=tuned, fix="both ends must be one network")
    return ends[0], ends[1]


def halves(data: Images) -> tuple[Labelled, Labelled]:
    """Two halves, each class shared out evenly; always the same."""
    import numpy as np
    import torch

    from secateur.evaluate.stragglers import Labelled
    from secateur.io.images import stratified

    if len(data) < 2:
        raise BadInput("one image makes no two halves", where=data.name, fix="give more images")
    first = np.zeros(len(data), dtype=bool)
    first[stratified(data.labels, len(data) // 2, seed=0)] = True
    a, b = (Labelled(data.images[part], torch.as_tensor(data.labels[part])) for part in (first, ~first))
    return a, b


def alike(source: str, data: Images, size: int | None) -> Labelled:
    """The test split of a shifted source, with classes (all or some) and the kind of images of `data`."""
    import torch

    from secateur.evaluate.stragglers import Labelled
    from secateur.io.images import load_images

    found = load_images(source, "test", size=size)
    place = {name: i for i, name in enumerate(data.classes)}
    if not set(found.classes) <= set(place):
        raise BadInput(
            f"its classes are not those of {data.name}", where=source, fix="name the classes alike"
        )
    if found.images.shape[1:] != data.images.shape[1:]:
        shapes = [list(images.shape[1:]) for images in (found.images, data.images)]
        raise BadInput(
            f"images of {shapes[0]}, the others {shapes[1]}", where=source, fix="bring them to one size"
        )
    places = torch.tensor([place[name] for name in found.classes])
    only = () if len(found.classes) == len(place) else tuple(places.tolist())
    return Labelled(found.images, places[torch.as_tensor(found.labels)], only)


def corrupted(held: Labelled, args: argparse.Namespace) -> dict[str, Labelled]:
    """The reported half of the in-distribution images under each corruption."""
    from secateur.evaluate.stragglers import Labelled
    from secateur.robustness.corrupt import corrupt

    made = {}
    for name in args.corruptions:
        images = corrupt(held.images, name, args.severity, table=args.table, seed=args.seed)
        made[f"{name} {args.severity}"] = Labelled(images, held.labels)
    return made


# -- what is shown ----------------------------------------------------------------------------------------------------


def set_rows(picks: Mapping[str, Any]) -> list[list[str]]:
    """One row a set of images, without those that alpha was chosen on."""
    from secateur.evaluate.stragglers import CHOOSE
    from secateur.report.words import percent

    keys = ("zero", "tuned", "half", "chosen", "oracle")
    rows = ((name, row) for name, row in picks["sets"].items() if name != CHOOSE)
    return [
        [name, *(percent(row[k]) for k in keys), f"{row['oracle_alpha']:g}", row["verdict"]]
        for name, row in rows
    ]


def layer_cells(layers: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    figures = ("moved", "barrier", "average", "error", "worst")
    return [
        [
            r["name"],
            f"{r['weights']:,}",
            *(f"{r[k]:.3g}" for k in figures),
            "straggler" if r["straggler"] else "",
        ]
        for r in layers
    ]


def notes(found: Mapping[str, Any]) -> list[str]:
    """What the tables stand on."""
    how, sharp = found["settings"], found["sharpness"]
    scaled = "scaled" if how["normalise"] else "raw"
    total = ", ".join(f"{s['average']:.3g} at {a}" for a, s in sharp.items() if a != "stragglers")
    return [
        f"stragglers: {found['definition']}: {', '.join(found['stragglers']) or 'none'}",
        f"sharpness: at alpha 0.5, rho {how['rho']:g}, {how['draws']} draws, {scaled} logits; all layers: {total}",
        f"chosen: alpha {found['picks']['alpha']:g}, best on the other half of {found['images']}; "
        "oracle: best on that row's own images, which no user has",
    ]


def repair_words(found: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    how = found["settings"]
    what = "difference from zero-shot" if how["repair"] == "difference" else "fine-tuned weights"
    left = f"; no weight to cut in {', '.join(row['uncut'])}" if row["uncut"] and row["sparsity"] else ""
    done = f"stragglers' {what} cut at {row['sparsity']:g} by {how['method']}"
    return f"{done}, alpha {row['picks']['alpha']:g} chosen{left}"


def shown(found: Mapping[str, Any]) -> str:
    parts = [
        table(LAYERS, layer_cells(found["layers"]), (0, 7)),
        table(SETS, set_rows(found["picks"]), (0, 7)),
    ]
    for row in found.get("repair", ()):
        parts.append(f"{repair_words(found, row)}\n{table(SETS, set_rows(row['picks']), (0, 7))}")
    if found["settings"]["repair"] and "repair" not in found:
        parts.append("no straggler, so nothing was cut")
    return "\n\n".join([*parts, "\n".join(notes(found))])


def page(found: Mapping[str, Any], command: str) -> str:
    """One offline page: accuracy along the path and the repaired ones, the layers, the table."""
    from secateur.evaluate.stragglers import CHOOSE
    from secateur.report.simple import simple_page
    from secateur.report.svg import Bar, Frame, Series, bars, line_plot

    paths = [("", found), *((f", cut at {row['sparsity']:g}", row) for row in found.get("repair", ()))]
    charts, rows = [], []
    for said, one in paths:
        alphas, sets = one["path"]["alphas"], one["path"]["sets"]
        lines = [
            Series(name, tuple(zip(alphas, sets[name]["accuracy"], strict=True)), slot)
            for slot, name in enumerate(name for name in sets if name != CHOOSE)
        ]
        frame = Frame(
            f"Accuracy from zero-shot (0) to fine-tuned (1){said}", "alpha", "accuracy", x_format="{:g}".format,
            y_format="{:.1%}".format, tick_format="{:.0%}".format,
        )  # fmt: skip
        charts.append(line_plot(lines, frame))
        rows += [[name + said, *rest] for name, *rest in set_rows(one["picks"])]
    heights = [
        Bar(r["name"], r["barrier"], f"{r['barrier']:.3g}, sharpness {r['average']:.3g}", int(r["straggler"]))
        for r in found["layers"]
    ]
    charts.append(bars(heights, "Barrier of each layer; stragglers in the second colour"))
    title = f"Stragglers between {Path(found['zero']).name} and {Path(found['tuned']).name}"
    lead = ". ".join([*notes(found), *(repair_words(found, row) for row in found.get("repair", ()))])
    return simple_page(title, lead, charts, SETS, rows, command)
