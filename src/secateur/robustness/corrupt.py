"""The 19 corruptions of ImageNet-C and CIFAR-C, seeded, on arrays or tensors of any size: our own port.

    corrupt(images, "fog", 3)                    uint8 or float in [0, 1]; numpy [N, H, W, C] or torch [N, C, H, W]

This is a secateur rendering from the published parameters. It is not the published set: random streams differ,
ImageNet-C was stored as JPEG of quality 85, frost blends in our own drawings (`frost_images=` takes photos) and
spatter stands on our own edge detector. Compare models within one rendering, and take the published files where a
paper's number is wanted.

One channel (grey): noise, blur and digital act as on colour; snow and brightness take the pixel for its own luma and
value; frost and spatter use the luma of their colours; saturate leaves a grey image as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.errors import BadInput
from secateur.robustness import blur, digital, elastic, frost, noise, spatter, weather
from secateur.robustness.draws import Array, Draws, check_seed
from secateur.robustness.severities import EXTRA, NAMES, PHOTO_SCALE, Numbers, parameters

__all__ = ["EXTRA", "NAMES", "RENDERING", "corrupt"]

RENDERING = "secateur rendering"
"""What results made with these corruptions are labelled, to tell them from the published sets."""

Corruption = Callable[[Array, Draws, Numbers], Array]
_FUNCTIONS: dict[str, Corruption] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "speckle_noise": noise.speckle_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "gaussian_blur": blur.gaussian_blur,
    "snow": weather.snow,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic_transform": elastic.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
    "saturate": digital.saturate,
    "spatter": spatter.spatter,
}
# Values worked on at once: what fits in a processor's cache, and for glass, whose steps are many and tiny, more images.
_AT_ONCE = 1 << 19
_AT_ONCE_GLASS = 1 << 22


def corrupt(
    images: Array | Tensor,
    name: str,
    severity: int,
    *,
    table: str = "cifar-c",
    seed: int = 0,
    first: int = 0,
    frost_images: str | Path | None = None,
) -> Any:
    """A corrupted copy, of the kind, shape, dtype and device of `images`.

    Args:
        images: uint8, or float in [0, 1]; numpy [N, H, W, C] or torch [N, C, H, W]; C is 1 or 3; any size.
        name: one of `NAMES` or `EXTRA`.   severity: 1 to 5.   table: "cifar-c" or "imagenet-c".
        seed, first: image i of these has the randomness of (seed, name, severity, first + i), so that a set taken in
            batches, each with its own `first`, gives the same bytes as in one piece.
        frost_images: a folder of photos for frost instead of our drawings.

    Raises:
        BadInput: an unknown name, severity or table; images of another kind or shape, not finite or outside [0, 1].
        Unsupported: Pillow is needed (JPEG, photos) and not installed.
    """
    c = parameters(name, severity, table)
    check_seed(seed, first)
    given = to_array(images)
    function = _with_photos(given, table, seed, frost_images) if name == "frost" else _FUNCTIONS[name]
    out = np.empty(given.shape, given.dtype)
    for start, stop in pieces(given, _AT_ONCE_GLASS if name == "glass_blur" else _AT_ONCE):
        x = unit(given[start:stop])
        draws = Draws(seed, f"{name}/{severity}", first + start, len(x))
        stored(function(x, draws, c), out[start:stop])
    return like(out, images)


def _with_photos(given: Array, table: str, seed: int, folder: str | Path | None) -> Corruption:
    height, width, channels = given.shape[1:]
    whole = frost.drawn(int(seed)) if folder is None else frost.read_photos(folder)
    pictures = [frost.scaled(picture, PHOTO_SCALE[table], height, width) for picture in whole]

    def function(x: Array, draws: Draws, c: Numbers) -> Array:
        return weather.frost(x, frost.crops(pictures, draws, height, width, channels), c)

    return function


# -- kinds of images ------------------------------------------------------------------------------------------------


def to_array(images: Any) -> Array:
    """Checked images as numpy [N, H, W, C], uint8 or float (torch's bfloat16 as float32); not copied where avoidable.

    Raises:
        BadInput: not a tensor or an array, of another dtype or shape, or empty. (`unit` checks the values.)
    """
    if isinstance(images, Tensor):
        found = images.detach().cpu()
        found = (found.float() if found.dtype == torch.bfloat16 else found).numpy()
        found = np.moveaxis(found, 1, -1) if found.ndim == 4 else found
        wanted = "torch [N, C, H, W]"
    elif isinstance(images, np.ndarray):
        found, wanted = images, "numpy [N, H, W, C]"
    else:
        raise BadInput(f"{type(images).__name__}", where="images", fix="pass a numpy array or a torch tensor")
    if found.ndim != 4 or found.shape[3] not in (1, 3):
        raise BadInput(
            f"shape {list(images.shape)}", where="images", fix=f"pass {wanted} with 1 or 3 channels"
        )
    if 0 in found.shape:
        raise BadInput(f"none in shape {list(images.shape)}", where="images", fix="pass at least one image")
    if found.dtype != np.uint8 and not np.issubdtype(found.dtype, np.floating):
        raise BadInput(f"dtype {images.dtype}", where="images", fix="pass uint8, or float in [0, 1]")
    return found


def like(found: Array, images: Array | Tensor) -> Any:
    """[N, H, W, C] in the kind, layout, dtype and device of `images`."""
    if not isinstance(images, Tensor):
        return found
    tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(found, -1, 1)))
    return tensor.to(device=images.device, dtype=images.dtype)


def pieces(images: Array, values: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of runs of images of about so many values."""
    step = max(1, values // images[0].size)
    for start in range(0, len(images), step):
        yield start, min(start + step, len(images))


def unit(images: Array) -> Array:
    """float32 in [0, 1] of uint8 or float images, which is checked."""
    if images.dtype == np.uint8:
        return np.divide(images, np.float32(255), dtype=np.float32)
    x = images.astype(np.float32)
    if not np.isfinite(x).all():
        raise BadInput("hold NaN or Inf", where="images", fix="pass finite values in [0, 1]")
    if x.min() < 0 or x.max() > 1:
        raise BadInput(
            f"values from {x.min():g} to {x.max():g}",
            where="images",
            fix="float images lie in [0, 1]: undo the normalisation, or divide by 255",
        )
    return x


def stored(x: Array, out: Array) -> None:
    """Clip to [0, 1] and write as `out` keeps it; 8 bits are rounded down, as the published sets are."""
    if out.dtype == np.uint8:
        levels = blur.levels(x)
        out[...] = np.rint(levels * np.float32(255))
    else:
        out[...] = np.clip(x, 0, 1)
