"""Random numbers that belong to one image: decided by (seed, purpose, index of the image), whatever the batch.

Every image has a generator of its own, so that a set cut into batches of any size, or made in part, gives the same
bytes.
"""

from __future__ import annotations

import hashlib

import numpy as np

from secateur.errors import BadInput

Array = np.ndarray


class Draws:
    """The generators of images first, first + 1, ... first + count - 1 for one purpose.

    Args:
        seed: not negative.
        purpose: what the numbers are for, such as "fog/3"; another purpose gives other numbers.
        first: index of the first image in its set. count: how many images.
    """

    def __init__(self, seed: int, purpose: str, first: int, count: int) -> None:
        check_seed(seed, first)
        key = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
        words = np.frombuffer(key[:16], dtype="<u4").tolist()
        self.each = [
            np.random.Generator(np.random.PCG64(np.random.SeedSequence([*words, index])))
            for index in range(first, first + count)
        ]

    def __len__(self) -> int:
        return len(self.each)

    def normal(self, *shape: int) -> Array:
        """Standard normal float32 [count, *shape]."""
        out = np.empty((len(self.each), *shape), np.float32)
        for row, generator in zip(out, self.each, strict=True):
            generator.standard_normal(dtype=np.float32, out=row)
        return out

    def uniform(self, *shape: int) -> Array:
        """Uniform float32 [count, *shape] in [0, 1)."""
        out = np.empty((len(self.each), *shape), np.float32)
        for row, generator in zip(out, self.each, strict=True):
            generator.random(dtype=np.float32, out=row)
        return out

    def between(self, low: float, high: float) -> list[float]:
        """One uniform number in [low, high) for each image."""
        return [generator.uniform(low, high) for generator in self.each]

    def integers(self, low: int, high: int, *shape: int) -> Array:
        """Uniform int32 [count, *shape] in [low, high)."""
        out = np.empty((len(self.each), *shape), np.int32)
        for row, generator in zip(out, self.each, strict=True):
            row[...] = generator.integers(low, high, shape, dtype=np.int32)
        return out


def check_seed(seed: int, first: int = 0) -> None:
    """BadInput unless both are integers from 0 on."""
    for name, value in (("seed", seed), ("first", first)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
            raise BadInput(f"{value!r:.40} is no whole number from 0 on", where=name, fix="use 0, 1, 2, ...")
