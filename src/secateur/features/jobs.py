"""Fit, measure and explain a head; write it as a folder and read it back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from secateur.apply.heads import Features, Head, Shots, Texts, blend, check_fits, split_shots
from secateur.engine.events import Listener, silent
from secateur.errors import BadInput
from secateur.features.data import Data, draw, embed_tests, stored
from secateur.io.descriptors import Descriptors
from secateur.io.heads import SavedHead, load_head, save_head
from secateur.io.images import Images
from secateur.io.towers import Towers, load_towers
from secateur.methods.features.slr_avd import SLRAVD
from secateur.registry import elsewhere, make, name_of

POINTS = 16  # of the curve of accuracy against features
FEWEST = 4  # shots a class from which some are held out to choose a setting (sheet slr-avd, step 5)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A head with what it stands on.

    Attributes:
        head: what was fitted.   zero: the zero-shot head of the class prompts, for `blend`.
        texts, descriptors, model: as in `Data`.   method: its name.   settings: as JSON values.
        figures: shots, features used, and what `evaluate` and `path` found.
    """

    head: Head
    zero: Head
    texts: Texts
    descriptors: Descriptors
    method: str
    settings: dict[str, Any]
    figures: dict[str, Any]
    model: tuple[str, str] = ("", "")


def fit(
    method: str | Features,
    data: Data,
    *,
    shots: int | None = None,
    held: float = 0.25,
    seed: int = 0,
    path: bool = False,
) -> Fitted:
    """Fit a head on `shots` images a class (all there are, if None).

    A setting that was left open (lam, C) is chosen on a held-out share of the shots, then the head is fitted again on
    all of them. Accuracies on the test sets are added to the figures; with `path`, also those at larger lam (slr_avd).

    Raises:
        BadInput: fewer than 4 shots a class and a setting left open.
    """
    chosen = make(method) if isinstance(method, str) else method
    if not isinstance(chosen, Features):
        raise elsewhere(name_of(chosen))
    texts, figures = data.texts, {}
    part = None
    if chosen.learns:
        if data.train is None:
            raise BadInput(
                "no images to learn from", where=name_of(chosen), fix="give a source with a train split"
            )
        part = data.train if shots is None else draw(data.train, shots, seed, texts.classes)
        figures["images"] = len(part)
        figures["shots"] = shots
    chosen = _settled(chosen, texts, part, held, seed)
    head = chosen.fit(texts, part)
    zero = Head(texts.prompts, texts.scale)
    settings = {f.name: getattr(chosen, f.name) for f in dataclasses.fields(chosen)}
    figures |= {"features": head.used, **dict(head.facts)}
    fitted = Fitted(head, zero, texts, data.descriptors, name_of(chosen), settings, figures, data.model)
    if data.tests:
        figures["accuracy"] = evaluate(fitted, data.tests)
    if path and data.tests and isinstance(chosen, SLRAVD) and part is not None:
        figures["path"] = _along(chosen, data, part)
    return fitted


def gather_tests(
    fitted: Fitted,
    model: str | Towers,
    sources: Sequence[str],
    *,
    cache: str | Path | None = None,
    size: int | None = None,
    limit: int | None = None,
    device: str = "cpu",
    listen: Listener = silent,
) -> tuple[dict[str, Shots], Images]:
    """Test sets of a head, embedded by the model it was fitted on, and the images of the first.

    Raises:
        BadInput: another model.
    """
    towers = own_towers(fitted, model, device)
    folder = None if cache is None else Path(cache)
    classes = fitted.texts.classes
    return embed_tests(towers, classes, sources, cache=folder, size=size, limit=limit, listen=listen)


def own_towers(fitted: Fitted, model: str | Towers, device: str = "cpu") -> Towers:
    """The towers a head was fitted on; BadInput where these are others."""
    towers = load_towers(model, device) if isinstance(model, str) else model
    check_model(fitted, towers)
    return towers


def check_model(fitted: Fitted, towers: Towers) -> None:
    """Refuse towers that the head was not fitted on."""
    if fitted.model[1] and towers.digest != fitted.model[1]:
        raise BadInput(f"is not {fitted.model[0]}, which the head was fitted on", where=towers.name)


def read_tests(fitted: Fitted, pairs: Mapping[str, tuple[str | Path, str | Path]]) -> dict[str, Shots]:
    """Stored test sets of a head: {name: (embeddings, labels)}."""
    tests = {name: stored(*pair) for name, pair in pairs.items()}
    for shots in tests.values():
        check_fits(fitted.texts, shots)
    return tests


