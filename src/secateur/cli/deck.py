"""secateur deck CARD [CARD ...]: one robust classifier of several trained ones."""

from __future__ import annotations

import argparse
from pathlib import Path

from secateur.cli.parser import Parser, whole, words
from secateur.cli.table import as_json, say
from secateur.errors import BadInput


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument(
        "cards", nargs="+", metavar="CARD", help="folders of classifiers, as `secateur train` writes them"
    )
    parser.add_argument(
        "--augments", type=words, required=True, help="what each was trained with: none,gaussian,augmix"
    )
    parser.add_argument("--gated", action="store_true", help="ask only the cards that the images call for")
    parser.add_argument(
        "--images", metavar="SOURCE", help="the training images, whose spectra the gate compares with"
    )
    parser.add_argument("--limit", type=whole(), default=2000, help="only so many of them (default: 2000)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the augmentations (default: 0)")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="where the deck goes")
    parser.add_argument("--overwrite", action="store_true", help="replace the deck that --out names")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")
    return parser.parse(argv)


def run(args: argparse.Namespace) -> int:
    from secateur.io.classifiers import load_classifier
    from secateur.io.images import load_images
    from secateur.robustness.deck import Deck, memory_bits, reference_spectra, save_deck

    if args.gated and args.images is None:
        raise BadInput("no images for the gate", where="--images", fix="name those the cards were trained on")
    out = Path(args.out)
    if out.is_dir() and any(out.iterdir()) and not args.overwrite:
        raise BadInput("exists already", where=str(out), fix="choose another --out, or pass --overwrite")
    cards, spectra = [load_classifier(Path(folder)) for folder in args.cards], None
    Deck(cards, args.augments)  # what does not go together is told before any spectrum is taken
    if args.images is not None:
        data = load_images(args.images, "train", limit=args.limit)
        spectra = reference_spectra(data.images, args.augments, args.seed)
    deck = Deck(cards, args.augments, spectra=spectra, gated=args.gated)
    save_deck(deck, out)
    found = {
        "folder": str(out),
        "cards": len(cards),
        "groups": {name: args.augments.count(name) for name in deck.groups},
        "gated": deck.gated,
        "weight_bits": memory_bits(deck),
    }
    groups = ", ".join(f"{count} {name}" for name, count in found["groups"].items())
    shown = f"{out}: {len(cards)} cards ({groups}), {'gated' if deck.gated else 'plain average'}"
    shown += f", {found['weight_bits'] / 8 / 1024:,.1f} KiB of weights and masks"
    say(as_json(found) if args.json else shown, args.quiet and not args.json)
    return 0
