"""A model with an image and a text tower, by name: CLIP and SigLIP of transformers, and open_clip's folders.

    towers = load_towers("DIR/clip")
    towers.embed_images(images) @ towers.embed_texts(["a photo of a tench."]).T * towers.logit_scale

Whatever has the fields of `Towers` will do in its place. Images go through the steps of the folder's image processor
(resized by Pillow on whole grey levels, as transformers does; a grey image three times), texts through its tokenizer,
cut to the model's length. Nothing in a folder is run, and only safetensors are read.

SigLIP: texts are padded to the model's length (64) and its padding is attended to, as in its training; its tokenizer
writes small letters (that of SigLIP 2 does not: give it small letters). Its logits are exp(scale) cos + bias; the bias
is the same for every class, so it changes no argmax and no softmax over classes, and is left out.
"""

from __future__ import annotations

import copy
import hashlib
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from secateur.errors import BadInput, Damaged, Unsupported, require
from secateur.io import open_clip
from secateur.io.checkpoint import load_checkpoint, save_checkpoint
from secateur.io.describe import NO_MANIFEST
from secateur.io.embeddings import unit_rows
from secateur.io.files import inside, open_regular, read_small
from secateur.io.header import strict_json
from secateur.io.hub import device_of, load_tokenizer, resolve_folder
from secateur.io.manifest import read_manifest
from secateur.io.tensors import TensorFolder
from secateur.io.vision import PROCESSOR, Steps, apply_steps, read_steps

_CLASSES = {"clip": "CLIPModel", "siglip": "SiglipModel"}
_PROCESSORS = (PROCESSOR, "processor_config.json")
# what decides an embedding beside the weights
_SIDE_FILES = (
    *("config.json", open_clip.CONFIG, *_PROCESSORS),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tokenizer.model"),
)
_IMAGES, _TEXTS = 64, 256  # taken through a tower at once
_PIL = {"nearest-exact": 0, "bilinear": 2, "bicubic": 3}  # torch's words, Pillow's numbers


class Towers(Protocol):
    """What embeds images and texts in one space.

    Attributes:
        name: for people.   digest: of weights and preprocessing: equal digests give equal embeddings.
        width: d.   logit_scale: what a cosine is multiplied with to be a logit.
    """

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def logit_scale(self) -> float: ...

    def embed_images(self, images: Any) -> Tensor:
        """uint8 [n, H, W, C], an array or a tensor, C 1 or 3, any size, to unit rows: float32 [n, d] on the CPU."""
        ...

    def embed_texts(self, words: Sequence[str]) -> Tensor:
        """Texts to unit rows: float32 [n, d] on the CPU."""
        ...