def evaluate(
    fitted: Fitted, tests: Mapping[str, Shots], alphas: Sequence[float] = (0.0, 0.5, 1.0)
) -> dict[str, dict[str, float]]:
    """Accuracy on every test set of alpha * head + (1 - alpha) * zero-shot, {set: {alpha: accuracy}}.

    A set that holds only some of the classes is answered among these (ImageNet-A and -R are such sets).
    """
    heads = {f"{alpha:g}": blend(fitted.head, fitted.zero, alpha) for alpha in alphas}
    return {
        name: {alpha: accuracy(head, shots, len(fitted.texts.classes)) for alpha, head in heads.items()}
        for name, shots in tests.items()
    }


def accuracy(head: Head, shots: Shots, classes: int, batch: int = 8192) -> float:
    """Fraction of the images whose largest logit is their label's, among the classes that the set holds."""
    asked = torch.zeros(classes, dtype=torch.bool)
    asked[shots.labels.unique()] = True
    right = 0
    for start in range(0, len(shots), batch):
        part = slice(start, start + batch)
        logits = head.logits(shots.embeddings[part]).masked_fill(~asked, float("-inf"))
        right += int((logits.argmax(1) == shots.labels[part]).sum())
    return right / len(shots)


def explain(fitted: Fitted, top: int = 3) -> dict[str, list[tuple[str, float]]]:
    """For every class the texts with the largest coefficients (step 7), largest first; fewer where fewer are used.

    A text that several classes brought counts once, with the sum of its coefficients.

    Raises:
        BadInput: a head that is no combination of texts (a linear probe).
    """
    head, texts = fitted.head, fitted.texts
    if head.coefficients is None or head.features is None:
        raise BadInput(f"{fitted.method} uses no texts", where="explain", fix="fit slr_avd")
    names = [*texts.words, *(f"[{name}]" for name in texts.classes)]
    words = [names[place] for place in head.features.tolist()]
    out = {}
    for name, row in zip(texts.classes, head.coefficients, strict=True):
        sums: dict[str, float] = {}
        for at in row.nonzero().flatten().tolist():
            sums[words[at]] = sums.get(words[at], 0.0) + float(row[at])
        largest = sorted(sums.items(), key=lambda pair: -pair[1])[:top]
        out[name] = [(text, value) for text, value in largest if value > 0]
    return out


def save(fitted: Fitted, folder: str | Path, overwrite: bool = False) -> Path:
    """Write the head as a folder that `load` reads; whole or absent."""
    head, texts, words = fitted.head, fitted.texts, fitted.descriptors
    saved = SavedHead(
        weight=head.weight,
        scale=head.scale,
        bias=head.bias,
        coefficients=head.coefficients,
        features=head.features,
        prompts=texts.prompts,
        rows=texts.rows,
        classes=texts.classes,
        words=texts.words,
        owner=words.owner,
        sources=words.sources,
        method=fitted.method,
        settings=fitted.settings,
        figures=fitted.figures,
        model=fitted.model,
        text_scale=texts.scale,
    )
    return save_head(Path(folder), saved, overwrite=overwrite)


def load(folder: str | Path) -> Fitted:
    """The head of a folder, every byte checked."""
    saved = load_head(Path(folder))
    words = Descriptors(saved.classes, saved.words, saved.owner, saved.sources)
    owner = torch.tensor(saved.owner, dtype=torch.int64)
    texts = Texts(saved.classes, saved.prompts, saved.words, saved.rows, owner, saved.text_scale)
    head = Head(saved.weight, saved.scale, saved.bias, saved.coefficients, saved.features)
    zero = Head(texts.prompts, texts.scale)
    return Fitted(head, zero, texts, words, saved.method, saved.settings, saved.figures, saved.model)


def _along(method: SLRAVD, data: Data, part: Shots) -> list[dict[str, float]]:
    """Features used and accuracy on every test set at each point of the path that ends at the method's lam."""
    assert method.lam is not None
    lams = tuple(method.lam * method.factor**-k for k in range(POINTS - 1, -1, -1))
    out = []
    for point in method.path(data.texts, part, lams):
        head = method.head(data.texts, point)
        found = {name: accuracy(head, shots, len(data.texts.classes)) for name, shots in data.tests.items()}
        out.append({"lam": point.lam, "features": float(head.used), **found})
    return out


def _settled(method: Features, texts: Texts, part: Shots | None, held: float, seed: int) -> Features:
    """The method with every setting given: those left open are chosen on a held-out share of the shots."""
    open_ = [f.name for f in dataclasses.fields(method) if getattr(method, f.name) is None]
    if part is None or not open_:
        return method
    fewest = int(torch.bincount(part.labels).min())
    if fewest < FEWEST:
        what = f"{fewest} shots a class are too few to choose {' and '.join(open_)}"
        raise BadInput(what, where=name_of(method), fix=f"give {open_[0]}=, or {FEWEST} shots")
    found = dict(method.fit(texts, *split_shots(part, held, seed)).facts)
    return replace(method, **{name: found[name] for name in open_})
