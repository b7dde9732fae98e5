"""What the steps of `secateur features` do, from their flags (cli/features.py)."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.cli import flags
from secateur.cli.progress import progress
from secateur.cli.table import as_json, say, table
from secateur.errors import BadInput, NoMatch, nearest

if TYPE_CHECKING:
    from secateur.io.descriptors import Descriptors


def describe(args: argparse.Namespace) -> int:
    from secateur.io.ask import PROMPT, prompt_for
    from secateur.io.descriptors import read_classes, write_descriptors

    given = flags.existing(args.classes)
    if args.show_prompt:
        say(prompt_for(read_classes(given)[0], PROMPT))
        return 0
    if args.out is None:
        raise BadInput("not given", where="--out", fix="name a .json or .txt file")
    out = Path(args.out)
    flags.check_file(out, args.overwrite)
    found, source = _drawn(given, args) if args.random else _asked(given, out, args)
    write_descriptors(out, found)
    facts = {"file": str(out), "classes": len(found.classes), "descriptors": len(found.words), **source}
    kept = f"; answers kept in {source['answers']}" if "answers" in source else ""
    shown = f"{out}: {len(found.words)} descriptors of {len(found.classes)} classes{kept}"
    say(as_json(facts) if args.json else shown, args.quiet and not args.json)
    return 0


def _drawn(given: Path, args: argparse.Namespace) -> tuple[Descriptors, dict[str, str]]:
    """Random words in the place of the descriptors of a file."""
    from secateur.io.descriptors import random_words, read_descriptors

    for flag, value in (("--ask", args.ask), ("--endpoint", args.endpoint)):
        if value is not None:
            raise BadInput("nobody is asked", where="--random", fix=f"leave {flag} out")
    return random_words(read_descriptors(given), args.seed), {}


def _asked(given: Path, out: Path, args: argparse.Namespace) -> tuple[Descriptors, dict[str, str]]:
    """What a language model says of the classes of a file, and where its answers are kept."""
    from secateur.engine.events import Event
    from secateur.io.ask import LocalModel, ask
    from secateur.io.descriptors import read_classes
    from secateur.io.endpoint import Endpoint

    if args.ask is None:
        raise BadInput(
            "not given", where="--ask", fix="name a model: smollm2-135m, a folder, or the endpoint's"
        )
    asker = Endpoint(args.endpoint, args.ask, args.key_variable) if args.endpoint else LocalModel(args.ask)
    cache = Path(args.cache) if args.cache else out.with_name(out.name + ".answers")
    with progress(args.quiet or args.json) as listen:

        def tell(done: int, total: int, name: str) -> None:
            listen(Event("describe", done, total, name))

        found = ask(read_classes(given), asker, cache=cache, seed=args.seed, tell=tell)
    return found, {"answers": str(cache)}


def fit(args: argparse.Namespace) -> int:
    from secateur import features
    from secateur.io.files import check_replaceable
    from secateur.registry import find, make

    out = Path(args.out)
    if out.exists() and not args.overwrite:
        raise BadInput("exists already", where=str(out), fix="choose another --out, or pass --overwrite")
    check_replaceable(out)
    cls = find(args.method)
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(cls)}
    settings = {name: flags.setting(cls, name, text) for name, text in given.items() if text is not None}
    method = make(args.method, **settings)
    with progress(args.quiet or args.json) as listen:
        data = _data(args, listen)
        fitted = features.fit(
            method, data, shots=args.shots, held=args.held, seed=method.seed, path=args.path
        )
    folder = features.save(fitted, out, overwrite=args.overwrite)
    page = out.with_name(out.name + ".html")
    features.write_page(
        fitted, page, pictures=data.pictures, tests=data.tests, command=flags.command_of(args)
    )
    figures = {"folder": str(folder), "page": str(page), "method": fitted.method, **fitted.figures}
    say(as_json(figures) if args.json else _shown(figures), args.quiet and not args.json)
    return 0


def explain(args: argparse.Namespace) -> int:
    from secateur import features

    fitted = features.load(args.head)
    found = features.explain(fitted, args.top)
    for name in args.only:
        if name not in found:
            raise NoMatch(f"no class {name!r}", where="--class", fix=nearest(name, found))
    found = {name: found[name] for name in args.only or found}
    if args.out is not None:
        flags.check_file(args.out, args.overwrite)
        with progress(args.quiet or args.json) as listen:
            tests, pictures = _tests(args, fitted, listen)
        features.write_page(
            fitted,
            Path(args.out),
            pictures=pictures,
            tests=tests,
            command=flags.command_of(args),
            top=args.top,
            only=args.only,
        )
    if args.json:
        say(as_json(found))
        return 0
    lines = []
    for name, reasons in found.items():
        lines += [
            name,
            *(f"  {weight:8.4g}  {text}" for text, weight in reasons or [("no text counts", 0.0)]),
        ]
    say("\n".join([*lines, *([args.out] if args.out else [])]), args.quiet)
    return 0


def evaluate(args: argparse.Namespace) -> int:
    from secateur import features

    fitted = features.load(args.head)
    alphas = [_fraction(text, "--alpha") for text in args.alpha]
    with progress(args.quiet or args.json) as listen:
        tests, _ = _tests(args, fitted, listen)
        found: dict[str, Any] = {"accuracy": features.evaluate(fitted, tests, alphas)}
        if args.corruptions is not None:
            if args.model is None or args.images is None:
                raise BadInput("needs --model and --images", where="--corruptions")
            found["corruptions"] = features.evaluate_corrupted(
                fitted,
                args.model,
                args.images,
                table=args.corruptions,
                names=args.names or None,
                severities=[int(_fraction(text, "--severity", 5)) for text in args.severity] or None,
                size=args.size,
                limit=args.limit,
                device=args.device,
                alphas=alphas,
                listen=listen,
            )
    say(as_json(found) if args.json else _accuracies(found), args.quiet and not args.json)
    return 0


def tune(args: argparse.Namespace) -> int:
    from secateur import features
    from secateur.engine.train import Fit
    from secateur.features.tune import RECIPE, save_tuned

    if args.model is None or args.images is None:
        raise BadInput("not given", where="--model" if args.model is None else "--images")
    out = Path(args.out)
    if out.exists():
        raise BadInput("exists already", where=str(out), fix="choose another --out")
    names = ("epochs", "batch", "lr", "weight_decay", "clip", "seed")
    how: Fit = dataclasses.replace(RECIPE, **{name: getattr(args, name) for name in names})
    fitted = features.load(args.head)
    with progress(args.quiet or args.json) as listen:
        done = features.tune(
            fitted,
            args.model,
            args.images,
            how=how,
            alpha=args.alpha,
            shifted=args.shifted,
            size=args.size,
            limit=args.limit,
            device=args.device,
            listen=listen,
        )
    save_tuned(done, args.model, out)
    figures = {"folder": str(out), "alpha": done.alpha, "accuracy": done.accuracy, "history": done.history}
    shown = f"{_accuracies(figures)}\n{out}/model, {out}/head: alpha {done.alpha:g}"
    say(as_json(figures) if args.json else shown, args.quiet and not args.json)
    return 0


# -- what the steps share ---------------------------------------------------------------------------------------------


def _data(args: argparse.Namespace, listen: Any) -> Any:
    from secateur import features

    stored = [name for name in ("rows", "prompts", "train") if getattr(args, name) is not None]
    if args.model is not None:
        if stored or args.test:
            raise BadInput(
                "stands beside --model", where=f"--{(*stored, 'test')[0]}", fix="give one of the two"
            )
        return features.gather(
            args.model,
            args.descriptors,
            args.images,
            shifted=args.shifted,
            templates=_templates(args.templates),
            cache=args.cache,
            size=args.size,
            limit=args.limit,
            device=args.device,
            listen=listen,
        )
    if args.rows is None or args.prompts is None:
        raise BadInput(
            "not given", where="--model", fix="give a model, or --rows and --prompts of stored embeddings"
        )
    tests = {Path(embeddings).stem: (embeddings, labels) for embeddings, labels in args.test}
    train = tuple(args.train) if args.train else None
    return features.gather_arrays(args.descriptors, args.rows, args.prompts, train, tests, scale=args.scale)


def _tests(args: argparse.Namespace, fitted: Any, listen: Any) -> tuple[Any, Any]:
    from secateur import features

    if args.model is not None and args.images is not None:
        return features.gather_tests(
            fitted,
            args.model,
            [args.images, *args.shifted],
            cache=args.cache,
            size=args.size,
            limit=args.limit,
            device=args.device,
            listen=listen,
        )
    if not args.test:
        raise BadInput("nothing to look at", where="--images", fix="give --model and --images, or --test")
    return features.read_tests(fitted, {Path(a).stem: (a, b) for a, b in args.test}), None


def _templates(word: str) -> tuple[str, ...]:
    from secateur.features import LIGHT, SEVEN
    from secateur.io.files import read_small

    if word in ("light", "seven"):
        return LIGHT if word == "light" else SEVEN
    lines = read_small(flags.existing(word)).decode("utf-8", "replace").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def _fraction(text: str, where: str, most: float = 1.0) -> float:
    try:
        value = float(text)
    except ValueError:
        raise BadInput(f"{text!r} is no number", where=where) from None
    if not 0 <= value <= most:
        raise BadInput(f"{text} is not in [0, {most:g}]", where=where)
    return value


def _shown(figures: dict[str, Any]) -> str:
    facts = [f"{figures['method']}: {figures['features']} features used"]
    facts += [
        f"{name} {figures[name]:g}" for name in ("shots", "images", "lam") if figures.get(name) is not None
    ]
    return "\n".join([", ".join(facts), _accuracies(figures), f"{figures['folder']}, {figures['page']}"])


def _accuracies(found: dict[str, Any]) -> str:
    sets = found.get("accuracy", {})
    alphas = list(next(iter(sets.values()), {}))
    rows = [[name, *(f"{values[alpha]:.1%}" for alpha in alphas)] for name, values in sets.items()]
    shown = table(["accuracy", *(f"alpha {alpha}" for alpha in alphas)], rows) if rows else ""
    if "corruptions" in found:
        rows = [
            [alpha, f"{row['clean']:.1%}", f"{row['robust']:.1%}"]
            for alpha, row in found["corruptions"].items()
        ]
        shown += "\n\n" + table(["alpha", "clean", "corrupted, mean"], rows)
    return shown
