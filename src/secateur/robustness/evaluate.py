"""What a classifier is worth on corrupted images: accuracy and calibration of every corruption at every severity.

    robust accuracy   plain mean of the accuracies over corruptions x severities, of the 15 only
    mCE, relative     in percent of a reference's errors; AlexNet's on ImageNet-C, none on CIFAR-C unless one is given
    ece               15 bins; of the corrupted images the plain mean over the cells

The model is used as it is: batch-norm statistics stay frozen, nothing adapts to the test images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from secateur.engine.events import Event, Listener, silent
from secateur.errors import BadInput
from secateur.evaluate.classify import logits
from secateur.robustness import metrics
from secateur.robustness.corrupt import RENDERING, corrupt, pieces
from secateur.robustness.sets import PUBLISHED, CorruptedSet, check_labels, eight_bits, make_set, open_set
from secateur.robustness.severities import NAMES, SEVERITIES, check_name, parameters

Array = np.ndarray
STAGE = "corruptions"
_AT_ONCE = 1 << 24  # values corrupted at once

Images = Callable[[str, int], Iterator[Array]]  # corrupted images of one cell, in parts


def evaluate_corruptions(
    model: nn.Module,
    images: Array | Tensor,
    labels: Any,
    *,
    table: str = "cifar-c",
    names: Sequence[str] = NAMES,
    severities: Sequence[int] = SEVERITIES,
    batch: int = 256,
    seed: int = 0,
    cache: str | Path | None = None,
    listen: Listener = silent,
    frost_images: str | Path | None = None,
    reference: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Accuracy of `model` on clean and corrupted images, as values that JSON holds.

    Args:
        model: maps float [n, C, H, W] in [0, 1] to logits [n, classes] (or an output that has .logits).
        images: the clean test set, uint8 or float in [0, 1], numpy [N, H, W, C] or torch [N, C, H, W]; floats are
            rounded to 8 bits, as the published sets are. labels: int [N].
        cache: a folder for the corrupted set (see sets.py): made, completed or reused; or a folder of the published
            files, which then are what is measured. None: nothing is kept.
        listen: told of each cell (stage "corruptions").
        reference: for mCE off ImageNet-C: {"clean": error, "errors": {corruption: mean error over the severities}}.

    Returns:
        label ("secateur rendering" or "published set"), table, seed, count, clean {accuracy, ece},
        corruptions {name: {severity: {accuracy, ece}}} (severities as text), by_corruption {name: mean accuracy},
        robust_accuracy and ece (None where none of the 15 was measured), mce and relative_mce (None without a
        reference or where a cell of the 15 x 5 is missing; relative too where a corruption costs the reference
        nothing).

    Raises:
        BadInput: images, labels, names or settings that are none; logits that are not finite; a published set whose
            labels differ.   Damaged, Locked: see `make_set`.
    """
    cells = _cells(names, severities, table)
    _check_reference(reference)
    source = eight_bits(images)
    wanted = check_labels(labels, len(source))
    held, parts = _source(source, wanted, cache, table, names, seed, frost_images, listen)
    published = held is not None and held.label == PUBLISHED
    clean = _measure(model, iter([source]), wanted, batch)
    listen(Event(STAGE, 0, len(cells), f"clean {clean['accuracy']:.2%}"))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for done, (name, severity) in enumerate(cells, 1):
        cell = _measure(model, parts(name, severity), wanted, batch)
        found.setdefault(name, {})[str(severity)] = cell
        listen(Event(STAGE, done, len(cells), f"{name} {severity}: {cell['accuracy']:.2%}"))
    return {
        "label": held.label if held else RENDERING,
        "table": table,
        "seed": None if published else int(seed),
        "count": len(source),
        "severities": list(severities),
        "clean": clean,
        "corruptions": found,
        **summary(found, clean["accuracy"], table=table, reference=reference),
    }


