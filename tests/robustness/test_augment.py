from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from secateur.errors import BadInput
from secateur.robustness import augment
from secateur.robustness.augment import augmix, gaussian_augment
from secateur.robustness.draws import Draws
from tests.robustness.images import blobs, floats, needs_pillow


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(32, 32), (8, 8), (9, 14)])
def test_augmix_keeps_kind_shape_and_range(channels: int, shape: tuple[int, int]) -> None:
    needs_pillow()
    images = blobs(4, *shape, channels)
    found = augmix(images)
    assert found.dtype == np.uint8 and found.shape == images.shape and not np.array_equal(found, images)
    tensor = torch.from_numpy(images.transpose(0, 3, 1, 2) / np.float32(255))
    real = augmix(tensor)
    assert real.shape == tensor.shape and real.dtype == torch.float32 and real.min() >= 0 and real.max() <= 1
    assert np.abs(real.permute(0, 2, 3, 1).numpy() * 255 - found).max() <= 0.51


def test_augmix_is_decided_by_seed_and_index_whatever_the_batch() -> None:
    needs_pillow()
    images = blobs(6, 12, 12)
    whole = augmix(images, seed=3)
    assert np.array_equal(
        np.concatenate([augmix(images[:4], seed=3), augmix(images[4:], seed=3, first=4)]), whole
    )
    assert not np.array_equal(augmix(images, seed=4), whole)


def test_augmix_is_the_weighted_sum_of_its_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_pillow()
    image = floats(1, 8, 8)
    counted = []

    def constant(self: Any, picture: Any, generator: np.random.Generator, severity: float) -> Any:
        counted.append(severity)
        return self.image.new("RGB", picture.size, (51, 51, 51))  # 0.2

    for name in ("autocontrast", "equalize", "posterize", "rotate", "solarize", "shear_x", "shear_y",
                 "translate_x", "translate_y"):  # fmt: skip
        monkeypatch.setattr(augment._Pillow, name, constant)
    found = augmix(image, chains=4, depth=2, severity=1, alpha=2.0)
    generator = Draws(0, "augmix", 0, 1).each[0]
    generator.dirichlet([2.0] * 4)
    share = generator.beta(2.0, 2.0)
    assert counted == [1] * 8
    assert np.abs(found - ((1 - share) * image + share * 0.2)).max() < 1e-6


def test_depths_are_one_to_three(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_pillow()
    calls = []
    monkeypatch.setattr(augment, "level", lambda generator, severity: 0.1)
    for name in ("autocontrast", "equalize", "posterize", "rotate", "solarize", "shear_x", "shear_y",
                 "translate_x", "translate_y"):  # fmt: skip
        monkeypatch.setattr(augment._Pillow, name, lambda self, picture, *_: calls.append(1) or picture)
    counts = set()
    for index in range(30):
        calls.clear()
        augmix(blobs(1, 8, 8), chains=1, first=index)
        counts.add(len(calls))
    assert counts == {1, 2, 3}


def test_the_maxima_of_the_operations() -> None:
    """At severity 10 with the level at its top, against what the sheet allows."""
    needs_pillow()
    pillow = augment._Pillow()
    image = pillow.picture(np.full((30, 60, 3), 200 / 255, np.float32))

    class Top(np.random.Generator):
        def uniform(self, low: float = 0, high: float = 1, size: Any = None) -> float:  # type: ignore[override]
            return high

        def random(self, *args: Any, **kwargs: Any) -> float:  # type: ignore[override]
            return 0.0

    top = Top(np.random.PCG64(0))
    black = {name: (np.asarray(getattr(pillow, name)(image, top, 10)) == 0).all(-1) for name in
             ("translate_x", "translate_y", "shear_x", "shear_y", "rotate")}  # fmt: skip
    assert black["translate_x"].mean() == pytest.approx(1 / 3, abs=0.02)
    assert black["translate_y"].mean() == pytest.approx(1 / 3, abs=0.04)
    assert black["shear_x"][-1].sum() == pytest.approx(9, abs=1)  # 0.3 of 30 rows
    assert black["shear_y"][:, -1].sum() == pytest.approx(18, abs=1)  # 0.3 of 60 columns
    assert (np.asarray(pillow.posterize(image, top, 10)) == 128).all()  # one bit left
    assert (np.asarray(pillow.solarize(image, top, 10)) == 55).all()  # all inverted
    assert (np.asarray(pillow.rotate(image, top, 10)) == np.asarray(image.rotate(30, resample=2))).all()


def test_gaussian_noise_hits_its_share_with_its_sigma() -> None:
    images = np.full((400, 8, 8, 3), 0.5, np.float32)
    found = gaussian_augment(images, probability=0.3, sigma=0.05)
    hit = (found != images).any((1, 2, 3))
    assert hit.mean() == pytest.approx(0.3, abs=0.07)
    assert (found[hit] - 0.5).std() == pytest.approx(0.05, rel=0.03)
    parts = [
        gaussian_augment(images[i : i + 37], probability=0.3, sigma=0.05, first=i) for i in range(0, 400, 37)
    ]
    assert np.array_equal(np.concatenate(parts), found)
    assert np.array_equal(gaussian_augment(blobs(), probability=0.0), blobs())
    assert gaussian_augment(blobs(), probability=1.0, sigma=0.5).dtype == np.uint8


@pytest.mark.parametrize(
    "settings",
    [{"chains": 0}, {"chains": 2.0}, {"depth": -1}, {"severity": 0}, {"severity": 11}, {"severity": math.nan},
     {"alpha": 0.0}, {"alpha": math.inf}, {"seed": -1}],
)  # fmt: skip
def test_augmix_refuses_what_is_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(BadInput) as error:
        augmix(blobs(1), **settings)
    assert next(iter(settings)) in str(error.value) and "\n" not in str(error.value)


def test_gaussian_refuses_what_is_out_of_range() -> None:
    for settings in ({"probability": 1.1}, {"sigma": -0.1}, {"probability": math.nan}):
        with pytest.raises(BadInput, match=next(iter(settings))):
            gaussian_augment(blobs(1), **settings)
