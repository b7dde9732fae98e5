"""secateur plasticity MODEL --images SOURCE: how well a classifier gets over a cut."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from secateur.cli.parser import Parser, number, whole, words
from secateur.cli.progress import progress
from secateur.cli.table import as_json, say, table
from secateur.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor, nn

    from secateur.engine.train import Fit

HEAD = ("fraction", "before", "after cut", "recovered", "plasticity", "gain")
KEYS = ("before", "cut", "recovered", "plasticity", "gain")


def arguments(parser: Parser, argv: list[str]) -> argparse.Namespace:
    parser.add_argument(
        "model", metavar="MODEL", help="a folder of a classifier, or the name of a new one: resnet20, mlp-16"
    )
    parser.add_argument(
        "--images", metavar="SOURCE", required=True, help="digits, mnist, a folder or an .npz; both splits"
    )
    parser.add_argument("--limit", type=whole(), help="only so many images of each split")
    group = parser.add_argument_group("the cut")
    group.add_argument(
        "--fraction", type=words, default=["0.5"], help="of what survives, as 0.2,0.5,80%% (default: 0.5)"
    )
    group.add_argument("--criterion", default="magnitude", help="magnitude (default: each layer) or global")
    group.add_argument("--structured", action="store_true", help="cut filters instead of single weights")
    group.add_argument("--regrow", action="store_true", help="let as many zeros grow back, by gradient")
    group = parser.add_argument_group("training on")
    group.add_argument("--steps", type=whole(0), default=50, help="of SGD, momentum 0.9 (default: 50)")
    group.add_argument("--lr", type=number, default=0.01, help="constant; that of the run (default: 0.01)")
    group.add_argument("--batch", type=whole(), default=64, help="images a step (default: 64)")
    group.add_argument("--seed", type=whole(0), default=0, help="of batches and new weights (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser.parse(argv)


def run(args: argparse.Namespace) -> int:
    import torch
    import torch.nn.functional as F

    from secateur.core.budget import parse_fraction
    from secateur.engine.events import Event
    from secateur.engine.train import Fit, batch_of
    from secateur.evaluate.classify import accuracy, to_batch
    from secateur.evaluate.plasticity import plasticity
    from secateur.io.images import load_images
    from secateur.training import network

    fractions = [parse_fraction(text) for text in args.fraction]
    if not fractions:
        raise BadInput("none", where="--fraction", fix="0.5 cuts half of what survives")
    how = Fit(batch=args.batch, lr=args.lr, schedule="constant", seed=args.seed)
    learn, test = (load_images(args.images, split, limit=args.limit) for split in ("train", "test"))
    images, labels = to_batch(learn.images), torch.as_tensor(learn.labels)
    how.per_epoch(len(images))
    model = network(args.model, learn, args.seed)
    first = batch_of(len(images), how.batch, 0, how.seed)
    rows = []
    with progress(args.quiet or args.json) as listen:
        for done, fraction in enumerate(fractions, 1):
            found = plasticity(
                model,
                lambda copy, steps: train(copy, images, labels, steps, how),
                lambda copy: accuracy(copy, test.images, test.labels),
                fraction=fraction,
                steps=args.steps,
                criterion=args.criterion,
                regrow=args.regrow,
                structured=args.structured,
                backward=lambda copy: F.cross_entropy(copy(images[first]), labels[first]).backward(),
            )
            rows.append({"fraction": fraction, **found})
            listen(Event("plasticity", done, len(fractions), f"{fraction:g}"))
    say(as_json(rows) if args.json else _shown(rows, args), args.quiet and not args.json)
    return 0


def train(model: nn.Module, images: Tensor, labels: Tensor, steps: int, how: Fit) -> None:
    """`steps` steps at the constant rate of `how`, on the same batches at every call."""
    import torch.nn.functional as F

    from secateur.engine.train import batch_of

    optimizer = how.make(model)
    model.train()
    for step in range(steps):
        chosen = batch_of(len(images), how.batch, step, how.seed)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        if not bool(loss.isfinite()):
            raise BadInput(
                f"the loss of step {step + 1} is {loss.item()}", where="training", fix="lower --lr"
            )
        loss.backward()
        optimizer.step()


def _shown(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    from secateur.report.words import percent

    cells = [
        [
            f"{row['fraction']:g}",
            *(f"{100 * row[k]:+.1f}%" if k in KEYS[3:] else percent(row[k]) for k in KEYS),
        ]
        for row in rows
    ]
    units = "filters" if args.structured else "weights"
    notes = [
        f"accuracy on {args.images}; {rows[0]['alive']:,} of {rows[0]['units']:,} {units} alive before, cut by "
        f"{args.criterion}{', as many regrown' if args.regrow else ''}; {args.steps} steps at lr {args.lr:g}",
        "plasticity: against as many steps without a cut; gain: against before",
    ]
    return "\n".join([table(HEAD, cells), *notes])
