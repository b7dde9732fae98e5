"""A head on corrupted images: each is embedded once, whatever the number of blends that are measured."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from secateur.apply.heads import Shots, blend
from secateur.engine.events import Event, Listener, silent
from secateur.features.data import embed_set
from secateur.features.jobs import Fitted, accuracy, own_towers
from secateur.io.images import Images, load_images
from secateur.io.towers import Towers
from secateur.robustness.corrupt import NAMES, corrupt
from secateur.robustness.severities import SEVERITIES

BATCH = 64


def evaluate_corrupted(
    fitted: Fitted,
    model: str | Towers,
    images: str,
    *,
    table: str = "cifar-c",
    names: Sequence[str] | None = None,
    severities: Sequence[int] | None = None,
    alphas: Sequence[float] = (0.0, 0.5, 1.0),
    size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    listen: Listener = silent,
) -> dict[str, dict[str, Any]]:
    """Accuracy of alpha * head + (1 - alpha) * zero-shot on the test images, clean and corrupted.

    Args:
        names, severities: which corruptions; all 15 and 1 to 5 where none is given.   The rest: as for `gather`.

    Returns:
        {alpha: {clean, robust (plain mean over the cells), corruptions {name: {severity: accuracy}}}}
    """
    towers = own_towers(fitted, model, device)
    data = load_images(images, "test", size=size, limit=limit)
    heads = {f"{alpha:g}": blend(fitted.head, fitted.zero, alpha) for alpha in alphas}
    names, severities = tuple(names or NAMES), tuple(severities or SEVERITIES)
    clean = embed_set(towers, fitted.texts.classes, data, None)
    out: dict[str, dict[str, Any]] = {
        alpha: {"clean": accuracy(head, clean, len(fitted.texts.classes)), "corruptions": {}}
        for alpha, head in heads.items()
    }
    cells = [(name, severity) for name in names for severity in severities]
    for done, (name, severity) in enumerate(cells, 1):
        shots = Shots(_corrupted(towers, data, name, severity, table, seed), clean.labels)
        for alpha, head in heads.items():
            row = out[alpha]["corruptions"].setdefault(name, {})
            row[str(severity)] = accuracy(head, shots, len(fitted.texts.classes))
        listen(Event("corruptions", done, len(cells), f"{name} {severity}"))
    for found in out.values():
        found["robust"] = mean(value for row in found["corruptions"].values() for value in row.values())
    return out


def _corrupted(towers: Towers, data: Images, name: str, severity: int, table: str, seed: int) -> Tensor:
    parts = []
    for start in range(0, len(data), BATCH):
        batch = corrupt(
            data.images[start : start + BATCH], name, severity, table=table, seed=seed, first=start
        )
        parts.append(towers.embed_images(batch))
    return torch.cat(parts)