class ImageTower(nn.Module):
    """Float images [n, 3, H, W] in [0, 1] to embeddings [n, d] that are not normalised; gradients flow.

    Args:
        tower: whose output has `pooler_output` [n, width].   projection: from there to d; None: it is d already.
        steps: done to an image before.   mean, std: three numbers, for values in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        tower: nn.Module,
        projection: nn.Module | None,
        steps: Steps,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.tower, self.projection, self.steps = tower, projection, steps
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        pixels = (apply_steps(images, self.steps) - self.mean) / self.std
        pooled = self.tower(pixel_values=pixels).pooler_output
        return pooled if self.projection is None else self.projection(pooled)


@dataclass(frozen=True, eq=False)
class LoadedTowers:
    """What `load_towers` gives: `Towers`, with the image tower within reach for fine-tuning.

    Attributes:
        text: the text transformer.   text_projection: None where it ends in d.
        tokenizer: of the folder.   length: tokens of a text at most.   padded: always to this length, without a mask.
    """

    name: str
    digest: str
    width: int
    logit_scale: float
    image: ImageTower
    text: nn.Module
    text_projection: nn.Module | None
    tokenizer: Any
    length: int
    padded: bool

    def embed_images(self, images: Any) -> Tensor:
        array = _checked_images(images)
        out = [torch.empty(0, self.width)]
        for start in range(0, len(array), _IMAGES):
            pixels = resized(array[start : start + _IMAGES], self.image.steps)
            batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.image.mean.device)
            batch = batch.expand(-1, 3, -1, -1).float() / 255
            with torch.no_grad():
                out.append(unit_rows(self.image(batch).float().cpu(), f"{self.name}, images"))
        return torch.cat(out)

    def embed_texts(self, words: Sequence[str]) -> Tensor:
        for at, word in enumerate(words):
            if not isinstance(word, str):
                raise BadInput(f"text {at} is a {type(word).__name__}", where="texts", fix="give strings")
        out = [torch.empty(0, self.width)]
        for start in range(0, len(words), _TEXTS):
            tokens = self._tokens(list(words[start : start + _TEXTS]))
            with torch.no_grad():
                rows: Any = self.text(**tokens).pooler_output
                rows = rows if self.text_projection is None else self.text_projection(rows)
            out.append(unit_rows(rows.float().cpu(), f"{self.name}, texts"))
        return torch.cat(out)

    def image_module(self) -> ImageTower:
        """A copy of the image tower, free to be trained; `replace_image` takes its state dict."""
        return copy.deepcopy(self.image)

    def replace_image(self, state: Mapping[str, Tensor]) -> LoadedTowers:
        """These towers with an image tower of other weights (all of them), and another digest. These stay as they are.

        Raises:
            BadInput: a tensor is missing, unknown or of another shape.
        """
        image = self.image_module()
        try:
            image.load_state_dict(dict(state), strict=True)
        except RuntimeError as error:
            line = " ".join(str(error).split())[:160]
            raise BadInput(line, where="state", fix="give the state dict of image_module()") from error
        sha = hashlib.sha256(self.digest.encode())
        for name, value in sorted(image.state_dict().items()):
            plain = value.detach().to("cpu", torch.float32).contiguous().numpy()
            sha.update(f"{name}{list(value.shape)}".encode())
            sha.update(plain.data)
        return replace(self, image=image.eval(), digest=sha.hexdigest())

    def _tokens(self, words: list[str]) -> dict[str, Tensor]:
        kind = "max_length" if self.padded else True
        found = self.tokenizer(
            words, padding=kind, truncation=True, max_length=self.length, return_tensors="pt"
        )
        ids = found["input_ids"]
        config: Any = self.text.config
        if ids.numel() and int(ids.max()) >= config.vocab_size:
            what = f"its tokenizer knows token {int(ids.max())}, its text tower {config.vocab_size} of them"
            raise Damaged(what, where=self.name, fix="the two belong to different models")
        if self.padded:
            return {"input_ids": ids.to(self.image.mean.device)}
        # CLIP pools at the end token; without one every text would be read at its first token
        end = self.tokenizer.eos_token_id if config.eos_token_id == 2 else config.eos_token_id
        at_end = ids == end
        largest = config.eos_token_id != 2 or bool((ids <= (end or 0)).all())
        if end is None or not at_end.any(1).all() or not largest:
            what = "its tokenizer writes no end token where its text tower looks for one"
            raise Damaged(what, where=self.name, fix="the two belong to different models")
        tokens = {"input_ids": ids, "attention_mask": found["attention_mask"]}
        return {key: value.to(self.image.mean.device) for key, value in tokens.items()}


def load_towers(name_or_folder: str | Path, device: str = "cpu") -> LoadedTowers:
    """The towers of a folder, or of a name on the hub, in float32 and evaluation mode.

    Raises:
        NoMatch: nothing of that name.   Damaged: files that are not what they say, or do not fit one another.
        Unsupported: another kind of model, pickled weights, no tokenizer or image processor, a package is missing.
    """
    name = str(name_or_folder)
    folder = _folder(name)
    kind = _model_type(folder)
    if kind not in _CLASSES and not (folder / open_clip.CONFIG).is_file():
        what = f"a model of type {kind!r:.40} has no two towers that are known here"
        raise Unsupported(what, where=name, fix="known: clip, siglip and open_clip's ViT towers")
    if kind in _CLASSES:
        model = _transformers_model(folder, _CLASSES[kind])
        steps, mean, std = _preprocessing(folder)
        weights = sorted(_weight_files(folder))
    else:
        model, steps, mean, std = open_clip.load_open_clip(folder)
        weights = [open_clip.weights_file(folder).name]
    tokenizer = load_tokenizer(folder)
    if tokenizer is None or tokenizer.pad_token_id is None:
        raise Unsupported(
            "has no tokenizer that can pad", where=name, fix="save its tokenizer into the folder"
        )
    vision, projection = model.vision_model, getattr(model, "visual_projection", None)
    if getattr(vision, "use_head", True) is False or vision.config.num_channels != 3:
        raise Unsupported("its image tower has no pooled output of colour images", where=name)
    text = model.text_model
    place = device_of(device)
    image = ImageTower(vision, projection, steps, mean, std)
    after = getattr(model, "text_projection", None)
    return LoadedTowers(
        name=name,
        digest=_digest(folder, weights),
        width=_width(model, kind or "clip"),
        logit_scale=_scale(model, name),
        image=image.to(place).eval(),
        text=text.to(place).eval(),
        text_projection=None if after is None else after.to(place),
        tokenizer=tokenizer,
        length=int(text.config.max_position_embeddings),
        padded=kind == "siglip",
    )


def save_towers(out: Path | str, towers: LoadedTowers, source: str | Path) -> Path:
    """Write the folder `source` with the image tower of `towers` in it; `load_towers` and transformers read it.

    Raises:
        Unsupported: an open_clip folder, whose form is only read here.   And as `save_checkpoint`.
    """
    folder = _folder(str(source))
    kind = _model_type(folder)
    if kind not in _CLASSES:
        raise Unsupported("is only read", where=str(source), fix="save its transformers form first")
    model = _transformers_model(folder, _CLASSES[kind])
    model.vision_model.load_state_dict(towers.image.tower.state_dict())
    if towers.image.projection is not None:
        model.visual_projection.load_state_dict(towers.image.projection.state_dict())
    side = {name: read_small(folder / name) for name in _PROCESSORS if (folder / name).is_file()}
    return save_checkpoint(out, model=model, tokenizer=load_tokenizer(folder), extra=side)


# -- folders ----------------------------------------------------------------------------------------------------------


def _folder(name: str) -> Path:
    return resolve_folder(name, ("config.json", open_clip.CONFIG))


def _model_type(folder: Path) -> str:
    path = folder / "config.json"
    if not path.is_file():
        return ""
    found = strict_json(read_small(inside(folder, path.name), 8 << 20), str(path), finite=False)
    return str(found.get("model_type", "")) if isinstance(found, dict) else ""


def _transformers_model(folder: Path, name: str) -> Any:
    transformers = require("transformers", "hf")
    with warnings.catch_warnings():
        # models from elsewhere have no manifest: nothing a user could do about it
        warnings.filterwarnings("ignore", message=f".*{re.escape(NO_MANIFEST)}")
        return load_checkpoint(folder, getattr(transformers, name), dtype=torch.float32)


def _weight_files(folder: Path) -> list[str]:
    with TensorFolder(folder) as source:
        return list(source.shards)


def _preprocessing(folder: Path) -> tuple[Steps, tuple[float, ...], tuple[float, ...]]:
    """Steps, mean and deviation of the folder's image processor."""
    where = str(folder)
    if not any((folder / name).is_file() for name in _PROCESSORS):
        what = f"has no {PROCESSOR}, so how its images were prepared is unknown"
        raise Unsupported(what, where=where, fix="save its image processor into the folder")
    require("PIL", "vision")
    transformers = require("transformers", "hf")
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        what = f"its image processor cannot be read ({type(error).__name__}: {first:.100})"
        raise Damaged(what, where=where) from error
    steps = read_steps(processor, where)
    numbers = []
    for field, plain in (("image_mean", 0.0), ("image_std", 1.0)):
        value = getattr(processor, field) if getattr(processor, "do_normalize", False) else plain
        some = tuple(value) if isinstance(value, list | tuple) else (value,) * 3
        if len(some) != 3 or not all(isinstance(v, int | float) and math.isfinite(v) for v in some):
            raise Damaged(f"{field} is {some!r:.60}", where=where)
        numbers.append(tuple(float(v) for v in some))
    return steps, numbers[0], numbers[1]


