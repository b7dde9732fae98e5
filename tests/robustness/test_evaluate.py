from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.engine.events import Event
from secateur.errors import BadInput, Damaged
from secateur.robustness import metrics
from secateur.robustness.corrupt import corrupt
from secateur.robustness.evaluate import evaluate_corruptions, reference_of, summary
from secateur.robustness.severities import NAMES
from tests.robustness.images import blobs

IMAGES = blobs(20, 12, 12)
LABELS = np.arange(20) % 3


class Bright(nn.Module):
    """Logits from the mean of each channel; which class wins changes with brightness and colour."""

    def __init__(self, wrap: bool = False) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.9)
        self.wrap = wrap
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Any:
        assert not self.training and not torch.is_grad_enabled()
        assert x.dtype == torch.float32 and x.min() >= 0 and x.max() <= 1 and x.shape[1] == 3
        self.sizes.append(len(x))
        out = self.drop(x.mean((2, 3))) * 40
        return SimpleNamespace(logits=out) if self.wrap else out


def by_hand(images: np.ndarray) -> float:
    means = images.astype(float).mean((1, 2))
    return float((means.argmax(1) == LABELS).mean())


def test_every_cell_by_hand() -> None:
    model, told = Bright(), []
    found = evaluate_corruptions(
        model,
        IMAGES,
        LABELS,
        names=("saturate", "fog", "snow"),
        severities=(1, 4),
        batch=8,
        listen=told.append,
        seed=3,
    )
    assert found["clean"]["accuracy"] == pytest.approx(by_hand(IMAGES))
    for name, row in found["corruptions"].items():
        for severity, cell in row.items():
            wanted = by_hand(corrupt(IMAGES, name, int(severity), seed=3))
            assert cell["accuracy"] == pytest.approx(wanted)
    cells = [found["corruptions"][n][s]["accuracy"] for n in ("fog", "snow") for s in ("1", "4")]
    assert found["robust_accuracy"] == pytest.approx(np.mean(cells)), "saturate is none of the 15"
    assert found["by_corruption"]["fog"] == pytest.approx(np.mean(cells[:2]))
    assert found["label"] == "secateur rendering" and found["count"] == 20 and found["seed"] == 3
    assert found["mce"] is None and json.loads(json.dumps(found, allow_nan=False)) == found
    assert model.training and max(model.sizes) == 8
    assert told[0] == Event("corruptions", 0, 6, f"clean {found['clean']['accuracy']:.2%}")
    assert [(e.stage, e.done, e.total) for e in told[1:]] == [("corruptions", i, 6) for i in range(1, 7)]
    assert told[1].detail.startswith("saturate 1: ")


def test_calibration_is_that_of_the_metrics() -> None:
    found = evaluate_corruptions(Bright(), IMAGES, LABELS, names=("fog",), severities=(2,))
    x = torch.from_numpy(corrupt(IMAGES, "fog", 2).transpose(0, 3, 1, 2) / np.float32(255))
    wanted = metrics.ece(x.mean((2, 3)) * 40, LABELS)
    assert found["corruptions"]["fog"]["2"]["ece"] == pytest.approx(wanted, abs=1e-5) == found["ece"]
    assert found["clean"]["ece"] > 0


def test_neither_batch_nor_kind_nor_cache_changes_a_figure(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"names": ("fog", "gaussian_noise"), "severities": (1, 5)}
    wanted = evaluate_corruptions(Bright(), IMAGES, LABELS, **settings)
    tensor = torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255
    assert evaluate_corruptions(Bright(wrap=True), IMAGES, LABELS, batch=3, **settings) == wanted
    assert evaluate_corruptions(Bright(), tensor, torch.from_numpy(LABELS), **settings) == wanted
    cache, told = tmp_path / "cache", []
    assert (
        evaluate_corruptions(Bright(), IMAGES, LABELS, cache=cache, listen=told.append, **settings) == wanted
    )
    assert [e.stage for e in told] == ["corrupted set"] * 2 + ["corruptions"] * 5
    times = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert evaluate_corruptions(Bright(), IMAGES, LABELS, cache=cache, **settings) == wanted
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == times
    raw = bytearray((cache / "fog.npy").read_bytes())
    raw[-1] ^= 1
    (cache / "fog.npy").write_bytes(bytes(raw))
    with pytest.raises(Damaged, match=r"fog\.npy"):
        evaluate_corruptions(Bright(), IMAGES, LABELS, cache=cache, **settings)


