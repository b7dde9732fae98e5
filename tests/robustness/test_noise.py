from __future__ import annotations

import numpy as np
import pytest

from secateur.robustness import noise
from secateur.robustness.draws import Draws

FLAT = np.full((40, 32, 32, 3), 0.25, np.float32)


def draws(count: int = 40) -> Draws:
    return Draws(0, "test", 0, count)


def test_gaussian_noise_has_its_sigma() -> None:
    change = noise.gaussian_noise(FLAT, draws(), (0.08,)) - FLAT
    assert change.std() == pytest.approx(0.08, rel=0.01) and abs(change.mean()) < 1e-3


def test_speckle_noise_scales_with_the_pixel_and_leaves_black() -> None:
    change = noise.speckle_noise(FLAT, draws(), (0.2,)) - FLAT
    assert change.std() == pytest.approx(0.2 * 0.25, rel=0.01)
    assert not noise.speckle_noise(FLAT * 0, draws(), (0.2,)).any()


def test_shot_noise_counts_photons() -> None:
    found = noise.shot_noise(FLAT, draws(), (60,))
    assert np.allclose(found * 60, np.rint(found * 60), atol=1e-4)
    assert found.mean() == pytest.approx(0.25, rel=0.01)
    assert found.var() == pytest.approx(0.25 / 60, rel=0.02)  # a Poisson number varies by its mean


def test_impulse_noise_sets_its_share_to_black_and_white_alike() -> None:
    found = noise.impulse_noise(FLAT, draws(), (0.1,))
    assert (found == 0).mean() == pytest.approx(0.05, rel=0.05)
    assert (found == 1).mean() == pytest.approx(0.05, rel=0.05)
    assert ((found == 0) | (found == 1) | (found == np.float32(0.25))).all()
    hit = found != FLAT
    assert (hit.any(-1) & ~hit.all(-1)).mean() > 0, "each channel is hit for itself"
