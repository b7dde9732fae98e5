"""The page of a head: its texts, the images each fires on, accuracy against the number of features."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from secateur.apply.heads import Shots, Texts
from secateur.errors import require
from secateur.features.jobs import Fitted, explain
from secateur.io.files import write_atomic
from secateur.io.images import Images
from secateur.report.features import SHOWN, Reason, features_page

SIDE = 64  # of a picture on the page, in pixels


def write_page(
    fitted: Fitted,
    out: Path,
    *,
    pictures: Images | None = None,
    tests: Mapping[str, Shots] | None = None,
    command: str = "",
    top: int = 3,
    only: Sequence[str] = (),
) -> Path:
    """Write the page.

    Args:
        pictures: the images of the first of `tests`; without them the page shows texts and weights alone.
        top: texts a class.   only: these classes; the first 24 where none is named.
    """
    if fitted.head.coefficients is None:
        reasons: dict[str, list[tuple[str, float]]] = {}
    else:
        found = explain(fitted, top)
        reasons = {name: found[name] for name in only or list(found)[:SHOWN]}
    embeddings = None
    if pictures is not None and tests:
        embeddings = next(iter(tests.values())).embeddings
    shown = {
        name: [
            Reason(text, weight, _fires(fitted.texts, text, embeddings, pictures)) for text, weight in pairs
        ]
        for name, pairs in reasons.items()
    }
    figures = fitted.figures
    title = f"{fitted.method}: {figures['features']} features, {len(fitted.texts.classes)} classes"
    drawn = (
        f"{figures['shots']} images a class" if figures.get("shots") else f"{figures.get('images', 0)} images"
    )
    lead = f"Fitted on {drawn}{f' with {fitted.model[0]}' if fitted.model[0] else ''}."
    page = features_page(
        title,
        lead,
        shown,
        figures.get("accuracy", {}),
        figures.get("path", ()),
        command,
        len(fitted.texts.classes),
    )
    write_atomic(out, page)
    return out


def firing(texts: Texts, text: str, embeddings: Tensor, count: int = 3) -> list[int]:
    """Places of the images with the largest cosine to a text, which is a descriptor or a class name in brackets."""
    own = text in texts.words
    row = texts.rows[texts.words.index(text)] if own else texts.prompts[texts.classes.index(text[1:-1])]
    return (embeddings @ row).topk(min(count, len(embeddings))).indices.tolist()


def _fires(texts: Texts, text: str, embeddings: Tensor | None, pictures: Images | None) -> tuple[bytes, ...]:
    if embeddings is None or pictures is None:
        return ()
    return tuple(_png(pictures.images[at]) for at in firing(texts, text, embeddings))


def _png(image: np.ndarray) -> bytes:
    """uint8 [H, W, C] as a small PNG file."""
    pillow = require("PIL.Image", "vision")
    picture = pillow.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    side = max(picture.size)
    size = tuple(max(1, round(SIDE * length / side)) for length in picture.size)
    held = io.BytesIO()
    picture.resize(size).save(held, format="PNG")
    return held.getvalue()
