"""A deck: several small classifiers of one task as one, by the mean of what they say or of those the images call for.

    plain    p = mean over all cards of softmax(logits)
    gated    a* = argmin_a |S - S_a|^2 / |S_a|^2,   p = mean over the cards trained with a*

S is the spectrum of the batch: log(1 + |FFT of a channel|), zero frequency in the middle, mean over images and
channels; S_a that of training images under the augmentation a. Images are those in [0, 1], before any network
normalises them. The gate judges a batch, not an image: one that mixes corruptions has no single answer, and one of
a few images a noisy one: give it 64 or more.

    FOLDER/deck.json             {"format": "secateur.deck", "version": 1, "augments": ["none", ..], "gated": true}
    FOLDER/card-0, card-1, ..    as save_classifier writes them
    FOLDER/spectra.safetensors   S_a by name, where there are any

A deck gives probabilities, as the published ones do. Whoever wants logits (a loss, evaluate_corruptions) takes
`log_probabilities`, or `DeckLogits` around the deck: softmax of these is what the deck says.

Paper: A Winning Hand: Compressing Deep Networks Can Improve Out-of-Distribution Robustness (2021), section 4; it does
       not say everything of the distance: logarithm, batch and one group are our choice (sheet cards, step 4).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import BadInput, Damaged, NoMatch, nearest
from secateur.evaluate.classify import to_batch
from secateur.io.classifiers import load_classifier, save_classifier
from secateur.io.files import MANIFEST, new_folder, read_small, write_atomic
from secateur.io.header import strict_json
from secateur.io.manifest import check_manifest, write_manifest
from secateur.io.tensors import TensorFolder
from secateur.io.writer import FolderWriter
from secateur.robustness.augment import augmix, gaussian_augment
from secateur.sites.trainable import trainable_weights

AUGMENTS = ("none", "gaussian", "augmix")
"""What a card can have been trained with. Crops and flips count as none: a shift leaves the amplitude as it is."""

JSON, SPECTRA = "deck.json", "spectra.safetensors"
_FORMAT, _VERSION = "secateur.deck", 1
_AT_ONCE = 1 << 21  # values transformed at once
_LIMIT = 1 << 20


class Deck(nn.Module):
    """Classifiers as one, in evaluation mode.

    Args:
        cards: each maps float [N, C, H, W] in [0, 1] to logits [N, classes].
        augments: one of AUGMENTS for each card.
        spectra: [H, W] of each of these, from `reference_spectra`; needed for a gate.
        gated: by default where there are spectra. May be changed later (`deck.gated = False`).

    Raises:
        BadInput: no card; cards of other classes, channels or image sizes than the first; unknown augmentations;
            a gate without the spectra of all its groups.
    """

    reference: Tensor

    def __init__(
        self,
        cards: Sequence[nn.Module],
        augments: Sequence[str],
        *,
        spectra: Mapping[str, Tensor] | None = None,
        gated: bool | None = None,
    ) -> None:
        super().__init__()
        _check_cards(cards, augments)
        self.cards, self.augments = nn.ModuleList(cards), tuple(augments)
        self.groups = tuple(sorted(set(augments)))  # a tie does not hang on the order of the cards
        self.gated = bool(spectra) if gated is None else gated
        _check_spectra(self.groups, spectra or {}, self.gated)
        known = [(spectra or {})[name].detach().float().cpu() for name in self.groups] if spectra else []
        self.register_buffer("reference", torch.stack(known) if known else torch.empty(0), persistent=False)
        self.eval()

    @property
    def spectra(self) -> dict[str, Tensor]:
        """[H, W] of each group; empty where none were given."""
        return dict(zip(self.groups, self.reference, strict=False))

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities [N, classes] of a batch [N, C, H, W]. BadInput: cards that answer in other shapes."""
        mean = self._logs(images).exp().mean(0)  # float64: equal cards, in any order, give one card's softmax
        return mean.float()

    def log_probabilities(self, images: Tensor) -> Tensor:
        """The logarithm of `forward`, [N, classes], computed so that no small probability is lost."""
        logs = self._logs(images)
        return (logs.logsumexp(0) - math.log(len(logs))).float()

    def gate(self, images: Tensor) -> str:
        """The group whose reference is nearest to the batch [N, C, H, W]; of equal ones the first by name.

        Raises: BadInput: no spectra, images of another size, or not finite.
        """
        return min(self.distances(images).items(), key=lambda item: item[1])[0]

    def distances(self, images: Tensor) -> dict[str, float]:
        """|S - S_a|^2 / |S_a|^2 of each group a. Raises as `gate`."""
        if not self.spectra:
            raise BadInput("has no spectra", where="deck", fix="give it reference_spectra(...)")
        found, reference = spectrum(images), self.reference
        if found.shape != reference.shape[1:]:
            what = f"images of {_by(found.shape)}, the spectra are of {_by(reference.shape[1:])}"
            raise BadInput(what, where="deck", fix="give images of the size the deck was made with")
        if not found.isfinite().all():
            raise BadInput("images hold NaN or Inf", where="deck", fix="give values in [0, 1]")
        apart = (found.to(reference.device) - reference).double().square().sum((1, 2))
        return dict(zip(self.groups, (apart / reference.double().square().sum((1, 2))).tolist(), strict=True))

    def _logs(self, images: Tensor) -> Tensor:
        """log softmax of the cards that are asked, float64 [cards, N, classes]."""
        asked = list(self.cards)
        if self.gated:
            group = self.gate(images)
            asked = [card for card, name in zip(asked, self.augments, strict=True) if name == group]
        answers = [getattr(found := card(images), "logits", found) for card in asked]
        shapes = sorted({tuple(answer.shape) for answer in answers})
        if len(shapes) > 1 or len(shapes[0]) != 2 or shapes[0][0] != len(images):
            what = f"cards answer {' and '.join(str(list(s)) for s in shapes)} to {len(images)} images"
            raise BadInput(what, where="deck", fix="use classifiers of the same classes")
        return torch.stack([answer.double().log_softmax(1) for answer in answers])


