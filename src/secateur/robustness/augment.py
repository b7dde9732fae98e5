"""Augmentations that make a model robust: AugMix and Gaussian noise, seeded image by image like the corruptions.

    w ~ Dirichlet(a, ..., a), m ~ Beta(a, a):    x_aug = (1 - m) x + m sum_i w_i chain_i(x)

A chain is one to three random operations on 8 bits, none of which is among the 15 corruptions. The paper mixes after
normalisation; the weights sum to 1, so that mixing in [0, 1] and normalising the mix is the same.

Give every epoch its own seed: the same seed and index give the same augmentation.
Paper: AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty (2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from secateur.errors import BadInput, require
from secateur.robustness.corrupt import like, pieces, to_array, unit
from secateur.robustness.draws import Array, Draws, check_seed

_AT_ONCE = 1 << 19


def augmix(
    images: Array | Tensor,
    *,
    chains: int = 3,
    depth: int = 0,
    severity: float = 3,
    alpha: float = 1.0,
    seed: int = 0,
    first: int = 0,
) -> Any:
    """Mixed copies, of the kind, shape, dtype and device of `images` (8 bits are rounded to the nearest).

    Args:
        images: uint8, or float in [0, 1]; numpy [N, H, W, C] or torch [N, C, H, W]; C is 1 or 3.
        chains: how many. depth: operations in each, 0 draws 1, 2 or 3 for each chain.
        severity: 0.1 to 10; 3 on CIFAR, 1 on ImageNet. alpha: of Dirichlet and Beta.
        seed, first: image i has the randomness of (seed, first + i).

    Raises:
        BadInput: settings out of range; images that are none (see `corrupt`).   Unsupported: Pillow is not installed.
    """
    _check("chains", chains, type(chains) is int and chains >= 1, "use 3")
    _check("depth", depth, type(depth) is int and depth >= 0, "use 1, 2, ..., or 0 for random depths")
    _check("severity", severity, 0.1 <= severity <= 10, "use 3 for CIFAR, 1 for ImageNet")
    _check("alpha", alpha, 0 < alpha < math.inf, "use 1")
    check_seed(seed, first)
    pillow = _Pillow()

    def mixed(image: Array, generator: np.random.Generator) -> Array:
        weights = generator.dirichlet([alpha] * chains)
        share = generator.beta(alpha, alpha)
        start = pillow.picture(image)
        out = image * np.float32(1 - share)
        for weight in weights:
            picture = start
            for _ in range(depth or int(generator.integers(1, 4))):
                operation = pillow.operations[int(generator.integers(len(pillow.operations)))]
                picture = operation(picture, generator, severity)
            out += pillow.pixels(picture, image.shape) * np.float32(share * weight)
        return out

    return _each(images, "augmix", seed, first, mixed)


def gaussian_augment(
    images: Array | Tensor, *, probability: float = 0.5, sigma: float = 0.1, seed: int = 0, first: int = 0
) -> Any:
    """Copies of which a random share has N(0, sigma) noise, clipped to [0, 1]; the others are left exactly as they are.

    Args:
        images, seed, first: as for `augmix`.   probability: of an image being noisy.   sigma: of the [0, 1] range.

    Raises:
        BadInput: settings out of range; images that are none.
    """
    _check("probability", probability, 0 <= probability <= 1, "give a share in [0, 1]")
    _check("sigma", sigma, 0 <= sigma < math.inf, "as in 0.1")

    def noisy(image: Array, generator: np.random.Generator) -> Array:
        if generator.random() >= probability:
            return image
        noise = generator.standard_normal(image.shape, dtype=np.float32)
        return np.clip(image + noise * np.float32(sigma), 0, 1)

    return _each(images, "gaussian augmentation", seed, first, noisy)


def _check(name: str, value: Any, right: bool, fix: str) -> None:
    if not right:
        raise BadInput(f"{value!r:.40} is out of range", where=name, fix=fix)


def _each(
    images: Array | Tensor,
    purpose: str,
    seed: int,
    first: int,
    function: Callable[[Array, np.random.Generator], Array],
) -> Any:
    given = to_array(images)
    out = np.empty(given.shape, given.dtype)
    for start, stop in pieces(given, _AT_ONCE):
        x = unit(given[start:stop])
        draws = Draws(seed, purpose, first + start, len(x))
        for place, image, generator in zip(out[start:stop], x, draws.each, strict=True):
            found = function(image, generator)
            place[...] = np.rint(found * np.float32(255)) if out.dtype == np.uint8 else np.clip(found, 0, 1)
    return like(out, images)


class _Pillow:
    """The operations, on pictures of the package that is imported only when one augments."""

    def __init__(self) -> None:
        self.image = require("PIL.Image", "vision")
        self.ops = require("PIL.ImageOps", "vision")
        self.operations = (
            self.autocontrast, self.equalize, self.posterize, self.rotate, self.solarize,
            self.shear_x, self.shear_y, self.translate_x, self.translate_y,
        )  # fmt: skip

    def picture(self, image: Array) -> Any:
        bytes_ = np.rint(image * np.float32(255)).astype(np.uint8)
        return self.image.fromarray(bytes_ if bytes_.shape[2] == 3 else bytes_[..., 0])

    def pixels(self, picture: Any, shape: tuple[int, ...]) -> Array:
        return np.asarray(picture).reshape(shape).astype(np.float32) / np.float32(255)

    def autocontrast(self, picture: Any, generator: np.random.Generator, severity: float) -> Any:
        return self.ops.autocontrast(picture)

    def equalize(self, picture: Any, generator: np.random.Generator, severity: float) -> Any:
        return self.ops.equalize(picture)

    def posterize(self, picture: Any, generator: np.random.Generator, severity: float) -> Any:
        return self.ops.posterize(picture, max(4 - int(level(generator, severity) * 4), 1))

    def solarize(self, picture: Any, generator: np.random.Generator, severity: float) -> Any:
        return self.ops.solarize(picture, 256 - int(level(generator, severity) * 256))

    def rotate(self, picture: Any, generator: np.random.Generator, severity: float) -> Any:
        degrees = sign(generator) * int(level(generator, severity) * 30)
        return picture.rotate(degrees, resample=self.image.Resampling.BILINEAR)

    def shear_x(self, picture: Any, generator: np.random.Generator, severity: float) -> Any:
        return self._affine(picture, (1, sign(generator) * level(generator, severity) * 0.3, 0, 0, 1, 0))

    def shear_y(self, picture: Any, generator: np.random.Generator, severity: float) -> Any:
        return self._affine(picture, (1, 0, 0, sign(generator) * level(generator, severity) * 0.3, 1, 0))

    def translate_x(self, picture: Any, generator: np.random.Generator, severity: float) -> Any:
        pixels = sign(generator) * int(level(generator, severity) * picture.width / 3)
        return self._affine(picture, (1, 0, pixels, 0, 1, 0))

    def translate_y(self, picture: Any, generator: np.random.Generator, severity: float) -> Any:
        pixels = sign(generator) * int(level(generator, severity) * picture.height / 3)
        return self._affine(picture, (1, 0, 0, 0, 1, pixels))

    def _affine(self, picture: Any, numbers: tuple[float, ...]) -> Any:
        kind, filter_ = self.image.Transform.AFFINE, self.image.Resampling.BILINEAR
        return picture.transform(picture.size, kind, numbers, resample=filter_)


def level(generator: np.random.Generator, severity: float) -> float:
    """How much of an operation's maximum: U(0.1, severity) / 10."""
    return generator.uniform(0.1, severity) / 10


def sign(generator: np.random.Generator) -> int:
    """1 or -1, with equal chances."""
    return 1 if generator.random() < 0.5 else -1