def test_published_files_are_measured_as_they_are(tmp_path: Path) -> None:
    dark = np.zeros((100, 12, 12, 3), np.uint8)
    dark[..., 2] = 9  # class 2 wins everywhere
    np.save(tmp_path / "fog.npy", dark)
    np.save(tmp_path / "labels.npy", np.tile(LABELS, 5))
    found = evaluate_corruptions(Bright(), IMAGES, LABELS, names=("fog",), cache=tmp_path)
    assert found["label"] == "published set" and found["seed"] is None
    assert found["robust_accuracy"] == pytest.approx((LABELS == 2).mean())
    with pytest.raises(BadInput, match="other labels"):
        evaluate_corruptions(Bright(), IMAGES, LABELS[::-1].copy(), names=("fog",), cache=tmp_path)
    with pytest.raises(BadInput, match="does not hold snow"):
        evaluate_corruptions(Bright(), IMAGES, LABELS, names=("snow",), cache=tmp_path)


def whole(accuracy: Any) -> dict[str, Any]:
    return {n: {str(s): {"accuracy": accuracy(n), "ece": 0.1} for s in range(1, 6)} for n in NAMES}


def test_mce_needs_a_reference_and_every_cell() -> None:
    cells = whole(lambda name: 1 - metrics.ALEXNET[name])
    imagenet = summary(cells, 1 - metrics.ALEXNET_CLEAN, table="imagenet-c")
    assert imagenet["mce"] == pytest.approx(100) and imagenet["relative_mce"] == pytest.approx(100)
    assert summary(cells, 0.5, table="cifar-c")["mce"] is None
    del cells["fog"]
    assert summary(cells, 0.5, table="imagenet-c")["mce"] is None


def test_a_measured_model_is_its_own_100() -> None:
    result = {"clean": {"accuracy": 0.9}, **summary(whole(lambda name: 0.7), 0.9, table="cifar-c")}
    reference = reference_of(result)
    again = summary(whole(lambda name: 0.7), 0.9, table="cifar-c", reference=reference)
    assert again["mce"] == pytest.approx(100) and again["relative_mce"] == pytest.approx(100)
    half = summary(whole(lambda name: 0.85), 0.9, table="cifar-c", reference=reference)
    assert half["mce"] == pytest.approx(50) and half["relative_mce"] == pytest.approx(25)
    costless = {"clean": 0.4, "errors": reference["errors"]}
    assert summary(whole(lambda name: 0.7), 0.9, table="cifar-c", reference=costless)["relative_mce"] is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"names": ()}, "names"),
        ({"names": "fog"}, "names"),
        ({"names": ("fog", "fog")}, "each once"),
        ({"names": ("frog",)}, "did you mean"),
        ({"severities": ()}, "severities"),
        ({"severities": (1, 1)}, "each once"),
        ({"severities": (6,)}, "no severity"),
        ({"table": "c"}, "no table"),
        ({"batch": 0}, "batch"),
        ({"seed": -1}, "seed"),
        ({"labels": LABELS[:3]}, "labels"),
        ({"labels": LABELS + 1}, "3 classes"),
        ({"reference": {"clean": 0.1, "errors": {"fog": 0.2}}}, "reference"),
    ],
)
def test_bad_settings_are_one_line(settings: dict[str, Any], says: str) -> None:
    given = {"labels": LABELS, "names": ("fog",), "severities": (1,), **settings}
    with pytest.raises(BadInput, match=says) as error:
        evaluate_corruptions(Bright(), IMAGES, given.pop("labels"), **given)
    assert "\n" not in str(error.value)


def test_logits_that_are_not_finite_are_refused() -> None:
    class Broken(Bright):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) * math.nan

    with pytest.raises(BadInput, match="NaN"):
        evaluate_corruptions(Broken(), IMAGES, LABELS, names=("fog",))