class DeckLogits(nn.Module):
    """A deck whose answers are logits: the logarithms of its probabilities."""

    def __init__(self, deck: Deck) -> None:
        super().__init__()
        self.deck = deck

    def forward(self, images: Tensor) -> Tensor:
        """[N, classes]; softmax of it is what the deck says."""
        return self.deck.log_probabilities(images)


def save_deck(deck: Deck, folder: Path | str) -> Path:
    """Write a deck to `folder`, which changes in one step or not at all.

    Raises:
        Unsupported: a card that `save_classifier` cannot write.   And as `io.files.new_folder`.
    """
    folder = Path(folder)
    body = {"format": _FORMAT, "version": _VERSION, "augments": list(deck.augments), "gated": deck.gated}
    spectra = deck.spectra
    with new_folder(folder) as temp:
        for place, card in enumerate(deck.cards):
            save_classifier(card, temp / f"card-{place}")
        if spectra:
            layout = {SPECTRA: {name: (value.dtype, tuple(value.shape)) for name, value in spectra.items()}}
            with FolderWriter(temp, layout) as writer:
                for name, value in spectra.items():
                    writer.put(name, value.cpu().contiguous())
        write_atomic(temp / JSON, json.dumps(body, indent=1) + "\n")
        write_manifest(temp)
    return folder


def load_deck(folder: Path | str) -> Deck:
    """What `save_deck` wrote.

    Raises:
        NoMatch: no such folder.   Damaged: a byte differs from the manifest, there is none, or deck.json is no deck's.
    """
    folder = Path(folder)
    where = str(folder / JSON)
    if not (folder / JSON).is_file():
        raise NoMatch(f"holds no {JSON}", where=str(folder), fix="name what `secateur deck` wrote")
    if not (folder / MANIFEST).is_file():
        raise Damaged("has lost its manifest", where=str(folder))
    check_manifest(folder)
    body = strict_json(read_small(folder / JSON, _LIMIT), where)
    augments, gated = _read(body, where)
    spectra: dict[str, Tensor] = {}
    if (folder / SPECTRA).is_file():
        with TensorFolder(folder / SPECTRA) as source:
            spectra = {name: source.get(name) for name in source.names()}
    cards = [load_classifier(folder / f"card-{place}") for place in range(len(augments))]
    try:
        return Deck(cards, augments, spectra=spectra, gated=gated)
    except BadInput as error:
        raise Damaged(f"{error.where}: {error.what}", where=where, fix=error.fix) from error


def _read(body: Any, where: str) -> tuple[list[str], bool]:
    """Augmentations and gate of a deck.json."""
    ours = isinstance(body, dict) and body.get("format") == _FORMAT and body.get("version") == _VERSION
    augments, gated = (body.get("augments"), body.get("gated")) if ours else (None, None)
    if not isinstance(augments, list) or not isinstance(gated, bool):
        raise Damaged("is no deck that this secateur reads", where=where)
    return augments, gated


def load_any(name: str | Path, *, channels: int | None = None, classes: int | None = None) -> nn.Module:
    """A classifier by name or folder, or the deck of a folder as `DeckLogits`: images in [0, 1] to logits.

    Args:
        channels, classes: of the images it is meant for; one that differs is refused.

    Raises:
        As `load_classifier` and `load_deck`.
    """
    if not (Path(name) / JSON).is_file():
        return load_classifier(name, channels=channels, classes=classes)
    deck = load_deck(name)
    held: Any = deck.cards[0]
    for word, value in (("channels", channels), ("classes", classes)):
        if value is not None and value != getattr(held.settings, word):
            what = f"{word} {value} was asked for, the deck has {getattr(held.settings, word)}"
            fix = "give it images of the kind it was trained on"
            raise BadInput(what, where=str(name), fix=fix)
    return DeckLogits(deck).eval()


