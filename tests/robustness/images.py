"""Images for the tests: smooth blobs with some grain, so that blur, noise and contrast all have something to act on."""

from __future__ import annotations

import numpy as np
import pytest


def blobs(n: int = 4, height: int = 32, width: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    """uint8 [n, height, width, channels], values from about 20 to 235."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width][:, None, :, :, None] / max(height, width)
    out = np.zeros((n, height, width, channels))
    for _ in range(6):
        phase, tilt = rng.uniform(0, 6.28, (n, 1, 1, channels)), rng.uniform(-9, 9, (2, n, 1, 1, channels))
        out += np.sin(tilt[0] * y + tilt[1] * x + phase)
    out = 0.5 + 0.13 * out + rng.normal(0, 0.05, out.shape)
    return np.rint(out.clip(0.08, 0.92) * 255).astype(np.uint8)


def floats(n: int = 4, height: int = 32, width: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    """The same as float32 in [0, 1]."""
    return blobs(n, height, width, channels, seed).astype(np.float32) / np.float32(255)


def needs_pillow() -> None:
    """Skip where Pillow is not installed."""
    pytest.importorskip("PIL.Image", reason="Pillow is not installed (pip install 'secateur[vision]')")
