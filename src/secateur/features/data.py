"""What a fit needs: texts and images as embeddings, from a model with two towers or from arrays on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.apply.heads import Shots, Texts
from secateur.engine.events import Event, Listener, silent
from secateur.errors import BadInput, NoMatch, nearest
from secateur.io.descriptors import Descriptors, read_descriptors
from secateur.io.embeddings import embed_images, embed_texts, read_array, read_labels, unit_rows
from secateur.io.images import Images, load_images
from secateur.io.towers import Towers, load_towers

LIGHT = ("a photo of a {}.",)
SEVEN = (  # those that CLIP's authors found to do nearly as well as all 80 of theirs
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


@dataclass(frozen=True, eq=False)
class Data:
    """Everything a fit needs.

    Attributes:
        texts: the features.   descriptors: their words and where they came from.
        train: labelled images to draw the shots from; None where only a zero-shot head is wanted.
        tests: sets to measure on, by name; the first is in distribution.
        pictures: the images behind the first test set, for the page; None where only arrays are known.
        model: name and digest of the towers.
    """

    texts: Texts
    descriptors: Descriptors
    train: Shots | None
    tests: dict[str, Shots] = field(default_factory=dict)
    pictures: Images | None = None
    model: tuple[str, str] = ("", "")


def gather(
    model: str | Towers,
    descriptors: str | Path | Descriptors,
    images: str | None = None,
    *,
    shifted: Sequence[str] = (),
    templates: Sequence[str] = LIGHT,
    cache: str | Path | None = None,
    size: int | None = None,
    limit: int | None = None,
    device: str = "cpu",
    listen: Listener = silent,
) -> Data:
    """Embed texts and images with a model's two towers.

    Args:
        model: what `load_towers` takes, or loaded towers.
        images: what `load_images` takes, with a train and a test split; only a test split is enough to evaluate.
        shifted: more test sets of the same classes, or of some of them.
        templates: prompts with one {} for the class name (step 2).
        cache: folder of embeddings, found again by the content of model and images.
        size, limit: as for `load_images`.

    Raises:
        BadInput: a class without descriptor; a class name twice; images of a class that has no descriptor.
    """
    towers = load_towers(model, device) if isinstance(model, str) else model
    found = descriptors if isinstance(descriptors, Descriptors) else read_descriptors(Path(descriptors))
    folder = None if cache is None else Path(cache)
    texts = texts_of(towers, found, templates, folder)
    identity = (towers.name, towers.digest)
    if images is None:
        return Data(texts, found, None, model=identity)
    train = _train_split(images, size, limit)
    shots = embed_set(towers, texts.classes, train, folder, listen) if train is not None else None
    sources = (images, *shifted)
    tests, pictures = embed_tests(
        towers, texts.classes, sources, cache=folder, size=size, limit=limit, listen=listen
    )
    return Data(texts, found, shots, tests, pictures, identity)


def embed_tests(
    towers: Towers,
    classes: Sequence[str],
    sources: Sequence[str],
    *,
    cache: Path | None = None,
    size: int | None = None,
    limit: int | None = None,
    listen: Listener = silent,
) -> tuple[dict[str, Shots], Images]:
    """The test splits of the sources as embeddings, by name, and the images of the first."""
    tests: dict[str, Shots] = {}
    pictures = None
    for source in sources:
        images = load_images(source, "test", size=size, limit=limit)
        pictures = pictures or images
        tests[_free_name(images.name, tests)] = embed_set(towers, classes, images, cache, listen)
    if pictures is None:
        raise BadInput("no images", where="images", fix="name a source")
    return tests, pictures


def embed_set(
    towers: Towers, classes: Sequence[str], images: Images, cache: Path | None, listen: Listener = silent
) -> Shots:
    """Labelled images as embeddings; their labels as places among `classes`, by class name."""
    labels = class_places(images, classes)  # before the long work

    def tell(done: int, total: int) -> None:
        listen(Event(f"embed {images.name}", done, total))

    return Shots(embed_images(towers, images, cache=cache, tell=tell), labels)


def gather_arrays(
    descriptors: str | Path | Descriptors,
    rows: str | Path,
    prompts: str | Path,
    train: tuple[str | Path, str | Path] | None = None,
    tests: Mapping[str, tuple[str | Path, str | Path]] | None = None,
    *,
    scale: float = 100.0,
) -> Data:
    """Take stored embeddings (.npy, .parquet); no model is needed. Rows are brought to length 1.

    Args:
        rows: [descriptors, d], in the order of the descriptors.   prompts: [classes, d].
        train: (embeddings [n, d], labels [n]).   tests: the same, by name.
        scale: the model's logit scale.
    """
    found = descriptors if isinstance(descriptors, Descriptors) else read_descriptors(Path(descriptors))
    texts = Texts(
        found.classes,
        _unit(prompts),
        found.words,
        _unit(rows),
        torch.tensor(found.owner, dtype=torch.int64),
        scale,
    )
    known = {name: stored(*pair) for name, pair in (tests or {}).items()}
    return Data(texts, found, stored(*train) if train is not None else None, known)


def texts_of(
    towers: Towers, descriptors: Descriptors, templates: Sequence[str] = LIGHT, cache: Path | None = None
) -> Texts:
    """U_vd and U_cp of a model (step 2): descriptors without the class name; prompts averaged over the templates."""
    if not templates:
        raise BadInput("none", where="templates", fix="give at least one, such as 'a photo of a {}.'")
    for template in templates:
        if template.count("{}") != 1:
            raise BadInput("has no single {} for the class name", where=f"template {template!r:.60}")
    descriptors.check_complete()
    prompts = [template.format(name) for name in descriptors.classes for template in templates]
    each = embed_texts(towers, prompts, cache=cache).view(len(descriptors.classes), len(templates), -1)
    rows = embed_texts(towers, list(descriptors.words), cache=cache)
    owner = torch.tensor(descriptors.owner, dtype=torch.int64)
    return Texts(
        descriptors.classes, unit_rows(each.mean(1)), descriptors.words, rows, owner, towers.logit_scale
    )


def draw(shots: Shots, count: int, seed: int = 0, classes: Sequence[str] = ()) -> Shots:
    """`count` images of every class, drawn with `seed`; BadInput where a class has fewer."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for place in range(max(int(shots.labels.max()) + 1, len(classes))):
        own = (shots.labels == place).nonzero().flatten()
        if len(own) < count:
            name = classes[place] if classes else f"class {place}"
            raise BadInput(f"{len(own)} images, {count} shots asked for", where=name, fix="give more images")
        chosen.append(own[torch.randperm(len(own), generator=generator)[:count]])
    places = torch.cat(chosen)
    return Shots(shots.embeddings[places], shots.labels[places])


def class_places(data: Images, classes: Sequence[str]) -> Tensor:
    """Labels as places among `classes`, by class name."""
    for name in data.classes:
        if name not in classes:
            raise NoMatch(
                f"has images of {name!r}, a class without descriptor",
                where=data.name,
                fix=nearest(name, classes),
            )
    places = torch.tensor([classes.index(name) for name in data.classes])
    return places[torch.from_numpy(data.labels)]


def _train_split(source: str, size: int | None, limit: int | None) -> Images | None:
    try:
        return load_images(source, "train", size=size, limit=limit)
    except NoMatch:
        return None


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    return next(n for n in (name, *(f"{name} {i}" for i in range(2, 1000))) if n not in taken)


def _unit(path: str | Path) -> Tensor:
    return unit_rows(read_array(Path(path)))


def stored(embeddings: str | Path, labels: str | Path) -> Shots:
    """Labelled images from two files; rows are brought to length 1."""
    return Shots(_unit(embeddings), read_labels(Path(labels)))