def spectrum(images: np.ndarray | Tensor) -> Tensor:
    """log(1 + |FFT|) of each channel, zero frequency in the middle, mean over images and channels: float32 [H, W].

    Args:
        images: uint8 [N, H, W, C], or float [N, C, H, W] in [0, 1]; at least one.
    """
    if len(images) == 0:
        raise BadInput("there are no images", where="spectrum", fix="give at least one")
    step = max(1, _AT_ONCE // math.prod(images.shape[1:]))
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(images), step):
        batch = to_batch(images[start : start + step]).float()
        # float64: what the order of the images changes in the sum is rounded away
        total = total.to(batch.device) + torch.fft.fft2(batch).abs().log1p().double().sum((0, 1))
    channels = (
        images.shape[1] if isinstance(images, Tensor) and images.is_floating_point() else images.shape[3]
    )
    return torch.fft.fftshift(total / (len(images) * channels)).float()


def reference_spectra(
    images: np.ndarray | Tensor, augments: Sequence[str], seed: int = 0
) -> dict[str, Tensor]:
    """The spectrum [H, W] of training images under each of these augmentations, by name.

    Args:
        images: as for `spectrum`.   augments: of AUGMENTS; twice counts once.   seed: of the augmentations.

    Raises:
        BadInput: an unknown augmentation, or images that are none.   Unsupported: augmix without Pillow.
    """
    for name in augments:
        _check_augment(name)
    batch = to_batch(images)
    return {name: spectrum(augmented(batch, name, seed)) for name in dict.fromkeys(augments)}


def augmented(images: Any, name: str, seed: int = 0) -> Any:
    """A copy of the images under one of AUGMENTS, as a training would see them; `none` gives them as they are."""
    _check_augment(name)
    if name == "none":
        return images
    return (augmix if name == "augmix" else gaussian_augment)(images, seed=seed)


def memory_bits(deck: Deck) -> int:
    """Bits that the weights of a deck need, as the paper counts them.

    A card's linear and convolution weights: 32 a non-zero, or 1 where every layer of the card has one magnitude only
    (biprop), and a mask of 1 a weight for each layer that has zeros. Biases, norms and alphas are left out.
    """
    return sum(_card_bits(card) for card in deck.cards)


def _card_bits(card: nn.Module) -> int:
    layers = [weight.detach() for weight in trainable_weights(card).values()]
    each = 1 if all(len(weight[weight != 0].abs().unique()) <= 1 for weight in layers) else 32
    counts = [(int(weight.count_nonzero()), weight.numel()) for weight in layers]
    return sum(kept * each + (size if kept < size else 0) for kept, size in counts)


def _check_cards(cards: Sequence[nn.Module], augments: Sequence[str]) -> None:
    if not cards:
        raise BadInput("has no card", where="deck", fix="give at least one")
    if isinstance(augments, str) or len(augments) != len(cards):
        what = f"{len(cards)} cards and {1 if isinstance(augments, str) else len(augments)} augmentations"
        raise BadInput(what, where="deck", fix="name one a card")
    for name in augments:
        _check_augment(name)
    first = getattr(cards[0], "settings", None)
    for place, card in enumerate(cards):
        settings = getattr(card, "settings", None)
        for word in ("classes", "channels", "size") if first is not None and settings is not None else ():
            if getattr(settings, word) != getattr(first, word):
                what = f"card {place} has {word} {getattr(settings, word)}, card 0 {getattr(first, word)}"
                raise BadInput(what, where="deck", fix="use cards of one data set")


def _check_augment(name: Any) -> None:
    if name not in AUGMENTS:
        fix = "crops and flips count as none" if name == "crop-flip" else nearest(str(name), AUGMENTS)
        raise BadInput(f"{name!r:.40} is no augmentation of a deck", where="augments", fix=fix)


def _check_spectra(groups: Sequence[str], spectra: Mapping[str, Tensor], gated: bool) -> None:
    missing = next((name for name in groups if name not in spectra), None)
    if missing is not None and (gated or spectra):
        fix = "give reference_spectra(images, augments)"
        raise BadInput(f"no spectrum of {missing!r}", where="spectra", fix=fix)
    if len({tuple(spectra[name].shape) for name in groups if spectra}) > 1:
        raise BadInput("are of different sizes", where="spectra", fix="make them of one set of images")
    wrong = next(
        (n for n, s in spectra.items() if s.ndim != 2 or not s.isfinite().all() or not s.any()), None
    )
    if wrong is not None:
        raise BadInput(f"that of {wrong!r} is no spectrum [H, W]", where="spectra")


def _by(shape: Sequence[int]) -> str:
    return " x ".join(str(side) for side in shape)
