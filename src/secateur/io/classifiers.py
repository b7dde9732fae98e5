"""Image classifiers in and out: a small network by its name, a folder that secateur wrote, a transformers folder.

    config.json        {"architecture": "resnet20", "channels": 3, "size": 32, "classes": 10, "mean": [..], "std": [..]}
    model.safetensors  the state dict, and manifest.json beside it as for any checkpoint of secateur

All three give a module that takes float images [N, C, H, W] in [0, 1] and returns logits [N, classes]; it normalises
them itself (see networks.py). Nothing pickled is read: tools/convert_resnet.py turns published .th files into folders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.errors import BadInput, Damaged, NoMatch, Unsupported, nearest
from secateur.io.checkpoint import load_state, save_checkpoint
from secateur.io.files import inside, read_small
from secateur.io.header import strict_json
from secateur.io.manifest import check_manifest, read_manifest
from secateur.io.networks import (
    DEPTHS,
    PLAIN,
    Classifier,
    Settings,
    full_name,
    is_network,
    make_network,
    skeleton,
)
from secateur.io.vision import PROCESSOR, VisionClassifier, load_vision

CONFIG = "config.json"
_LIMIT = 8 << 20
_MIDDLE = 0.5  # mean and std where nobody gave any: [0, 1] becomes [-1, 1]


def load_classifier(
    name_or_folder: str | Path,
    *,
    channels: int | None = None,
    size: int | None = None,
    classes: int | None = None,
    seed: int = 0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Classifier:
    """A network by name, in training mode with seeded weights, or the classifier of a folder, in evaluation mode.

    Args:
        name_or_folder: a name of networks.py (mlp-128-128, lenet-300-100, conv-16-32-32, vgg-32-64-128, resnet20,
            resnet56x0.5 ..), a folder, or the .safetensors file in one. A name wins over a folder called like it.
        channels, size, classes: of the images [channels, size, size]. A name needs all three; a folder knows them, and
            those given must agree with it (a transformers model takes any size).
        seed: of a new network's weights; equal seeds give equal weights. A folder makes no use of it.
        mean, std: one number a channel, for images in [0, 1]; 0.5 where a name is given without them.

    Raises:
        NoMatch: neither a name nor a folder.   BadInput: a number is missing, wrong, or not the folder's.
        Damaged: a byte differs from the manifest, or tensors that are not the architecture's.
        Unsupported: pickled weights, or a transformers model of another kind.
    """
    asked = {"channels": channels, "size": size, "classes": classes}
    name = str(name_or_folder)
    if isinstance(name_or_folder, str) and is_network(name):
        return make_network(_settings(name, asked, mean, std), seed)
    path = Path(name_or_folder)
    if not path.exists():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        known = [*PLAIN, *PLAIN.values(), *(f"resnet{depth}" for depth in DEPTHS), *sorted(beside)]
        raise NoMatch("no network, file or folder of this name", where=name, fix=nearest(path.name, known))
    if mean is not None or std is not None:
        raise BadInput("a folder has its own mean and std", where=name, fix="leave mean= and std= out")
    if path.is_file() and path.suffix != ".safetensors":
        fix = "convert it: python tools/convert_resnet.py FILE FOLDER"
        raise Unsupported("is no safetensors file", where=name, fix=fix)
    model = _load_folder(path if path.is_dir() else path.parent)
    own = vars(model.settings)
    if isinstance(model, VisionClassifier):
        asked["size"] = None
    wrong = next((word for word, value in asked.items() if value is not None and value != own[word]), None)
    if wrong is not None:
        what = f"{wrong} {asked[wrong]} was asked for, the model has {own[wrong]}"
        raise BadInput(what, where=name, fix="give it images of the kind it was trained on")
    return model


def save_classifier(
    model: nn.Module, folder: Path | str, *, extra: Mapping[str, bytes | str] | None = None
) -> Path:
    """Write what `load_classifier` made to `folder`, which changes in one step or not at all.

    A network of ours becomes config.json and model.safetensors, a transformers model the folder it came from. `extra`
    holds further small files, as for `save_checkpoint`.

    Raises:
        Unsupported: another kind of module, or one whose tensors are no longer those of its architecture.
        And as `save_checkpoint`.
    """
    files = dict(extra or {})
    if isinstance(model, VisionClassifier):
        return save_checkpoint(folder, model=model.model, extra={**files, PROCESSOR: model.processor})
    if not isinstance(model, Classifier):
        what = f"{type(model).__name__} is not from load_classifier, so its folder could not be loaded"
        raise Unsupported(what, where="model", fix="use save_checkpoint")
    difference = _difference(model.state_dict(), model.settings)
    if difference:
        fix = "use save_checkpoint, and load it into a module of the same shape"
        raise Unsupported(f"{difference}, so its folder could not be loaded", where="model", fix=fix)
    config = json.dumps(asdict(model.settings), indent=2, sort_keys=True) + "\n"
    return save_checkpoint(folder, model=model, extra={**files, CONFIG: config})


def _settings(
    name: str, asked: Mapping[str, int | None], mean: Sequence[float] | None, std: Sequence[float] | None
) -> Settings:
    numbers: dict[str, int] = {}
    for word, value in asked.items():
        if value is None:
            raise BadInput(
                f"{word} is not given", where=name, fix="a new network needs channels, size, classes"
            )
        numbers[word] = value
    filled = [
        (_MIDDLE,) * int(numbers["channels"]) if value is None else tuple(float(v) for v in value)
        for value in (mean, std)
    ]
    return Settings(architecture=full_name(name), **numbers, mean=filled[0], std=filled[1])


def _load_folder(folder: Path) -> Classifier:
    where = str(folder)
    if not (folder / CONFIG).is_file():
        fix = "name a folder that save_classifier or transformers wrote"
        raise NoMatch(f"holds no {CONFIG}", where=where, fix=fix)
    config = strict_json(read_small(inside(folder, CONFIG), _LIMIT), str(folder / CONFIG), finite=False)
    if not isinstance(config, dict):
        raise Damaged("is not a table", where=str(folder / CONFIG))
    if "architecture" not in config:
        return load_vision(folder)
    if read_manifest(folder) is not None:
        check_manifest(folder)
    settings = _read_settings(config, str(folder / CONFIG))
    state = load_state(folder)
    # shapes first: a config may describe a network far larger than the weights beside it
    difference = _difference(state, settings)
    if difference:
        raise Damaged(difference, where=where, fix="config.json and the weights are of two different models")
    model = make_network(settings)
    model.load_state_dict(state, strict=True)
    return model.eval()


def _read_settings(config: dict[str, Any], where: str) -> Settings:
    words = [field.name for field in fields(Settings)]
    missing = next((word for word in words if word not in config), None)
    if missing is not None:
        raise Damaged(f"lacks {missing!r}", where=where, fix=f"it needs {', '.join(words)}")
    values = {word: tuple(v) if isinstance(v := config[word], list) else v for word in words}
    if not isinstance(values["architecture"], str):
        raise Damaged("architecture is no word", where=where)
    try:
        return Settings(**{**values, "architecture": full_name(values["architecture"])})
    except (BadInput, NoMatch) as error:
        raise Damaged(f"{error.where}: {error.what}", where=where, fix=error.fix) from error


def _difference(state: Mapping[str, Tensor], settings: Settings) -> str:
    """The first tensor of `state` that the architecture does not have like this, in words; empty where all agree."""
    wanted = {name: list(tensor.shape) for name, tensor in skeleton(settings).state_dict().items()}
    for name, shape in wanted.items():
        if name not in state:
            return f"tensor {name!r} of {settings.architecture} is missing"
        if list(state[name].shape) != shape:
            return f"tensor {name!r} is {list(state[name].shape)}, {settings.architecture} has {shape}"
    strange = next((name for name in state if name not in wanted), None)
    return "" if strange is None else f"{settings.architecture} has no tensor {strange!r:.100}"