def summary(
    found: Mapping[str, Mapping[str, Mapping[str, float]]],
    clean: float,
    *,
    table: str,
    reference: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The figures over all cells {corruption: {severity: {accuracy, ece}}}; see `evaluate_corruptions`."""
    accuracy = {name: {s: cell["accuracy"] for s, cell in row.items()} for name, row in found.items()}
    main = {name: row for name, row in accuracy.items() if name in NAMES}
    errors = {name: {s: 1 - value for s, value in row.items()} for name, row in main.items()}
    complete = len(main) == len(NAMES) and all(len(row) == len(SEVERITIES) for row in main.values())
    if reference is None and table == "imagenet-c":
        reference = {"clean": metrics.ALEXNET_CLEAN, "errors": metrics.ALEXNET}
    mce = relative = None
    if reference is not None and complete:
        mce = metrics.mce(errors, reference["errors"])
        # A corruption that costs the reference nothing leaves the relative error without a meaning.
        if all(reference["errors"][name] > reference["clean"] for name in NAMES):
            relative = metrics.relative_mce(errors, 1 - clean, reference["errors"], reference["clean"])
    eces = [cell["ece"] for name in main for cell in found[name].values()]
    return {
        "by_corruption": {name: float(np.mean(list(row.values()))) for name, row in accuracy.items()},
        "robust_accuracy": metrics.robust_accuracy(main) if main else None,
        "ece": float(np.mean(eces)) if eces else None,
        "mce": mce,
        "relative_mce": relative,
    }


def reference_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """The `reference` that makes a measured model (such as the dense one) score 100."""
    errors = {name: 1 - value for name, value in result["by_corruption"].items() if name in NAMES}
    return {"clean": 1 - result["clean"]["accuracy"], "errors": errors}


def _cells(names: Sequence[str], severities: Sequence[int], table: str) -> list[tuple[str, int]]:
    if isinstance(names, str) or not names or len(set(names)) != len(names):
        raise BadInput(f"{names!r:.60}", where="names", fix="give one or more corruptions, each once")
    if not severities or len(set(severities)) != len(severities):
        raise BadInput(f"{severities!r:.60}", where="severities", fix="give one or more of 1 to 5, each once")
    for name in names:
        check_name(name)
        for severity in severities:
            parameters(name, severity, table)
    return [(name, severity) for name in names for severity in severities]


def _check_reference(reference: Mapping[str, Any] | None) -> None:
    """Before anything is measured: a reference has a clean error and one above 0 for each of the 15."""
    if reference is None:
        return
    errors = reference.get("errors")
    whole = isinstance(errors, Mapping) and all(0 < errors.get(name, 0) <= 1 for name in NAMES)
    if not whole or not 0 <= reference.get("clean", -1) <= 1:
        raise BadInput(
            "is not whole", where="reference", fix="give a clean error and one above 0 for each of the 15"
        )


def _source(
    source: Array,
    labels: Array,
    cache: str | Path | None,
    table: str,
    names: Sequence[str],
    seed: int,
    frost_images: str | Path | None,
    listen: Listener,
) -> tuple[CorruptedSet | None, Images]:
    """Where corrupted images come from: a set on disk, or made when they are asked for."""
    if cache is None:

        def made(name: str, severity: int) -> Iterator[Array]:
            for start, stop in pieces(source, _AT_ONCE):
                yield corrupt(
                    source[start:stop],
                    name,
                    severity,
                    table=table,
                    seed=seed,
                    first=start,
                    frost_images=frost_images,
                )

        return None, made
    if is_published(Path(cache)):
        held = open_set(cache)
        if held.count != len(source) or held.shape != source.shape[1:] or (held.labels != labels).any():
            raise BadInput(
                f"holds {held.count} images of {list(held.shape)}, or other labels than the {len(source)} clean ones",
                where=str(cache),
                fix="give the clean test set in the order of the published files",
            )
    else:
        held = make_set(
            source,
            labels,
            cache,
            table=table,
            names=names,
            seed=seed,
            frost_images=frost_images,
            listen=listen,
        )

    def read(name: str, severity: int) -> Iterator[Array]:
        whole = held.images(name, severity)
        for start, stop in pieces(whole, _AT_ONCE):
            yield np.array(whole[start:stop])

    return held, read


def is_published(folder: Path) -> bool:
    """Whether a folder looks like the published files: labels.npy, some corruption, and no manifest of ours."""
    if not (folder / "labels.npy").exists() or (folder / "manifest.json").exists():
        return False
    return any((folder / f"{name}.npy").exists() for name in NAMES)


def _measure(model: nn.Module, parts: Iterator[Array], labels: Array, batch: int) -> dict[str, float]:
    """Accuracy and calibration error over images [n, H, W, C] that come in parts, in the order of the labels."""
    confidence, right, start = [], [], 0
    for part in parts:
        out = logits(model, part, batch)
        sure, hit = metrics.confidences(out, labels[start : start + len(part)])
        confidence.append(sure)
        right.append(hit)
        start += len(part)
    hits = np.concatenate(right)
    return {
        "accuracy": float(hits.mean()),
        "ece": metrics.calibration_error(np.concatenate(confidence), hits),
    }
