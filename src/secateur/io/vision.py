"""transformers' image classifiers, wrapped so that they take [0, 1] images and return logits, as our networks do.

What the folder's image processor would do to a picture (resize, cut out the middle, scale, normalise) is done inside,
on the tensor, in that order and with its numbers; sizes that fit are left alone. Only processors that do nothing else
are taken: any other is refused by name, since a model fed in another way than it was trained is measured wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from secateur.errors import Damaged, Unsupported, require
from secateur.io.hub import load_folder
from secateur.io.networks import Classifier, Settings, check_batch

PROCESSOR = "preprocessor_config.json"
_PLAIN = ("ViT", "DeiT", "Bit", "CLIP", "Siglip", "ConvNext", "MobileNetV1", "MobileNetV2")
_RESAMPLE = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}  # PIL's numbers, torch's words
_WARPED = 384  # ConvNext: from this size on the picture is squeezed instead of cut


@dataclass(frozen=True)
class Steps:
    """resize: (height, width), or the short side alone, or None. crop: (height, width) or None. factor: on [0, 1]."""

    resize: tuple[int, ...] | None
    resample: str
    crop: tuple[int, int] | None
    factor: float


class VisionClassifier(Classifier):
    """`model` of transformers behind its image processor's steps; mean and std are the processor's."""

    def __init__(self, model: Any, settings: Settings, steps: Steps, processor: str) -> None:
        super().__init__(settings)
        self.model, self.steps, self.processor = model, steps, processor

    def forward(self, images: Tensor) -> Tensor:
        check_batch(images, self.settings)
        return super().forward(apply_steps(images, self.steps))

    def classify(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x).logits


def load_vision(folder: Path) -> VisionClassifier:
    """The wrapped classifier of a local transformers folder, in evaluation mode.

    Raises: Unsupported: no image processor beside it, one that does more than this file says, or no class head.
        Damaged: a manifest that does not fit.   And as `hub.load_folder`.
    """
    where = str(folder)
    processor = _processor(folder)
    model: Any = load_folder(folder)
    config = model.config
    if not type(model).__name__.endswith("ForImageClassification"):
        what = f"{type(model).__name__} is no image classifier"
        raise Unsupported(what, where=where, fix="name a folder of a *ForImageClassification")
    channels = int(getattr(config, "num_channels", 3))
    steps = read_steps(processor, where)
    normalise = bool(getattr(processor, "do_normalize", False))
    settings = Settings(
        architecture=type(model).__name__,
        channels=channels,
        size=_size(steps, config, where),
        classes=int(config.num_labels),
        mean=_numbers(processor.image_mean if normalise else 0.0, channels, where),
        std=_numbers(processor.image_std if normalise else 1.0, channels, where),
    )
    text = (folder / PROCESSOR).read_text(encoding="utf-8")
    return VisionClassifier(model, settings, steps, text).eval()


def apply_steps(images: Tensor, steps: Steps) -> Tensor:
    """[N, C, H, W] in [0, 1] to what the processor makes of it before it normalises."""
    if steps.resize is not None:
        images = _resized(images, steps.resize, steps.resample)
    if steps.crop is not None:
        images = _middle(images, *steps.crop)
    return images * steps.factor if steps.factor != 1 else images


def read_steps(processor: Any, where: str) -> Steps:
    """What an image processor of transformers does, read from its fields. Unsupported for one that does more."""
    name = type(processor).__name__
    stem = name.removesuffix("Pil").removesuffix("Fast").removesuffix("ImageProcessor")
    known = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
    active = {
        k for k, v in processor.to_dict().items() if k.startswith("do_") and v is True and k not in known
    }
    resample = _RESAMPLE.get(int(getattr(processor, "resample", None) or 0))
    if stem not in _PLAIN or active or resample is None:
        what = f"its image processor {name} {f'with {min(active)} ' if active else ''}is not known here"
        raise Unsupported(what, where=where, fix=f"known: {', '.join(_PLAIN)} with plain or cubic resizing")
    size = processor.size if getattr(processor, "do_resize", False) else None
    crop = processor.crop_size if getattr(processor, "do_center_crop", False) else None
    resize = None if size is None else _sides(size, where)
    cut = None if crop is None else _sides(crop, where) * 2
    if stem == "ConvNext" and resize is not None and len(resize) == 1:
        side = resize[0]
        resize, cut = (
            ((side, side), cut) if side >= _WARPED else ((int(side / processor.crop_pct),), (side, side))
        )
    # its factor is for 0..255; images here come in [0, 1]
    factor = 255 * float(processor.rescale_factor) if getattr(processor, "do_rescale", False) else 255.0
    factor = 1.0 if abs(factor - 1) < 1e-9 else factor
    return Steps(resize, resample, None if cut is None else (cut[0], cut[1]), factor)


def _processor(folder: Path) -> Any:
    if not (folder / PROCESSOR).is_file():
        what = f"has no {PROCESSOR}, so how its images were normalised is unknown"
        raise Unsupported(what, where=str(folder), fix="save its image processor into the folder")
    require("PIL", "vision")
    transformers = require("transformers", "hf")
    try:
        return transformers.AutoImageProcessor.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        what = f"cannot be read ({type(error).__name__}: {first:.100})"
        raise Damaged(what, where=str(folder / PROCESSOR)) from error


def _sides(size: Any, where: str) -> tuple[int, ...]:
    words = ("height", "width", "shortest_edge", "longest_edge")
    found = [int((size.get(w) if isinstance(size, dict) else getattr(size, w, None)) or 0) for w in words]
    if found[0] and found[1]:
        return found[0], found[1]
    if found[2] and not found[3]:
        return (found[2],)
    raise Unsupported(f"a size of {size!s:.80}", where=where, fix="known: height and width, or shortest_edge")


def _size(steps: Steps, config: Any, where: str) -> int:
    for sides in (steps.crop, steps.resize, (getattr(config, "image_size", None),)):
        if sides and isinstance(sides[0], int):
            return sides[0]
    raise Unsupported("neither its processor nor its config names an image size", where=where)


def _numbers(value: Any, channels: int, where: str) -> tuple[float, ...]:
    numbers = (
        tuple(float(v) for v in value) if isinstance(value, list | tuple) else (float(value),) * channels
    )
    if len(numbers) != channels:
        raise Damaged(f"normalises {len(numbers)} channels, the model takes {channels}", where=where)
    return numbers


def _resized(images: Tensor, size: tuple[int, ...], mode: str) -> Tensor:
    height, width = images.shape[-2:]
    if len(size) == 1:
        # the long side is cut down to a whole number, as transformers does
        short, long = min(height, width), max(height, width)
        other = int(size[0] * long / short)
        size = (size[0], other) if height <= width else (other, size[0])
    if (height, width) == size:
        return images
    if mode == "nearest-exact":
        return F.interpolate(images, size, mode=mode)
    return F.interpolate(images, size, mode=mode, align_corners=False, antialias=True).clamp(0, 1)


def _middle(images: Tensor, height: int, width: int) -> Tensor:
    """Cut out the middle; a smaller picture gets a border of zeros first, as transformers gives it."""
    down, right = max(0, height - images.shape[-2]), max(0, width - images.shape[-1])
    if down or right:
        top, left = -(-down // 2), -(-right // 2)
        images = F.pad(images, (left, right - left, top, down - top))
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width]
