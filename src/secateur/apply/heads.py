"""What a method that chooses features is: it looks at stored embeddings and answers with one linear head.

    head = SLRAVD(lam=0.01).fit(texts, shots)
    head.logits(embeddings)                       # scale * embeddings @ weight.T: what a linear probe costs

An image embedding h [d] and a text embedding u [d] are rows of length 1 of the same space. The features of an image are
its cosines U h with every text; a method decides which of them count, and for which class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from secateur.core.method import Card, check_kinds
from secateur.core.scores import finite
from secateur.errors import BadInput

ROW = 1e-3  # how far from 1 the length of a row may be


@dataclass(frozen=True, eq=False)
class Texts:
    """What the features are.

    Attributes:
        classes: names of the classes, all different.
        prompts: float32 [classes, d], a unit row for each class (U_cp: the mean over prompt templates).
        words: the M descriptors as they are shown.
        rows: float32 [M, d], a unit row for each descriptor (U_vd).
        owner: int64 [M], the place in `classes` of the class each descriptor was written for.
        scale: the logit scale s of the model, about 100 for CLIP.

    Raises:
        BadInput: shapes that do not agree, a name twice, a class without descriptor (where there are any), a row that
            is not finite or not of length 1.
    """

    classes: tuple[str, ...]
    prompts: Tensor
    words: tuple[str, ...]
    rows: Tensor
    owner: Tensor
    scale: float = 100.0

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise BadInput(f"{len(self.classes)} class", where="classes", fix="name at least two")
        for at, name in enumerate(self.classes):
            if name in self.classes[:at]:
                raise BadInput(f"{name!r} is there twice", where="classes", fix="give each class one name")
        width = check_rows(self.prompts, "class prompts", rows=len(self.classes))
        check_rows(self.rows, "descriptors", rows=len(self.words), width=width)
        if self.owner.shape != (len(self.words),):
            raise BadInput(
                f"{tuple(self.owner.shape)} owners of {len(self.words)} descriptors", where="owner"
            )
        if self.words:
            if int(self.owner.min()) < 0 or int(self.owner.max()) >= len(self.classes):
                raise BadInput("names a class that is not there", where="owner")
            for place, count in enumerate(torch.bincount(self.owner, minlength=len(self.classes)).tolist()):
                if not count:
                    raise BadInput(
                        "no descriptor", where=self.classes[place], fix="write one, or ask for them"
                    )
        if not 0 < self.scale < 1e6:
            raise BadInput(f"{self.scale!r}", where="logit scale", fix="CLIP's is about 100")

    @property
    def width(self) -> int:
        return self.prompts.shape[1]


@dataclass(frozen=True, eq=False)
class Shots:
    """Labelled images: embeddings float32 [n, d], unit rows; labels int64 [n], places in the classes."""

    embeddings: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        check_rows(self.embeddings, "image embeddings")
        if not len(self.embeddings):
            raise BadInput("no image", where="image embeddings")
        if self.labels.shape != (len(self.embeddings),):
            raise BadInput(f"{len(self.labels)} labels of {len(self.embeddings)} images", where="labels")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Head:
    """One linear head over unit image embeddings.

    Attributes:
        weight: V, float32 [classes, d].
        scale: logits are scale * V h, and + bias [classes] where there is one.
        coefficients: W, float32 [classes, features], for a head that is a combination of texts: V = W U.
        features: int64 [features], for each column of W its place among the descriptors followed by the class prompts
            (0..M-1, then M..M+C-1).
        facts: what the fit tells of itself, by name.
    """

    weight: Tensor
    scale: float
    bias: Tensor | None = None
    coefficients: Tensor | None = None
    features: Tensor | None = None
    facts: tuple[tuple[str, float], ...] = ()

    def logits(self, embeddings: Tensor) -> Tensor:
        """[n, d] to [n, classes], on the CPU."""
        x = embeddings.to(self.weight.dtype)
        out = (self.scale * (x @ self.weight.to(x.device).t())).cpu()
        return out if self.bias is None else out + self.bias

    @property
    def used(self) -> int:
        """How many features (or, without coefficients, coordinates) any class uses."""
        held = self.weight if self.coefficients is None else self.coefficients
        return int((held != 0).any(0).sum())


def blend(head: Head, other: Head, alpha: float) -> Head:
    """WiSE: alpha of `head` and 1 - alpha of `other`, on one logit scale (sheet slr-avd, step 8).

    At 0 and 1 it is `other` and `head` themselves, bit for bit.
    """
    if not 0 <= alpha <= 1:
        raise BadInput(f"{alpha!r} is not in [0, 1]", where="alpha")
    if alpha in (0, 1):
        return head if alpha else other
    weight = alpha * (head.scale / other.scale) * head.weight + (1 - alpha) * other.weight
    biases = [part * h.bias for part, h in ((alpha, head), (1 - alpha, other)) if h.bias is not None]
    return Head(weight, other.scale, sum(biases[1:], biases[0]) if biases else None)


def split_shots(shots: Shots, held: float = 0.25, seed: int = 0) -> tuple[Shots, Shots]:
    """(train, held out): of every class the same share, at least one image on each side.

    Raises:
        BadInput: a class with one image, named by its place.
    """
    generator = torch.Generator().manual_seed(seed)
    away = torch.zeros(len(shots), dtype=torch.bool)
    for place in shots.labels.unique().tolist():
        own = (shots.labels == place).nonzero().flatten()
        if len(own) < 2:
            raise BadInput(
                "one image, so none can be held out", where=f"class {place}", fix="give two a class, or lam="
            )
        count = min(len(own) - 1, max(1, round(held * len(own))))
        away[own[torch.randperm(len(own), generator=generator)[:count]]] = True
    return _part(shots, ~away), _part(shots, away)


def _part(shots: Shots, chosen: Tensor) -> Shots:
    return replace(shots, embeddings=shots.embeddings[chosen], labels=shots.labels[chosen])


@dataclass(frozen=True, kw_only=True)
class Features(ABC):
    """A method that makes a head.

    Args:
        seed: of everything random.
    """

    seed: int = 0

    card: ClassVar[Card]
    needs: ClassVar[type | None] = None  # nothing that a model's forward is watched for
    updates: ClassVar[bool] = False
    learns: ClassVar[bool] = True  # False: it does without labelled images

    def __post_init__(self) -> None:
        check_kinds(self)

    @abstractmethod
    def fit(self, texts: Texts, shots: Shots | None, held: Shots | None = None) -> Head:
        """The head.

        Args:
            shots: what is learned from; None for a method that does not learn.
            held: on which settings are chosen that were not given.

        Raises:
            BadInput: embeddings of another width, labels out of range, a setting to choose and nothing held out.
        """


def columns(texts: Texts, features: str) -> tuple[Tensor, Tensor]:
    """(places int64 [F], rows [F, d]) of vd (descriptors), cp (class prompts) or avd (descriptors, then prompts)."""
    words, count = len(texts.words), len(texts.classes)
    if features != "cp" and not words:
        raise BadInput("no descriptors", where=features, fix="give some, or use features=cp")
    first, last = {"vd": (0, words), "cp": (words, words + count), "avd": (0, words + count)}[features]
    return torch.arange(first, last), torch.cat([texts.rows, texts.prompts])[first:last]


def check_fits(texts: Texts, shots: Shots) -> None:
    """Refuse shots that are not of these texts' space and classes."""
    if shots.embeddings.shape[1] != texts.width:
        what = f"{shots.embeddings.shape[1]} wide, the texts {texts.width}"
        raise BadInput(what, where="image embeddings", fix="take both from one model")
    low, high = int(shots.labels.min()), int(shots.labels.max())
    if low < 0 or high >= len(texts.classes):
        raise BadInput(f"labels {low}..{high} of {len(texts.classes)} classes", where="labels")


def check_rows(values: Tensor, where: str, *, rows: int | None = None, width: int | None = None) -> int:
    """Refuse what is not [rows, width], finite, each row of length 1; returns the width."""
    if values.ndim != 2 or not values.is_floating_point():
        raise BadInput(f"{values.dtype} {tuple(values.shape)}", where=where, fix="give floats [n, d]")
    if rows is not None and len(values) != rows:
        raise BadInput(f"{len(values)} rows for {rows}", where=where)
    if width is not None and len(values) and values.shape[1] != width:
        raise BadInput(
            f"{values.shape[1]} wide, the others {width}", where=where, fix="take both from one model"
        )
    lengths = finite(values, where, "values").norm(dim=1)
    if len(values) and float((lengths - 1).abs().max()) > ROW:
        at = int((lengths - 1).abs().argmax())
        raise BadInput(
            f"row {at} has length {float(lengths[at]):.3g}, not 1", where=where, fix="normalise the rows"
        )
    return values.shape[1]
