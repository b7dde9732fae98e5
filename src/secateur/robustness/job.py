"""Classifiers by name on corrupted images: what `secateur evaluate --corruptions` does, as a function."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from secateur.engine.events import Event, Listener, silent
from secateur.errors import BadInput
from secateur.io.files import write_atomic
from secateur.io.images import load_images
from secateur.report.radar import Results, corruption_csv, corruption_markdown
from secateur.report.shift import shift_page
from secateur.robustness.deck import load_any
from secateur.robustness.evaluate import evaluate_corruptions
from secateur.robustness.severities import NAMES, SEVERITIES


def evaluate_models(
    models: Sequence[str | Path],
    images: str,
    *,
    table: str = "cifar-c",
    names: Sequence[str] = NAMES,
    severities: Sequence[int] = SEVERITIES,
    limit: int | None = None,
    batch: int = 256,
    seed: int = 0,
    cache: str | Path | None = None,
    frost_images: str | Path | None = None,
    listen: Listener = silent,
) -> list[tuple[str, dict[str, Any]]]:
    """(name, result) of every model on the same corrupted test images; see `evaluate_corruptions`.

    Args:
        models: folders of classifiers or decks, or what `load_classifier` takes; the first is drawn as the one to
            compare with.
        images: what `load_images` takes; its test split is corrupted.   limit: only so many of its images.
    """
    if not models:
        raise BadInput("no model", where="corruptions", fix="name at least one")
    data = load_images(images, "test", limit=limit)
    found = []
    for model in models:
        name = Path(model).name

        def tell(event: Event, name: str = name) -> None:
            listen(Event(f"{event.stage}, {name}", event.done, event.total, event.detail))

        network = load_any(model, channels=data.channels, classes=len(data.classes))
        result = evaluate_corruptions(
            network.eval(),
            data.images,
            data.labels,
            table=table,
            names=names,
            severities=severities,
            batch=batch,
            seed=seed,
            cache=cache,
            frost_images=frost_images,
            listen=tell,
        )
        found.append((name, {**result, "images": data.name}))
    return found


def write_results(results: Results, out: str | Path, command: str = "") -> list[Path]:
    """OUT.html (radar and table), .json, .csv and .md; returns their paths."""
    paths = outputs(out)
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    body = {
        "format": "secateur.corruptions",
        "version": 1,
        "command": command,
        "results": [list(r) for r in results],
    }
    texts = [
        shift_page(results, command),
        json.dumps(body, indent=1) + "\n",
        corruption_csv(results),
        corruption_markdown(results),
    ]
    for path, text in zip(paths, texts, strict=True):
        write_atomic(path, text)
    return paths


def outputs(out: str | Path) -> list[Path]:
    """The files that `write_results` writes, for FILE or FILE with one of their endings."""
    kinds = (".html", ".json", ".csv", ".md")
    stem = Path(out).with_suffix("") if Path(out).suffix in kinds else Path(out)
    return [stem.with_name(stem.name + kind) for kind in kinds]