def _digest(folder: Path, weights: Sequence[str]) -> str:
    """sha256 of the names and sha256 of all files that decide an embedding; from the manifest, if they stand in one.

    The manifest was compared with every byte when the weights were loaded.
    """
    body = read_manifest(folder)
    known = {} if body is None else {name: entry["sha256"] for name, entry in body["files"].items()}
    sha = hashlib.sha256(b"secateur towers 1")
    for name in (*weights, *(name for name in _SIDE_FILES if (folder / name).is_file())):
        if name not in known:
            with open(open_regular(inside(folder, name)), "rb") as file:
                known[name] = hashlib.file_digest(file, "sha256").hexdigest()
        sha.update(f"{name} {known[name]}\n".encode())
    return sha.hexdigest()


def _width(model: Any, kind: str) -> int:
    if kind == "siglip":
        text, image = int(model.text_model.head.out_features), int(model.config.vision_config.hidden_size)
        if text != image:
            what = f"its towers end in {image} (images) and {text} (texts) numbers"
            raise Unsupported(what, where="config.json")
        return image
    return int(model.visual_projection.out_features)


def _scale(model: Any, name: str) -> float:
    found = float(model.logit_scale.detach().double().exp())
    if not 0 < found < 1e6:
        raise Damaged(f"its logit scale is {found:g}", where=name, fix="CLIP's is about 100")
    return found


# -- images -----------------------------------------------------------------------------------------------------------


def _checked_images(images: Any) -> np.ndarray:
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3) or 0 in array.shape[1:3]:
        what = f"{array.dtype} {list(array.shape)}"
        raise BadInput(what, where="images", fix="give uint8 [n, H, W, C] with 1 or 3 channels")
    return array


def resized(images: np.ndarray, steps: Steps) -> np.ndarray:
    """uint8 [n, H, W, C] as Pillow resizes them to what the steps ask for; `apply_steps` then has only to cut."""
    if steps.resize is None:
        return images
    height, width = images.shape[1:3]
    shape = torch.empty(1, 1, height, width, device="meta")  # sizes without numbers
    wanted = apply_steps(shape, replace(steps, crop=None, factor=1.0)).shape[2:]
    if tuple(wanted) == (height, width):
        return images
    pil = require("PIL.Image", "vision")
    resample = pil.Resampling(_PIL[steps.resample])
    size = (wanted[1], wanted[0])
    out = [np.asarray(pil.fromarray(image.squeeze(-1) if image.shape[2] == 1 else image).resize(size, resample))
           for image in images]  # fmt: skip
    return np.stack(out).reshape(len(images), *wanted, images.shape[3])
